"""Decides for every node whether it runs in int8, from its qconfig and its row; what stays float gets its reason.

A node with a weight is int8 wherever it may be. Others follow their inputs: computing them in int8 pays only where a value is
int8 already. Ops that copy or pool keep their input's kind.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.compile.settings import Settings
from qcompiler.config.qconfig import QConfig, leaves_activations, leaves_weights, mode_of
from qcompiler.config.qconfig_mapping import Rule
from qcompiler.config.qconfig_of_call import calls_a_module, rule_of_call
from qcompiler.errors import ConfigError, UnsupportedOpError
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import QUANT, Mode, Quant, Stage, quant_of, source_of, value_of
from qcompiler.ir.verify import where
from qcompiler.observers import default_dynamic_quant_observer
from qcompiler.observers.weights import check_axis, check_tied
from qcompiler.ops.arguments import SIZES, activations, changes
from qcompiler.ops.functional import getitem
from qcompiler.ops.obstacles import COMPUTED_BIAS, COMPUTED_WEIGHT, FLOAT_ACTIVATIONS, FLOAT_WEIGHTS, Obstacle
from qcompiler.ops.reasons import no_row
from qcompiler.ops.spec import Op, Output, Role
from qcompiler.ops.state_nodes import is_read, is_write
from qcompiler.ops.stays_float import spread, starved

KEPT = Obstacle("keep-float", "convert_fx was told to keep it float")
TAKES_PART = (operator.getitem, getitem, getattr)


def is_float(node: fx.Node) -> bool:
    return value_of(node).dtype is torch.float32


def computes_float(node: fx.Node) -> bool:
    """Whether the node makes or takes float values: those deserve a remark when they are not int8."""
    if isinstance(node.target, type) or node.target in SIZES or is_read(node) or is_write(node):  # nothing is computed
        return False
    if node.target in TAKES_PART and value_of(node.all_input_nodes[0]).shape is None:  # of a container, which has its own remark
        return False
    return node.op.startswith("call_") and (is_float(node) or any(is_float(n) for n in node.all_input_nodes))


@dataclass
class _Seen:
    """What the nodes so far have used: the rules of the mapping, and how many calls of each kind each module made."""

    calls: dict[tuple[str, Any], int] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)


@dataclass(frozen=True)
class Annotate:
    name: str = "annotate"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        seen = _Seen()
        for node in gm.graph.nodes:
            if node.op.startswith("call_"):
                node.meta[QUANT] = _decide(node, context, seen)
        for node, why in spread(gm.graph, context.table):  # behind tuples: for all else each decision saw those before it
            node.meta[QUANT] = _quant(why, quant_of(node).qconfig)
        _check_weights(gm, context)
        unmatched = context.settings.mapping.unmatched(seen.rules)
        if context.settings.strict and unmatched:
            raise ConfigError(f"qconfig rules match nothing in this model: {'; '.join(map(str, unmatched))}", code="rule-unused",
                              hint="drop them, or drop strict=True")  # fmt: skip
        for rule in unmatched:
            context.remark(self.name, "rule-unused", f"qconfig rule {rule} matches nothing in this model")
        left = [n for n in gm.graph.nodes if not quant_of(n).int8 and computes_float(n) and quant_of(n).reason]
        for node in left:
            context.journal.remark_float(self.name, node)
        self._strict(left, context)
        return True

    def _strict(self, left: list[fx.Node], context: Context) -> None:
        unknown = [n for n in left if context.table.of(n) is None]
        if context.settings.strict and unknown:
            lines = "\n  ".join(f"{n.name}: {quant_of(n).reason}" for n in unknown)
            raise UnsupportedOpError(f"no int8 form for {len(unknown)} ops:\n  {lines}", where=where(unknown[0]),
                                     hint="drop strict=True to keep them float, or register an op row")  # fmt: skip


def _check_weights(gm: fx.GraphModule, context: Context) -> None:
    """Raises ConfigError for an axis that a weight does not have, and, naming both users, for a weight under two qconfigs."""
    users: dict[int, tuple[fx.Node, Quant]] = {}
    for node in gm.graph.nodes:
        row, quant = context.table.of(node), quant_of(node)
        for weight in _constants(node, row) if row is not None else ():
            tensor = attribute(gm, str(weight.target))
            if quant.int8 or quant.mode:
                check_axis(quant.qconfig.weight(), tensor, where(node))
            first, known = users.setdefault(id(tensor), (node, quant))
            _check_users(str(weight.target), (first, node), (known, quant), context)


def _constants(node: fx.Node, row: Op) -> list[fx.Node]:
    held: list[Any] = row.weights(node) or ([] if row.weight is None else [node.args[row.weight]])
    return [weight for weight in held if isinstance(weight, fx.Node) and weight.op == "get_attr"]


def _check_users(name: str, nodes: tuple[fx.Node, fx.Node], quants: tuple[Quant, Quant], context: Context) -> None:
    one, two = (bool(quant.int8 or quant.mode) for quant in quants)
    if one and two:
        users = source_of(nodes[0]).module_path or nodes[0].name, source_of(nodes[1]).module_path or nodes[1].name
        check_tied(name, users, (quants[0].qconfig.weight, quants[1].qconfig.weight))
    elif one or two:
        text = f"its weight {name} is quantized for another user: the float one is kept beside it"
        context.remark("annotate", "tied-weight", text, nodes[1] if one else nodes[0])


def _qconfig(node: fx.Node, row: Op | None, settings: Settings, seen: _Seen) -> Any:
    """The node's qconfig by the mapping; module rules see the module's class, function rules the row's functions."""
    row, path = row and row.settled, source_of(node).module_path
    is_module = calls_a_module(node, row, settings.module_types)
    key = (path.rpartition(".")[0] if is_module else path, row.name if row else node.target)
    index = seen.calls[key] = seen.calls.get(key, -1) + 1
    rule = rule_of_call(settings.mapping, node, row, settings.module_types, index)
    seen.rules.append(rule)
    return rule.qconfig


def _decide(node: fx.Node, context: Context, seen: _Seen) -> Quant:
    row = context.table.of(node)
    found = _qconfig(node, row, context.settings, seen)
    is_kept = found is not None and node.name in context.settings.keep_float
    qconfig = None if is_kept else found
    if qconfig is not None and _is_custom(node, context):
        return Quant(int8=True, qconfig=qconfig)
    if qconfig is not None and node.name in context.settings.dynamic:
        qconfig = _dynamic(qconfig)
    mode = mode_of(qconfig) if qconfig is not None else None
    if qconfig is not None and row is not None and row.weights(node) and leaves_weights(qconfig):
        return _quant(FLOAT_WEIGHTS, qconfig)
    if qconfig is not None and row is not None and (mode or context.target.default_mode(row)):
        return _decide_mode(node, row, qconfig, mode, context)
    why = _obstacle(node, row, qconfig, context)
    why = KEPT if is_kept and why is not None and why.code == "qconfig-none" else why
    if why is None and row is not None and context.settings.backend_config is not None:
        why = context.settings.backend_config.refuses(row.settled, qconfig)
    if why is None and row is not None and not _vanishes(row, node):
        why = context.target.refuses(row, node) or _slower(row, node, seen.rules[-1], context)
    return _quant(why, qconfig, int8=why is None)


def _slower(row: Op, node: fx.Node, rule: Rule, context: Context) -> Obstacle | None:
    """Why an op that has an int8 form is better off in float; None, with a remark, where the user's rule names it."""
    slow = context.target.slower(row, node) if row.weight is not None else None
    if slow is None or not rule.names_modules:
        return slow and Obstacle(slow.code, f"{slow.text}; a qconfig rule that names the module makes it int8 all the same")
    context.remark("annotate", slow.code, f"{slow.text}; the qconfig rule {rule} makes it int8", node)
    return None


def _dynamic(qconfig: QConfig) -> QConfig:
    """The qconfig with which the op's input is rounded at run time."""
    return replace(qconfig, activation=default_dynamic_quant_observer)


def _quant(why: Obstacle | None, qconfig: object, int8: bool = False, mode: Mode | None = None) -> Quant:
    return Quant(int8=int8, mode=mode, reason=why and why.text, code=why and why.code, qconfig=qconfig)


def _is_custom(node: fx.Node, context: Context) -> bool:
    """Whether the node calls a module that the user's own observed and quantized classes stand for."""
    module = node.graph.owning_module
    classes = context.settings.custom.observed_classes
    return bool(classes) and node.op == "call_module" and module is not None and type(module.get_submodule(str(node.target))) in classes


def _vanishes(row: Op, node: fx.Node) -> bool:
    """Whether nothing will be left of the op in eval mode: a dropout that is trained."""
    return isinstance(node.kwargs.get("training"), fx.Node) and row.identity({**node.kwargs, "training": False})


def _decide_mode(node: fx.Node, row: Op, qconfig: object, asked: Mode | None, context: Context) -> Quant:
    """For an op that will take floats: how its weights are quantized. `asked`: the qconfig's mode, None where that is static."""
    weights = row.weights(node)
    if not weights:
        none = Obstacle("no-weights", f"its qconfig means {asked.value}, and it has no weights") if asked else _no_form(row)
        return _quant(none, qconfig)
    wanted = asked or context.target.default_mode(row)
    assert wanted is not None
    chosen = context.target.mode(row, node, wanted)
    if isinstance(chosen, Obstacle):
        return _quant(chosen, qconfig)
    obstacle = _mode_obstacle(node, row, weights)
    if obstacle is not None:
        return _quant(obstacle, qconfig)
    mode, why = chosen
    slow = context.target.slower(row, node) if mode is Mode.DYNAMIC else None
    if slow is not None and not asked:
        return _quant(Obstacle(slow.code, f"{slow.text} (a dynamic qconfig for it makes it int8 all the same)"), qconfig)
    if slow is not None:
        context.remark("annotate", slow.code, f"{slow.text}; float weights would take four times the memory", node)
    if mode is not asked:
        context.remark("annotate", "other-mode", f"runs with {mode.value}: {why}", node)
    return _quant(None, qconfig, mode=mode)


def _no_form(row: Op) -> Obstacle:
    return Obstacle("no-int8-form", row.float_reason or f"{row.name} has no int8 form")


def _mode_obstacle(node: fx.Node, row: Op, weights: list[Any]) -> Obstacle | None:
    if not all(isinstance(w, fx.Node) and w.op == "get_attr" for w in weights):
        return COMPUTED_WEIGHT
    if _computes_bias(node, row):
        return COMPUTED_BIAS
    floats = [a for p, a in zip(row.params, node.args, strict=False) if p.role is Role.ACTIVATION and isinstance(a, fx.Node)]
    if any(value_of(value).dtype not in (torch.float32, None) for value in (*floats, *weights)):
        return Obstacle("not-float32", "it does not compute float32 values")
    return None


def _computes_bias(node: fx.Node, row: Op) -> bool:
    """Whether a bias is no parameter, so that it cannot be packed with the weight."""
    held: list[fx.Node] = []
    fx.node.map_arg([a for p, a in zip(row.params, node.args, strict=False) if p.role is Role.BIAS], held.append)
    return any(bias.op != "get_attr" for bias in held)


def _is_finite(node: fx.Node) -> bool:
    module = node.graph.owning_module
    assert module is not None
    return bool(torch.isfinite(attribute(module, str(node.target))).all())


def _obstacle(node: fx.Node, row: Op | None, qconfig: QConfig | None, context: Context) -> Obstacle | None:
    """Why the node cannot be int8, or None."""
    inputs = list(activations(context.table, node))
    if row is None:
        return no_row(node, context.table, context.target.lacks)
    if row.output in (Output.FLOAT, Output.OTHER):
        return _no_form(row)
    if qconfig is None:
        return Obstacle("qconfig-none", "its qconfig is None")
    if leaves_activations(qconfig):
        return FLOAT_ACTIVATIONS
    if not inputs or not (is_float(node) or value_of(node).dtype is None):
        return Obstacle("not-float32", "it does not compute float32 values")
    if any(value_of(i).dtype not in (torch.float32, None) for i in inputs):
        return Obstacle("not-float32", "an input is not float32")
    if any(isinstance(a, fx.Node) and p.role is Role.ACTIVATION and a not in inputs for p, a in zip(row.params, node.args, strict=False)):
        return Obstacle("computed-operand", "an operand is a number computed at run time")
    if any(changes(user, node) for user in node.users):
        return Obstacle("assigned-into", "values are assigned into it")
    if any(i.op == "get_attr" and not _is_finite(i) for i in inputs):
        return Obstacle("holds-inf", "a constant operand holds inf")
    if row.weight is not None:
        weight = node.args[row.weight]
        constant = isinstance(weight, fx.Node) and weight.op == "get_attr"
        return COMPUTED_WEIGHT if not constant else COMPUTED_BIAS if _computes_bias(node, row) else None
    if row.output is Output.SAME and row.adds_values(node.kwargs):
        return Obstacle("leaves-range", "its result may lie outside the range of its input")
    return starved(row, inputs)
