"""The nodes of a graph that read and write state, and what holds it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx
from torch.fx.node import has_side_effect

from qcompiler.ops import state

READS: tuple[Callable[..., object], ...] = (state.read_state, state.read_state_or, state.read_int, state.read_float, state.read_bool)
WRITES: tuple[Callable[..., object], ...] = (state.write_state, state.write_int, state.write_float, state.write_bool)
NUMBERS: dict[type, tuple[Callable[..., object], Callable[..., object], torch.dtype]] = {
    bool: (state.read_bool, state.write_bool, torch.bool),
    int: (state.read_int, state.write_int, torch.int64),
    float: (state.read_float, state.write_float, torch.float64),
}
for _function in WRITES:
    has_side_effect(_function)


def is_read(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in READS


def is_write(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in WRITES


def held_names(gm: fx.GraphModule) -> tuple[str, ...]:
    """Dotted names of the buffers that hold the states of a graph, in the order in which they are written."""
    found = [node.args[0] for node in gm.graph.nodes if is_write(node)]
    return tuple(dict.fromkeys(str(held.target) for held in found if isinstance(held, fx.Node)))


def set_held(held: torch.Tensor, value: torch.Tensor) -> None:
    """Point the tensor that holds a state at a copy of another one."""
    with torch.no_grad():
        held.set_(value.detach().clone())  # type: ignore[call-overload]


def unset(example: torch.Tensor) -> torch.Tensor:
    """The tensor of a state that has no value yet."""
    return torch.zeros(0, dtype=example.dtype)
