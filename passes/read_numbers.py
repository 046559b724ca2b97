"""A constant of one element beside a value is the number that it holds: x * c, x + c, as exporters to ONNX and affine blocks have them.

As a tensor it is an int8 value of its own to the kernels of sums and products, and no rule or table that asks for a number sees one. While
it is calibrated the module has the tensor, so that a state_dict may still bring another one. Training changes constants: they stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.attributes import attribute
from qcompiler.ir.names import user_path
from qcompiler.ir.types import Stage, value_of
from qcompiler.observers.watch import Watch
from qcompiler.ops.affine import NAMES
from qcompiler.ops.stays_float import constant

NAME = "read_numbers"
LISTED = 3


@dataclass(frozen=True)
class ReadNumbers:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        read = dict[str, None]()
        for node in list(gm.graph.nodes):
            row = context.table.of(node)
            if row is None or row.name not in NAMES or len(node.args) < 2:
                continue
            for place, other in ((0, 1), (1, 0)):
                source = _constant(gm, node.args[place])
                if source is None or not _stays_as_it_is(node, source, node.args[other]):
                    continue
                if not context.allows(NAME, node):
                    context.remark(NAME, "held-back", f"{source.target} could be a number, but that was held back", node)
                else:
                    context.journal.matches += 1
                    read[user_path(gm, str(source.target))] = None
                    _replace(gm, node, place, source)
        if read:
            names = [*list(read)[:LISTED], *([f"{len(read) - LISTED} more"] if len(read) > LISTED else [])]
            context.remark(NAME, "number", f"constants of one element are numbers of the program, not tensors: {', '.join(names)}")
        return bool(read)


def _constant(gm: fx.GraphModule, value: object) -> fx.Node | None:
    """The get_attr node of a constant, seen through its observer."""
    if isinstance(value, fx.Node) and value.op == "call_module" and isinstance(gm.get_submodule(str(value.target)), Watch):
        value = value.args[0]
    return value if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _stays_as_it_is(node: fx.Node, source: fx.Node, other: object) -> bool:
    """Whether the result has the same numbers and shape with a number in the constant's place; a state is no constant."""
    held = constant(source)
    if not isinstance(held, Tensor) or held.numel() != 1 or held.dtype is not torch.float32 or not isinstance(other, fx.Node):
        return False
    value = value_of(other)
    return bool(torch.isfinite(held).all()) and value.dtype is torch.float32 and value.shape == value_of(node).shape


def _replace(gm: fx.GraphModule, node: fx.Node, place: int, source: fx.Node) -> None:
    given = node.args[place]
    number = float(attribute(gm, str(source.target)).detach())
    node.args = tuple(number if at == place else arg for at, arg in enumerate(node.args))
    _drop_unread(gm, [given, source])


def _drop_unread(gm: fx.GraphModule, values: Iterable[object]) -> None:
    """Takes out an observer that nothing reads, and the constant behind it."""
    for value in dict.fromkeys(values):
        if isinstance(value, fx.Node) and not value.users:
            gm.graph.erase_node(value)
            if value.op == "call_module":
                delattr(gm.get_submodule("observers"), str(value.target).removeprefix("observers."))
