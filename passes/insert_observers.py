"""Puts one observer behind the source of each group: the value that the rest of the group copies or pools.

The observer comes from the qconfig of the op that computes the value, or of the first int8 op that takes it. A value whose op
has a fixed range needs none.

In a graph that will be trained it is a fake-quantize module, also for a fixed range, and passes on what it makes of the value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from qcompiler.compile.pass_manager import Context
from qcompiler.fake_quantize.following import current, hold_each_batch
from qcompiler.ir.groups import members_of
from qcompiler.ir.names import add_named
from qcompiler.ir.types import QUANT, SOURCE, VALUE, QParams, Stage, quant_of, source_of
from qcompiler.ir.verify import where
from qcompiler.observers.ranges import WIDE, WIDE_RANGE, is_wide
from qcompiler.observers.watch import Watch, WatchKey
from qcompiler.ops.arguments import activations, replace_activations
from qcompiler.ops.spec import Op, Output
from qcompiler.ops.table import Table
from qcompiler.qat.of_model import of_model_alone
from qcompiler.qat.sites import FakeQuantWatch, fixed, made_by


@dataclass(frozen=True)
class InsertObservers:
    name: str = "insert_observers"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        gm.add_module("observers", nn.Module())
        groups = members_of(gm.graph)
        own = of_model_alone(gm.graph) if context.trains else {}
        for members in groups.values():
            node = _source(members, context)
            row = context.table.of(node)
            is_fixed = row is not None and row.output is Output.FIXED and quant_of(node).int8
            if context.trains:
                made = _fake_quant(node, members, _fixed(row, members, context) if is_fixed else None, node in own, context)
                _observe(gm, node, made, context.table)
            elif is_fixed:
                for member in members:
                    member.meta[QUANT] = quant_of(member).with_(qparams=_fixed(row, members, context))
            else:
                key = WatchKey(node.name, source_of(node).origin, _factory(node, context))
                _observe(gm, node, Watch(key.maker(), where(node), key), context.table)
        return bool(groups)


def _fixed(row: Op | None, members: list[fx.Node], context: Context) -> QParams:
    """What the op's row fixes, in 7 bits where a kernel that takes the value needs that."""
    assert row is not None and row.fixed is not None
    return row.fixed.with_7_bits() if context.needs_7_bits(members) else row.fixed


def _source(members: list[fx.Node], context: Context) -> fx.Node:
    """The value that the others copy: the first; of a cat that was joined with its inputs, the cat, which copies them."""
    rows = ((node, context.table.of(node)) for node in reversed(members) if quant_of(node).int8)
    cat = next((node for node, row in rows if row is not None and row.output is Output.JOIN), None)
    return cat if context.trains and cat is not None else members[0]


def _fake_quant(node: fx.Node, members: list[fx.Node], qparams: QParams | None, of_model: bool, context: Context) -> Watch:
    """Fake quantization with the range that int8 will have, 7 bits where a kernel needs that. `of_model`: no data reaches the value."""
    made = fixed(qparams) if qparams is not None else made_by(_factory(node, context), "activation", where(node))
    if of_model:
        made = current(made)
    elif node.op != "placeholder":
        hold_each_batch(made)
    if qparams is None and context.needs_7_bits(members):
        made.set_reduce_range(True)
        if is_wide(made):
            context.remark("insert_observers", WIDE_RANGE, WIDE, node)
    return FakeQuantWatch(made, where(node))


def _factory(node: fx.Node, context: Context) -> Callable[[], object]:
    own = quant_of(node).qconfig if quant_of(node).int8 else None
    takers = (quant_of(u).qconfig for u in node.users if quant_of(u).int8 and node in set(activations(context.table, u)))
    qconfig = own or next(takers)
    factory: Callable[[], Any] = qconfig.activation
    return factory


def _observe(gm: fx.GraphModule, node: fx.Node, made: Watch, table: Table) -> None:
    path = add_named(gm, "observers", node.name, made)
    with gm.graph.inserting_after(node):
        watch = gm.graph.create_node("call_module", path, (node,), name=f"{node.name}_observer")
    watch.meta[VALUE], watch.meta[SOURCE] = node.meta.get(VALUE), source_of(node)
    if not isinstance(made, FakeQuantWatch) or quant_of(node).int8:
        node.replace_all_uses_with(watch, delete_user_cb=lambda user: user is not watch)
        return
    watch.meta[SOURCE] = replace(source_of(node), origin=(watch.name,))  # no value of the model: float users take the value itself
    for user in [user for user in node.users if user is not watch and quant_of(user).int8]:
        replace_activations(table, user, node, watch)
