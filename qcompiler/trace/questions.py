"""What a forward asks of a tensor's layout in memory.

The user's code gets the example's answer, strides as products of sizes. Nobody asks the compiled program: int8 values lie otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.errors import TraceError
from qcompiler.ir.types import Source
from qcompiler.trace.layouts import order_of, strides_in
from qcompiler.trace.relied import line, where


def answer(what: str, settings: tuple[tuple[str, object], ...], value: torch.Tensor) -> object:
    """The answer to a question about a tensor. Of its strides it is asked whether they follow from its sizes, in an order."""
    if what == "order":
        return value.stride() == tuple(strides_in([dim for _, dim in settings], value.shape))  # type: ignore[misc]
    return getattr(value, what)(**dict(settings))


@dataclass(frozen=True)
class Question:
    """One question about the value of a node: a method of tensors with its settings, and the answer that was given. `always`: nobody sees
    what is done with it."""

    node: fx.Node
    what: str
    settings: tuple[tuple[str, object], ...]
    answer: object
    source: Source
    always: bool = False

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return (self.node,)

    def differs(self, values: Mapping[fx.Node, object]) -> bool:
        value = values[self.node]
        return not isinstance(value, torch.Tensor) or answer(self.what, self.settings, value) != self.answer

    def found(self, values: Mapping[fx.Node, object]) -> Hashable:
        value = values[self.node]
        if not isinstance(value, torch.Tensor):
            return None
        if self.what != "order":
            return answer(self.what, self.settings, value)  # type: ignore[return-value]
        order, ones = order_of(value), tuple(n == 1 for n in value.shape)
        return tuple(order), ones, strides_in(order, value.shape) == list(value.stride())

    def why(self) -> str:
        text = f"{line(self.source)} asks for a tensor's layout in memory, which is another one here than in the example"
        return f"{text} (compile with an example of this form, or let the model not ask)"

    def unknown(self) -> TraceError:
        text = f"a question for a tensor's layout in memory, whose answer at other calls nobody knows, by {line(self.source)}"
        return TraceError(text, where=where(self.source), hint="write .contiguous() there in place of the question")
