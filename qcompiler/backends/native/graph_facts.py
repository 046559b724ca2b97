"""What the QUANTIZED graph says of its nodes to whoever decides whether they have a C form."""

from __future__ import annotations

import math
import operator

import torch
from torch import fx

from qcompiler.backends.native.float_ops import FIRST, PAIRED, SORTED, bound
from qcompiler.backends.native.known import Known
from qcompiler.backends.native.packing import MAX_SPANS, sums_fit
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.planning import WHOLE
from qcompiler.backends.native.read import Call, Reader
from qcompiler.backends.native.steps import Step, is_tensor, is_value
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import Mode, quant_of, value_of
from qcompiler.ops.functional import getitem
from qcompiler.ops.reference import dequantize, dequantize_weight, dynamic_quantize_dequantize, quantize
from qcompiler.ops.spec import Family, Output
from qcompiler.ops.table import Table


class GraphFacts:
    """The Facts of a graph's nodes, by name. `tensors`: the nodes behind the tensors of the step in question."""

    def __init__(self, gm: fx.GraphModule, table: Table, known: Known) -> None:
        self.gm, self.table, self.known = gm, table, known
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.tensors: list[fx.Node] = []

    def step(self, node: fx.Node) -> Step:
        """Raises NotNative."""
        reader = Reader(self.table, self.known.calls)
        step = reader.step(node)
        self.tensors = reader.tensors
        return step

    def node(self, argument: object) -> fx.Node | None:
        if is_tensor(argument):
            return self.tensors[int(argument[1:])]
        return self.nodes.get(argument[1:]) if is_value(argument) else None

    def shape(self, argument: object) -> Axes:
        node = self.node(argument)
        return tuple(value_of(node).shape or ()) if node is not None else ()

    def rank(self, argument: object) -> int:
        return len(self.shape(argument))

    def is_codes(self, argument: object) -> bool:
        node = self.node(argument)
        return node is not None and node.target is dequantize

    def is_floats(self, argument: object) -> bool:
        node = self.node(argument)
        return node is not None and not self.is_codes(argument) and (is_float(node) or node in self.known)

    def is_dynamic(self, argument: object) -> bool:
        node = self.node(argument)
        known = node is not None and node.target is dynamic_quantize_dequantize and node.args[1:] == (0, 255)
        return known and is_float(node.args[0])  # type: ignore[union-attr, arg-type]

    def is_mask(self, argument: object) -> bool:
        node = self.node(argument)
        return node is not None and is_mask(node)

    def is_whole(self, argument: object) -> bool:
        """Whether it is a tensor of whole numbers that torch made."""
        node = self.node(argument)
        return node is not None and value_of(node).shape is not None and value_of(node).dtype in WHOLE and node not in self.known

    def is_places(self, argument: object) -> bool:
        node = self.node(argument)
        return node is not None and places_call(node, self.table) is not None

    def row_length(self, argument: object) -> int | None:
        node = self.node(argument)
        call = places_call(node, self.table) if node is not None else None
        if call is None:
            return None
        shape, dim = value_of(call[1][0]).shape or (), call[2].get("dim", None if call[0] in FIRST else -1)
        return math.prod(shape) if dim is None else shape[dim]

    def is_known(self, argument: object) -> bool:
        return self.node(argument) in self.known

    def table_fault(self, argument: object, most: int) -> str | None:
        node = self.node(argument)
        if node is None or (node.op != "get_attr" and node.target is not dequantize_weight):
            return "its table is computed at run time"
        codes = node if node.op == "get_attr" else node.args[0]
        if not isinstance(codes, fx.Node) or codes.op != "get_attr":
            return "its codes are unpacked at run time"
        value = attribute(self.gm, str(codes.target))
        plain = value.dtype in (torch.float32, torch.uint8, torch.int8) and value.dim() == 2 and 0 < len(value) <= most
        return None if plain and (node is codes or node.args[3] in (None, 0)) else "its table has another form"

    def is_parts(self, argument: object) -> bool:
        node = self.node(argument)
        return node is not None and makes_parts(node, self.table)

    def gives_codes(self, step: Step) -> bool:
        users = list(self.nodes[step.out].users)
        return len(users) == 1 and users[0].target is quantize

    def is_number(self, argument: object) -> bool:
        node = self.node(argument)
        return node is not None and value_of(node).shape is None

    def is_int8_weight(self, argument: object) -> bool:
        node = self.node(argument)
        return node is not None and node.target is dequantize_weight

    def weight_fault(self, argument: object, channels: int = 0) -> str | None:
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


def is_mask(node: fx.Node) -> bool:
    return value_of(node).shape is not None and value_of(node).dtype is torch.bool


def is_float(node: fx.Node) -> bool:
    return value_of(node).shape is not None and value_of(node).dtype is torch.float32


def makes_parts(node: fx.Node, table: Table) -> bool:
    """Whether it gives several values, or is a part of such a value that is several itself."""
    row, source, call = table.of(node), node.args[0] if node.args else None, bound(node)
    if row is None and call is not None and call[0] in PAIRED:
        return True
    if value_of(node).shape is not None or not (row is not None or node.target is operator.getitem):
        return False
    if row is not None and (row.family is Family.RECURRENT or (row.family is Family.COPY and row.output is Output.SAME)):
        return True
    return node.target in (getitem, operator.getitem) and isinstance(source, fx.Node) and makes_parts(source, table)


# What moves places that a region found, and leaves them places in the same rows.
MOVES = ("reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "narrow", "select", "getitem", "expand",
         "contiguous", "repeat", "repeat_interleave", "flip", "roll")  # fmt: skip


def places_call(node: fx.Node, table: Table) -> Call | None:
    """The call whose result, or a part of it, are these places in rows, moved or not; None for anything else."""
    if value_of(node).shape is None or value_of(node).dtype is not torch.int64:
        return None
    row, moved = table.of(node), node.args[0] if node.args else None
    if row is not None and row.name in MOVES and isinstance(moved, fx.Node) and value_of(moved).shape is not None:
        return places_call(moved, table)
    source = node.args[0] if node.target in (getitem, operator.getitem) else node
    if source is not node and _part(node) == 0:
        return None  # the elements, which are whole numbers themselves
    call = bound(source) if isinstance(source, fx.Node) else None
    return call if call is not None and call[0] in (*FIRST, *SORTED) else None


def _part(node: fx.Node) -> object:
    """Which part of several values a node takes."""
    return node.kwargs.get("index", node.args[1] if len(node.args) > 1 else None)


def is_useful(node: fx.Node) -> bool:
    """Whether it computes with integers."""
    return quant_of(node).int8 or quant_of(node).mode is Mode.DYNAMIC
