"""Which nodes of the QUANTIZED graph form native regions: as few and as large ones as the order of computation allows.

Each node has a depth: how often the longest path to it changes between torch and C. The native nodes of one depth are a region: a path
that leaves it through torch comes back at a larger depth, so no region waits for itself.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import fx

from qcompiler.backends.native.float_ops import bound
from qcompiler.backends.native.graph_facts import GraphFacts, is_float, is_mask, is_useful, makes_parts, places_call
from qcompiler.backends.native.known import Known
from qcompiler.backends.native.plan.forms import choose
from qcompiler.backends.native.plan.planning import WHOLE
from qcompiler.backends.native.plan.taken import TAKING
from qcompiler.backends.native.read import NotNative, is_known, is_number
from qcompiler.ir.text import format_target
from qcompiler.ir.types import quant_of, value_of
from qcompiler.ops.arguments import changes
from qcompiler.ops.functional import getitem
from qcompiler.ops.reference import dequantize, dequantize_weight, dynamic_quantize_dequantize, quantize
from qcompiler.ops.table import OPS, Table

CONVERSIONS = (quantize, dequantize, dequantize_weight)


def unit_of(node: fx.Node) -> fx.Node:
    """The op whose result a value is, behind its quantize and dequantize."""
    while node.target in (quantize, dequantize):
        node = node.args[0]  # type: ignore[assignment]
    return node


@dataclass
class Partition:
    """`depth`: of each unit that is native. `reasons`: why an int8 op is none, or one of floats beside native ones. `gone`: what is known
    from sizes and that only native units read.
    """

    gm: fx.GraphModule
    table: Table
    known: Known
    gone: set[fx.Node] = field(default_factory=set)
    depth: dict[fx.Node, int] = field(default_factory=dict)
    reasons: dict[fx.Node, str] = field(default_factory=dict)

    @staticmethod
    def of(gm: fx.GraphModule, table: Table) -> Partition:
        made = Partition(gm, table, Known(gm, table))
        units = [n for n in gm.graph.nodes if n.op.startswith("call") and n.target not in CONVERSIONS]
        facts = GraphFacts(gm, table, made.known)
        settled = {node for node in units if is_number(node) or node in made.known or node.target is dynamic_quantize_dequantize}
        native = {node for node in units if node not in settled and made._is_native(node, facts)}
        while True:
            native = made._whole(units, native)
            made.gone = made.known.unread(native.__contains__)
            made.gone |= {n for n in units if n.target is dynamic_quantize_dequantize and native.issuperset(n.users)}
            left = [node for node in units if node not in made.gone]
            made._descend(left, native | _numbers(left, native, made.gone))
            if not (lost := native & made._without_int8()):
                break
            native -= lost
        made.reasons = {node: why for node, why in made.reasons.items() if is_useful(node) or made._is_beside(node)}
        return made

    def _whole(self, units: list[fx.Node], native: set[fx.Node]) -> set[fx.Node]:
        """Without those whose parts are made or taken in torch."""
        while lost := [node for node in units if node in native and (why := _broken(node, native)) and self.reasons.setdefault(node, why)]:
            native = native - set(lost)
        return native

    def _without_int8(self) -> set[fx.Node]:
        """The units of regions that compute with floats alone: torch does that as well, without the copies."""
        useful = {depth for node, depth in self.depth.items() if is_useful(node)}
        return {node for node, depth in self.depth.items() if depth not in useful}

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """What a native node takes from others: behind what is known, or rounded at run time, in its own region."""
        found = self.known.sources(node)
        return [s.args[0] if s.target is dynamic_quantize_dequantize else s for s in found]  # type: ignore[misc]

    def _is_beside(self, node: fx.Node) -> bool:
        """Whether a native op gives it a value, or takes its own, if that is of floats or a mask: only those could be native."""
        if self._other_result(node) is not None:
            return any(unit_of(source) in self.depth for source in node.all_input_nodes)
        readers = [user for made in (node, *node.users) for user in made.users]
        return any(unit_of(other) in self.depth for other in (*node.all_input_nodes, *readers, *(d for r in readers for d in r.users)))

    def _is_native(self, node: fx.Node, facts: GraphFacts) -> bool:
        source = node.args[0] if node.target in (getitem, operator.getitem) else None
        if source in self.reasons and not makes_parts(source, self.table):  # type: ignore[arg-type]
            return False  # a part of what torch makes: its maker says why
        reason = self._other_result(node)
        if reason is None and _could_be_native(node, self.table):
            reason = self._refusal(node, facts)
        elif reason is None:
            return False
        if reason is not None:
            self.reasons[node] = reason
        return reason is None

    def _other_result(self, node: fx.Node) -> str | None:
        """What an op gives that no native op can: whole numbers, halves, values and their places."""
        if _could_be_native(node, self.table):
            return None
        if value_of(node).shape is not None:
            return "its result is " + str(value_of(node).dtype).removeprefix("torch.")
        several = any(user.target in (getitem, operator.getitem) and value_of(user).shape is not None for user in node.users)
        return "it gives several values" if several else None

    def _refusal(self, node: fx.Node, facts: GraphFacts) -> str | None:
        row = self.table.of(node)
        if row is not None and OPS.rows.get(row.name) is not row:
            return "its op is no row of the compiler's own table"
        if row is None and bound(node) is None:
            name = type(self.gm.get_submodule(str(node.target))).__name__ if node.op == "call_module" else format_target(node.target)
            return f"{name} has no C form yet"
        try:
            step = facts.step(node)
        except NotNative as error:
            return str(error)
        found = choose(step, facts)
        setting = self._tensor_setting(node, row.name) if row is not None else None  # forms of calls without a row look at all arguments
        return setting or self._foreign(node) or _result_fault(node) or (found if isinstance(found, str) else None)

    def _tensor_setting(self, node: fx.Node, op: str) -> str | None:
        """Why a setting of an op is none that a plan can know: a mask, or a tensor of places, that is computed at run time."""
        found: list[fx.Node] = []
        if op != "clamp":  # whose forms look at all arguments
            fx.node.map_arg(node.kwargs, found.append)
        if op in TAKE_PLACES:
            taken = WHOLE if op in AT_RUN_TIME else ()
            found = [n for n in found if n.op != "get_attr" and n not in self.known and value_of(n).dtype not in taken]
        tensor = next((n for n in found if value_of(n).shape is not None or value_of(n).dtype is not None), None)
        return f"one of its settings is the tensor %{tensor.name}" if tensor is not None else None

    def _foreign(self, node: fx.Node) -> str | None:
        """Why a number that the op takes is unknown before anything runs: torch computes it, or the caller gives it."""
        numbers = (s for s in node.all_input_nodes if value_of(s).shape is None and s.op != "get_attr" and not makes_parts(s, self.table))
        unknown = next((s for s in numbers if not is_known(s)), None)
        return f"it takes the number %{unknown.name}, which data gives and no size; a mask would stay in C" if unknown is not None else None

    def _descend(self, units: list[fx.Node], native: set[fx.Node]) -> None:
        """Depths; torch's nodes are even, native ones odd. Where order counts, torch's nodes keep theirs, and no region reaches across an
        assignment: what is computed before it reads the old values, what stands behind it the new ones."""
        depths: dict[fx.Node, int] = {}
        self.depth.clear()
        ordered, last = any(map(_has_effect, units)), 0
        deepest, least = 0, 1  # of the native nodes so far, and of those to come
        for node in units:
            is_native = node in native
            sources = [unit_of(source) for source in (self.sources(node) if is_native else node.all_input_nodes)]
            found = [depths[s] + ((s in native) != is_native) for s in sources if s in depths]
            depth = max([*found, least if is_native else 0])
            if ordered and not is_native:
                depth = max(depth, last, deepest + 1 if _assigns(node) else 0)
                last, least = depth, depth + 1 if _assigns(node) else least
            depths[node] = depth
            if is_native:
                self.depth[node] = depth
                deepest = max(deepest, depth)


def _assigns(node: fx.Node) -> bool:
    """Whether it writes into a value that other nodes read."""
    return any(isinstance(argument, fx.Node) and changes(node, argument) for argument in node.args[:1])


AT_RUN_TIME = (*TAKING, "getitem")  # may take places that are found at run time
TAKE_PLACES = ("index_select", "gather", "getitem", "repeat_interleave")  # whose constant or known tensors say which elements they pick


def _could_be_native(node: fx.Node, table: Table) -> bool:
    return quant_of(node).int8 or is_float(node) or is_mask(node) or places_call(node, table) is not None or makes_parts(node, table)


def _has_effect(node: fx.Node) -> bool:
    """Whether something else depends on when it runs: it writes, or nobody knows what it does."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_module" or (node.is_impure() and not is_number(node))


def _result_fault(node: fx.Node) -> str | None:
    """Why the codes of an op's result cannot be a region's."""
    quantized = [user for user in node.users if user.target is quantize]
    plain = all((qparams := quant_of(q).qparams) is not None and qparams.dtype is torch.uint8 and isinstance(qparams.scale, float)
                for q in quantized)  # fmt: skip
    return None if plain else "its codes are not uint8 with one scale"


def _broken(node: fx.Node, native: set[fx.Node]) -> str | None:
    """Parts of a value stay within a region: why a node that makes or takes parts cannot be native after all."""
    if is_mask(node):
        outside = next((u for u in node.users if u not in native and not _sizes_only(u)), None)
        return f"{outside.name} takes its bools, in torch" if outside is not None else None
    if value_of(node).shape is None:
        outside = next((u for u in node.users if u not in native and not is_number(u)), None)
        if outside is not None:
            return f"{outside.name} takes its parts, in torch"
    source = node.args[0] if node.args else None
    parts = isinstance(source, fx.Node) and node.target in (getitem, operator.getitem) and value_of(source).shape is None
    return "the parts are made in torch" if parts and source not in native else None


def _numbers(units: list[fx.Node], native: set[fx.Node], gone: set[fx.Node]) -> set[fx.Node]:
    """Sizes of native values and what is computed from them, and the numbers that native ops take, or what they alone read."""
    found: set[fx.Node] = set()

    def wanted(user: fx.Node) -> bool:
        return user in native or user in found or user in gone

    for node in units:
        if is_number(node) and _sizes_only(node) and any(unit_of(s) in native or s in found for s in node.all_input_nodes):
            found.add(node)
    for node in reversed(units):
        if is_number(node) and _sizes_only(node) and any(map(wanted, node.users)):
            found.add(node)
    return found


def _sizes_only(node: fx.Node) -> bool:
    """Whether its arguments are numbers, or tensors of floats or bools whose sizes it asks."""
    return is_known(node, of_parts=True) and all(
        value_of(s).shape is None or unit_of(s) is not s or is_float(s) or is_mask(s) for s in node.all_input_nodes
    )
