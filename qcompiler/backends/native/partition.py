"""Which nodes of the QUANTIZED graph form native regions: as few and as large ones as the order of computation allows.

Each node has a depth: how often the longest path to it changes between torch and C. The native nodes of one depth are a region: a path
that leaves it through torch comes back at a larger depth, so no region waits for itself.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qcompiler.backends.native.float_ops import bound
from qcompiler.backends.native.packing import MAX_SPANS, sums_fit
from qcompiler.backends.native.plan.families import choose
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.read import NotNative, Reader, is_known, is_number
from qcompiler.backends.native.steps import Step, is_tensor, is_value
from qcompiler.ir.attributes import attribute
from qcompiler.ir.text import format_target
from qcompiler.ir.types import quant_of, value_of
from qcompiler.ops.arguments import changes
from qcompiler.ops.functional import getitem
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize
from qcompiler.ops.table import OPS, Table

CONVERSIONS = (quantize, dequantize, dequantize_weight)
TUPLES = ("chunk", "split", "tensor_split", "unbind")


def unit_of(node: fx.Node) -> fx.Node:
    """The op whose result a value is, behind its quantize and dequantize."""
    while node.target in (quantize, dequantize):
        node = node.args[0]  # type: ignore[assignment]
    return node


class GraphFacts:
    """The Facts of a graph's nodes, by name. `tensors`: the nodes behind the tensors of the step in question."""

    def __init__(self, gm: fx.GraphModule, table: Table) -> None:
        self.gm, self.table = gm, table
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.tensors: list[fx.Node] = []

    def step(self, node: fx.Node) -> Step:
        """Raises NotNative."""
        reader = Reader(self.table)
        step = reader.step(node)
        self.tensors = reader.tensors
        return step

    def node(self, argument: Any) -> fx.Node | None:
        if is_tensor(argument):
            return self.tensors[int(argument[1:])]
        return self.nodes.get(argument[1:]) if is_value(argument) else None

    def shape(self, argument: Any) -> Axes:
        node = self.node(argument)
        return tuple(value_of(node).shape or ()) if node is not None else ()

    def rank(self, argument: Any) -> int:
        return len(self.shape(argument))

    def is_codes(self, argument: Any) -> bool:
        node = self.node(argument)
        return node is not None and node.target is dequantize

    def is_floats(self, argument: Any) -> bool:
        node = self.node(argument)
        return node is not None and not self.is_codes(argument) and is_float(node)

    def is_parts(self, argument: Any) -> bool:
        node = self.node(argument)
        return node is not None and self.table.of(node) is not None and makes_parts(node, self.table)

    def gives_codes(self, step: Step) -> bool:
        users = list(self.nodes[step.out].users)
        return len(users) == 1 and users[0].target is quantize

    def is_number(self, argument: Any) -> bool:
        node = self.node(argument)
        return node is not None and value_of(node).shape is None

    def weight_fault(self, argument: Any, channels: int = 0) -> str | None:
        node = self.node(argument)
        if node is None or node.target is not dequantize_weight:
            return "its weight is computed at run time"
        codes, zero_points = (attribute(self.gm, str(part.target)) for part in (node.args[0], node.args[2]))  # type: ignore[union-attr]
        if codes.dtype is not torch.int8 or bool(torch.count_nonzero(zero_points)):
            return "its weight has zero points"
        if math.prod(codes.shape[2:]) > MAX_SPANS:
            return f"its window has more than {MAX_SPANS} elements"
        if not sums_fit(codes.transpose(0, channels).contiguous().numpy()):
            return "sums of its products may leave 32 bits"
        return None if node.args[3] in (None, channels) else "its weight has scales along another axis than its results"


def is_float(node: fx.Node) -> bool:
    return value_of(node).shape is not None and value_of(node).dtype is torch.float32


def makes_parts(node: fx.Node, table: Table) -> bool:
    row = table.of(node)
    return row is not None and row.name in TUPLES and value_of(node).shape is None


@dataclass
class Partition:
    """`depth`: of each unit that is native. `reasons`: why an int8 op is none, or one of floats beside native ones."""

    gm: fx.GraphModule
    table: Table
    depth: dict[fx.Node, int] = field(default_factory=dict)
    reasons: dict[fx.Node, str] = field(default_factory=dict)

    @staticmethod
    def of(gm: fx.GraphModule, table: Table) -> Partition:
        made = Partition(gm, table)
        units = [n for n in gm.graph.nodes if n.op.startswith("call") and n.target not in CONVERSIONS]
        facts = GraphFacts(gm, table)
        native = {node for node in units if not is_number(node) and made._is_native(node, facts)}
        while True:
            native = made._whole(units, native)
            made._descend(units, native | _numbers(units, native))
            if not (lost := native & made._without_int8()):
                break
            native -= lost
        made.reasons = {node: why for node, why in made.reasons.items() if quant_of(node).int8 or made._is_beside(node)}
        return made

    def _whole(self, units: list[fx.Node], native: set[fx.Node]) -> set[fx.Node]:
        """Without those whose parts are made or taken in torch."""
        while lost := [node for node in units if node in native and (why := _broken(node, native)) and self.reasons.setdefault(node, why)]:
            native = native - set(lost)
        return native

    def _without_int8(self) -> set[fx.Node]:
        """The units of regions that compute with floats alone: torch does that as well, without the copies."""
        useful = {depth for node, depth in self.depth.items() if quant_of(node).int8}
        return {node for node, depth in self.depth.items() if depth not in useful}

    def _is_beside(self, node: fx.Node) -> bool:
        """Whether a native op gives it a value, or takes its own."""
        readers = [user for made in (node, *node.users) for user in made.users]
        return any(unit_of(other) in self.depth for other in (*node.all_input_nodes, *readers, *(d for r in readers for d in r.users)))

    def _is_native(self, node: fx.Node, facts: GraphFacts) -> bool:
        int8 = quant_of(node).int8
        if not int8 and not (is_float(node) or makes_parts(node, self.table)):
            return False
        reason = self._refusal(node, facts)
        if reason is not None:
            self.reasons[node] = reason
        return reason is None

    def _refusal(self, node: fx.Node, facts: GraphFacts) -> str | None:
        row = self.table.of(node)
        if row is not None and OPS.rows.get(row.name) is not row:
            return "its op is no row of the compiler's own table"
        if row is None and bound(node) is None:
            return "it is a module of the user's" if node.op == "call_module" else f"{format_target(node.target)} has no C form yet"
        try:
            step = facts.step(node)
        except NotNative as error:
            return str(error)
        found = choose(step, facts)
        setting = _tensor_setting(node, row.name) if row is not None else None  # the forms of calls without a row look at all arguments
        return setting or self._foreign(node) or _result_fault(node) or (found if isinstance(found, str) else None)

    def _foreign(self, node: fx.Node) -> str | None:
        """Why a number that the op takes is unknown before anything runs: torch computes it, or the caller gives it."""
        numbers = (s for s in node.all_input_nodes if value_of(s).shape is None and s.op != "get_attr" and self.table.of(s) is None)
        unknown = next((s for s in numbers if not is_known(s)), None)
        return f"it takes the number %{unknown.name}, which no size gives" if unknown is not None else None

    def _descend(self, units: list[fx.Node], native: set[fx.Node]) -> None:
        """Depths; torch's nodes are even, native ones odd. Where order counts, torch's nodes keep theirs, and no region reaches across an
        assignment: what is computed before it reads the old values, what stands behind it the new ones."""
        depths: dict[fx.Node, int] = {}
        self.depth.clear()
        ordered, last = any(map(_has_effect, units)), 0
        deepest, least = 0, 1  # of the native nodes so far, and of those to come
        for node in units:
            is_native = node in native
            sources = [unit_of(source) for source in node.all_input_nodes]
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


TAKE_PLACES = ("index_select", "gather", "getitem", "repeat_interleave")  # whose constant tensors say which elements they pick


def _tensor_setting(node: fx.Node, op: str) -> str | None:
    """Why a setting of an op is none that a plan can know: a mask, or a tensor of places, that is computed at run time."""
    found: list[fx.Node] = []
    fx.node.map_arg(node.kwargs, found.append)
    if op in TAKE_PLACES:
        found = [n for n in found if n.op != "get_attr"]
    tensor = next((n for n in found if value_of(n).shape is not None or value_of(n).dtype is not None), None)
    return f"one of its settings is the tensor %{tensor.name}" if tensor is not None else None


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
    if value_of(node).shape is None:
        outside = next((u for u in node.users if u not in native and not is_number(u)), None)
        return f"{outside.name} takes its parts, in torch" if outside is not None else None
    source = node.args[0] if node.args else None
    parts = isinstance(source, fx.Node) and node.target in (getitem, operator.getitem) and value_of(source).shape is None
    return "the parts are made in torch" if parts and source not in native else None


def _numbers(units: list[fx.Node], native: set[fx.Node]) -> set[fx.Node]:
    """Sizes of native values and what is computed from them, and the numbers that native ops take."""
    found: set[fx.Node] = set()

    def wanted(user: fx.Node) -> bool:
        return user in native or user in found

    for node in units:
        if is_number(node) and _sizes_only(node) and any(unit_of(s) in native or s in found for s in node.all_input_nodes):
            found.add(node)
    for node in reversed(units):
        if is_number(node) and _sizes_only(node) and any(map(wanted, node.users)):
            found.add(node)
    return found


def _sizes_only(node: fx.Node) -> bool:
    """Whether its arguments are numbers, or float tensors whose sizes it asks."""
    return is_known(node, of_parts=True) and all(
        value_of(s).shape is None or unit_of(s) is not s or value_of(s).dtype is torch.float32 for s in node.all_input_nodes
    )
