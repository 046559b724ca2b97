"""Turns observers into qparams, group by group, and takes the observers out.

Kernels take unsigned activations: what was observed as int8 gets the uint8 qparams of the same real numbers. Activations use 8 bits
unless a consumer's kernel adds in 16 bits without a way to prove that it cannot overflow: then 7.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.ir.groups import members_of
from qcompiler.ir.types import QUANT, QParams, Stage, quant_of
from qcompiler.ir.verify import where
from qcompiler.observers.affine import Rule, choose_qparams
from qcompiler.observers.base import EPS, ObserverBase
from qcompiler.observers.ranges import WIDE, WIDE_RANGE, floored, is_constant, overflows
from qcompiler.observers.watch import Watch
from qcompiler.ops.arguments import activations, is_int8_join
from qcompiler.ops.obstacles import UNCALIBRATED
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import spread


@dataclass(frozen=True)
class FreezeQParams:
    name: str = "freeze_qparams"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        watches = {n: gm.get_submodule(str(n.target)) for n in gm.graph.nodes if n.op == "call_module"}
        watches = {n: m for n, m in watches.items() if isinstance(m, Watch)}
        _join_empty(gm, watches, context)
        kept = _require_data(watches, context, gm)
        members = members_of(gm.graph)
        narrow = {} if context.trains else _narrow(gm, members, context)  # decided before training where there was one
        found: dict[int, QParams] = {}
        ranges = _corrected(gm, watches, context)
        for watch, module in watches.items():
            source = watch.args[0]
            group = quant_of(source).group  # type: ignore[arg-type]
            assert group is not None
            observer: Any = module.observer
            if narrow.get(group):
                observer = copy.deepcopy(observer)  # the prepared module may hold it as well
                observer.set_reduce_range(True)
            found[group] = (_of_range(observer, ranges[group]) if group in ranges else observer.qparams()).unsigned()
            if narrow.get(group) and found[group].quant_max - found[group].quant_min > 127:
                context.remark(self.name, WIDE_RANGE, WIDE, source)
            _remark_range(observer, source, context)
        for watch in watches:
            watch.replace_all_uses_with(watch.args[0])  # type: ignore[arg-type]
            gm.graph.erase_node(watch)
        if hasattr(gm, "observers"):
            del gm.observers
        _assign(members, found | _fixed_in_7_bits(members, narrow, found))
        for node, why in spread(gm.graph, context.table) if kept else ():
            context.keep_float(self.name, node, why)
        return bool(watches) or kept


def _corrected(gm: fx.GraphModule, watches: Iterable[fx.Node], context: Context) -> dict[int, tuple[float, float]]:
    """The ranges that the user gives, by group. Raises ConfigError where a value has a fixed one, or its group two."""
    given, found = context.settings.corrections.ranges, dict[int, tuple[float, float]]()
    observed = {quant_of(watch.args[0]).group for watch in watches}  # type: ignore[arg-type]
    for node in [n for n in gm.graph.nodes if n.name in given]:
        group, ends = quant_of(node).group, given[node.name]
        if group is None:
            context.remark("freeze_qparams", "correction-unused", f"%{node.name} is not quantized: its corrected range has no use", node)
            continue
        if group not in observed or found.setdefault(group, ends) != ends:
            why = "shares its steps with a value of another range in them" if group in observed else "has a range that its op fixes"
            raise ConfigError(f"corrections give a range of %{node.name}, which {why}", code="correction", where=where(node))
        node.meta[QUANT] = quant_of(node).with_(corrected=(*quant_of(node).corrected, "range"))
        context.remark("freeze_qparams", "corrected", f"corrections gave its range, {ends[0]:g} to {ends[1]:g}", node)
    return found


def _of_range(observer: ObserverBase, ends: tuple[float, float]) -> QParams:
    """What the observer would choose for the range."""
    own = observer.qparams()
    rule = Rule(own.dtype, observer.qscheme or torch.per_tensor_affine, own.quant_min, own.quant_max,
                float(getattr(observer, "eps", EPS)), bool(getattr(observer, "has_customized_qrange", False)))  # fmt: skip
    scale, zero_point = choose_qparams(torch.tensor(ends[0]), torch.tensor(ends[1]), rule)
    return replace(own, scale=float(scale.item()), zero_point=int(zero_point.item()))


def _copied_groups(gm: fx.GraphModule, context: Context) -> list[tuple[fx.Node, int, int]]:
    """The int8 copies and means that were observed for themselves, with their group and that of their input, in order."""
    found = []
    for node in gm.graph.nodes:
        row = context.table.of(node)
        if row is not None and row.output is Output.SAME and quant_of(node).int8:
            source: Any = node.args[0]
            source = source.args[0] if source.op == "call_module" and quant_of(source).group is None else source
            own, of_source = quant_of(node).group, quant_of(source).group
            if own is not None and of_source is not None and own != of_source:
                found.append((node, own, of_source))
    return found


def _join_empty(gm: fx.GraphModule, watches: dict[fx.Node, Any], context: Context) -> None:
    """A part that was empty in every batch has the range of the whole."""
    empty = {quant_of(n.args[0]).group: n for n, module in watches.items() if not module.observer.observed}  # type: ignore[arg-type]
    for node, own, of_source in _copied_groups(gm, context) if empty else ():
        watch = empty.get(own)
        if watch is not None and watch.args[0] is node and of_source not in empty:
            for member in members_of(gm.graph)[own]:
                member.meta[QUANT] = quant_of(member).with_(group=of_source)
            watch.replace_all_uses_with(node)
            gm.graph.erase_node(watch)
            del watches[watch]


def _narrow(gm: fx.GraphModule, members: dict[int, list[fx.Node]], context: Context) -> dict[int, bool]:
    """Which groups have 7 bits: because of who takes them, or because of a part that may get their qparams."""
    narrow = {group: context.needs_7_bits(nodes) for group, nodes in members.items()}
    for _, own, of_source in reversed(_copied_groups(gm, context)):
        narrow[of_source] = narrow[of_source] or narrow[own]
    for node in reversed(gm.graph.nodes):
        if is_int8_join(node, context.table) and narrow[quant_of(node).group]:  # type: ignore[index]
            narrow.update(dict.fromkeys(_of_cats_alone(node, members, context), True))
    return narrow


def _of_cats_alone(cat: fx.Node, members: dict[int, list[fx.Node]], context: Context) -> list[int]:
    """The groups of a cat's inputs that only cats read: with as many bits as the result, they can get its qparams (join_qparams)."""
    values = [n.args[0] if n.op == "call_module" else n for n in activations(context.table, cat)]
    groups = {quant_of(value).group for value in values if isinstance(value, fx.Node)}
    found = []
    for group in groups:
        nodes = members.get(group, []) if group is not None else []
        users = [user for node in nodes for user in _takers(node) if user.op != "call_module"]
        row = context.table.of(nodes[0]) if nodes else None
        is_fixed = row is not None and row.output is Output.FIXED
        if nodes and not is_fixed and all(is_int8_join(u, context.table) or u in nodes for u in users):
            found.append(group)
    return found  # type: ignore[return-value]


def _remark_range(observer: Any, node: Any, context: Context) -> None:
    if is_constant(observer):
        context.remark("freeze_qparams", "constant", "all values that calibration showed here are the same number", node)
    for code, text in (("tiny-range", floored(observer)), ("huge-range", overflows(observer))):
        if text:
            context.remark("freeze_qparams", code, text, node)


def _takers(node: fx.Node) -> list[fx.Node]:
    """Users of a value, seeing through its observer."""
    through = [u for user in node.users if user.op == "call_module" for u in user.users]
    return [*node.users, *through]


def _require_data(watches: dict[fx.Node, Any], context: Context, gm: fx.GraphModule) -> bool:
    """No observer may be converted without data: what torch warned of becomes an error that names the nodes.

    Returns whether something stays float because the caller allows that.
    """
    empty = [n for n, module in watches.items() if not module.observer.observed]
    if not empty:
        return False
    silent = next((n for n in empty if not watches[n].observer.measures), None)
    if silent is not None:
        text = f"the activation of this node's qconfig makes a {type(watches[silent].observer).__name__}, which gives no scales"
        raise ConfigError(text, code="no-qparams", where=where(silent.args[0]),  # type: ignore[arg-type]
                          hint="to convert, calibrate under a qconfig whose observers measure ranges")  # fmt: skip
    if len(empty) == len(watches):
        raise CalibrationError(f"0 of {len(watches)} observers saw data", code="not-calibrated",
                               hint="call the module that prepare_fx returned (not the original model) with data first")  # fmt: skip
    if context.settings.allow_uncalibrated != "float":
        names = ", ".join(str(n.args[0]) for n in empty[:20])
        raise CalibrationError(
            f"{len(empty)} of {len(watches)} observers saw no data: {names}",
            code="partly-calibrated",
            where=where(empty[0].args[0]),  # type: ignore[arg-type]
            hint='calibrate with data that reaches these nodes, or pass allow_uncalibrated="float" to keep them float',
        )
    _keep_float(gm, empty, watches, context)
    return True


def _keep_float(gm: fx.GraphModule, empty: list[fx.Node], watches: dict[fx.Node, Any], context: Context) -> None:
    """Makes float what computes or takes a value that no data reached, and what follows from that."""
    members = members_of(gm.graph)
    for watch in empty:
        source: Any = watch.args[0]
        for node in members[quant_of(source).group]:  # type: ignore[index]
            for n in (node, *_takers(node)):
                if quant_of(n).int8:
                    context.keep_float("freeze_qparams", n, UNCALIBRATED)
            node.meta[QUANT] = quant_of(node).with_(group=None, qparams=None)
        watch.replace_all_uses_with(source)
        gm.graph.erase_node(watch)
        del watches[watch]


def _fixed_in_7_bits(members: dict[int, list[fx.Node]], narrow: dict[int, bool], found: dict[int, QParams]) -> dict[int, QParams]:
    """Ranges that an op fixes, where a part of the value turns out to need 7 bits: the ops that take the value itself were asked before."""
    fixed = {group: quant_of(members[group][0]).qparams for group, less in narrow.items() if less and group not in found}
    return {group: qparams.with_7_bits() for group, qparams in fixed.items() if qparams is not None and qparams.quant_max == 255}


def _assign(members: dict[int, list[fx.Node]], found: dict[int, QParams]) -> None:
    """Groups that no observer watches keep what their op fixes."""
    for group, qparams in found.items():
        for node in members[group]:
            node.meta[QUANT] = quant_of(node).with_(qparams=qparams)
