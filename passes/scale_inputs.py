"""Channels of unlike range in front of linears: the input times 1/s, the columns of the weight times s, as corrections ask.

    W x = (W diag(s)) (diag(1/s) x)

So no float result changes, and the rounded value is the one whose channels are alike. It costs a multiplication of floats, which back ends
join with what is computed there. What else reads the value reads it as it was: the sum of a residual stream, which is float.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from qcompiler.compile.pass_manager import Context
from qcompiler.config.corrections import scaled_name
from qcompiler.errors import ConfigError
from qcompiler.ir.attributes import attribute, get_attr, set_attribute, unused_path
from qcompiler.ir.names import add_named, user_path
from qcompiler.ir.types import QUANT, SOURCE, VALUE, Mode, Quant, Stage, quant_of, source_of, value_of
from qcompiler.ir.verify import where
from qcompiler.observers.watch import Watch
from qcompiler.ops.functional import mul
from qcompiler.ops.spec import Family

NAME = "scale_inputs"
HINT = "corrections fit the model, the settings and the back end that they were made with"


@dataclass(frozen=True)
class ScaleInputs:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        made: dict[fx.Node, tuple[fx.Node, Tensor]] = {}
        for node, weight, factors in list(_asked(gm, context)):
            _check(gm, node, weight, factors)
            if not (quant_of(node).int8 or quant_of(node).mode is Mode.DYNAMIC):
                context.remark(NAME, "correction-unused", f"%{node.name} stays float: factors of its input have no use", node)
                continue
            source = _source(gm, node)
            if source not in made:
                made[source] = _product(gm, source, node, factors), factors
            product, known = made[source]
            if not torch.equal(known, factors):
                _refuse(f"linears that read %{source.name} have unlike factors in corrections", node)
            node.args = (_watched(gm, source, product, node, context), *node.args[1:])
            held = attribute(gm, str(weight.target)).detach()
            set_attribute(gm, str(weight.target), held * factors, parameter=True)
            node.meta[QUANT] = quant_of(node).with_(corrected=(*quant_of(node).corrected, "scaled input"))
            context.remark(NAME, "corrected", "corrections scale the channels of its input", node)
        return bool(made)


def _asked(gm: fx.GraphModule, context: Context) -> Iterator[tuple[fx.Node, fx.Node, Tensor]]:
    """Each op whose weight has factors, with that."""
    given = context.settings.corrections.columns
    for weight in [n for n in gm.graph.nodes if n.op == "get_attr"] if given else ():
        factors = given.get(user_path(gm, str(weight.target)))
        for user in list(weight.users) if factors is not None else ():
            row = context.table.of(user)
            if row is None or row.settled.family is not Family.LINEAR or user.args[1] is not weight:
                _refuse(f"corrections scale the columns of {weight.target}, which %{user.name} reads and is no linear", user)
            assert factors is not None
            yield user, weight, factors


def _check(gm: fx.GraphModule, node: fx.Node, weight: fx.Node, factors: Tensor) -> None:
    columns = (value_of(weight).shape or (0,))[-1]
    if factors.shape != (columns,) or factors.dtype is not torch.float32 or not bool((factors > 0).all()):
        text = f"the factors of the columns of {weight.target} in corrections are {factors.dtype}{list(factors.shape)}"
        _refuse(f"{text}, not torch.float32[{columns}] above 0", node)
    others = [user for n in gm.graph.nodes if n.op == "get_attr" and n.target == weight.target for user in n.users if user is not node]
    if others:
        _refuse(f"corrections scale the columns of {weight.target}, which %{others[0].name} reads as well", node)


def _refuse(text: str, node: fx.Node) -> None:
    raise ConfigError(text, code="correction", where=where(node), hint=HINT)


def _source(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The float value that the op reads, in front of its observer."""
    given = node.args[0]
    assert isinstance(given, fx.Node)
    source = given.args[0] if _watch(gm, given) is not None else given
    assert isinstance(source, fx.Node)
    if quant_of(source).int8:
        _refuse(f"corrections scale %{source.name}, which an int8 op makes: its channels are rounded already", node)
    return source


def _watch(gm: fx.GraphModule, node: fx.Node) -> Watch | None:
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Watch) else None


def _product(gm: fx.GraphModule, source: fx.Node, reader: fx.Node, factors: Tensor) -> fx.Node:
    name = scaled_name(source.name)
    with gm.graph.inserting_after(source):
        path = unused_path(gm, f"{name}_factors")
        set_attribute(gm, path, 1 / factors)
        held = get_attr(gm, path, source_of(source))
    with gm.graph.inserting_after(held):
        product = gm.graph.create_node("call_function", mul, (source, held), name=name)
    product.meta[VALUE], product.meta[SOURCE] = value_of(source), replace(source_of(source), origin=(name,))
    product.meta[QUANT] = Quant(reason="corrections scale the channels that linears read", qconfig=quant_of(reader).qconfig)
    return product


def _watched(gm: fx.GraphModule, source: fx.Node, product: fx.Node, node: fx.Node, context: Context) -> fx.Node:
    """What the op reads from now on: the product, or where it is rounded on a range of calibration the observer behind it."""
    given = node.args[0]
    assert isinstance(given, fx.Node)
    watch = _watch(gm, given)
    if watch is None:
        return product
    known = next((user for user in product.users if _watch(gm, user) is not None), None)
    if known is not None:
        return known
    if product.name not in context.settings.corrections.ranges:
        _refuse(f"corrections scale %{source.name} and give no range of %{product.name}", node)
    group = 1 + max(quant_of(n).group or 0 for n in gm.graph.nodes)
    product.meta[QUANT] = quant_of(product).with_(group=group)
    path = add_named(gm, "observers", product.name, Watch(copy.deepcopy(watch.observer), where(product)))
    with gm.graph.inserting_after(product):
        made = gm.graph.create_node("call_module", path, (product,), name=f"{product.name}_observer")
    made.meta[VALUE], made.meta[SOURCE] = value_of(product), source_of(product)
    return made
