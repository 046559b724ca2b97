"""What the parts of a tracer ask of the whole that they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.fx.node import Target

from qcompiler.ir.types import Source
from qcompiler.trace.attributes import Attributes
from qcompiler.trace.fixed_sizes import FixedSizes
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.memory import Memory
from qcompiler.trace.proxy import Args, Following, Kwargs, Proxy
from qcompiler.trace.questions import Question
from qcompiler.trace.sharing import Fact

Mark = tuple[fx.Node, int, int, int]  # the last node, and how long the undo list, the remarks and the questions are


@dataclass(frozen=True, eq=False)
class StandIns:
    """The names that get stand-ins in the globals of code of the user's."""

    scope: dict[str, Any]
    names: tuple[str, ...]


class Recording(Following, Protocol):
    """The graph under construction, and what all parts have to know of the trace.

    `scopes`: path and type name of the modules that are being followed. `paths`: of the model's modules, by identity. `paused`: above 0
    while examples run, when nothing is recorded. `from_data`: numbers that depend on data, tensors whose sizes do. `numbers`: numbers
    given as arguments, and those computed from them, with the argument's name. `undo`: variables as they were before a change.
    `promoted`: plain tensors that were changed by traced values. `found_state` hears of a plain tensor that is changed in place.
    `shared`, `asked`: what was taken from the example about memory, and about layouts in it. `of_strides`: products of sizes that were
    given as strides.
    `stand_ins`: where builtins of the user's code get stand-ins. `leaves`: paths of the modules that run the user's code.
    """

    model: nn.Module
    graph: fx.Graph
    remarks: list[TraceRemark]
    scopes: list[tuple[str, str]]
    paths: Mapping[int, str]
    paused: int
    fixed_sizes: FixedSizes
    from_data: set[fx.Node]
    numbers: dict[fx.Node, str]
    undo: list[tuple[Proxy, fx.Node, Any, str | None, Any]]
    promoted: dict[int, tuple[torch.Tensor, Proxy]]
    found_state: Callable[[torch.Tensor], object]
    stand_ins: list[StandIns]
    leaves: list[str]
    attributes: Attributes
    memory: Memory
    shared: list[Fact]
    asked: list[Question]
    of_strides: set[fx.Node]

    def at_event(self, depth: int | None = None) -> None:
        """What is due before anything else is recorded; `depth`: a module ends."""

    def add_node(self, op: str, target: Target, args: Args, kwargs: Kwargs, example: Any) -> fx.Node:
        """Append a node for a call whose result on the examples is known."""

    def bind(self, node: fx.Node, example: object) -> Proxy:
        """A new variable that holds a node's value."""

    def seen(self, node: fx.Node, example: Any) -> Any:
        """The example of a value that is made."""

    def attribute_node(self, tensor: torch.Tensor) -> fx.Node:
        """The node that stands for a plain tensor."""

    def source(self) -> Source:
        """The user's line at which the trace is."""

    def hit_list(self, proxy: Proxy) -> Iterable[object] | None:
        """What can be looped over in place of the list of a tensor's values; None where it lists no places of a mask."""

    def explain_failure(self, text: str) -> None:
        """Raise what says more than that a call fails on the examples."""

    def mark(self) -> Mark:
        """A point to which `rollback` can return."""

    def rollback(self, mark: Mark) -> None:
        """Forget all that was recorded since a mark."""
