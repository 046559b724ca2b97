"""A gate that optional rewrites ask before each match, so that a bisection can leave out the last ones.

    with gated(Gate(limit=12)):        # the first 12 matches of everything that is compiled in here are applied, the rest not
        prepared = prepare_fx(model, mapping, inputs)

`rewrite.run_rules` asks for every match of every rule. A pass that makes an optional change without a rule asks as well:

    if not allow(f"{self.name}: float result of %{node.name}"):
        continue

What a stage needs to be valid (canonical calls, observers, quantize and dequantize) must not ask. Numbers count from 1 in the
order of asking, which is the same in every process; so the first `limit` answers are the same whatever the limit is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Gate:
    """Lets the first `limit` matches pass (None: all). `total` counts the asks; `seen` keeps their descriptions in order.

    `report(number, description, allowed)` is told of each answer.
    """

    limit: int | None = None
    report: Callable[[int, str, bool], None] | None = None
    seen: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.seen)

    def allow(self, description: str) -> bool:
        self.seen.append(description)
        allowed = self.limit is None or self.total <= self.limit
        if self.report is not None:
            self.report(self.total, description, allowed)
        return allowed


_current: ContextVar[Gate | None] = ContextVar("qcompiler_gate", default=None)


def allow(description: str) -> bool:
    """Whether an optional rewrite may happen; without a gate it always may."""
    gate = _current.get()
    return gate is None or gate.allow(description)


@contextmanager
def gated(gate: Gate | None) -> Iterator[Gate | None]:
    """Puts a gate before the rewrites of this context (thread or task); None takes an outer one away."""
    token = _current.set(gate)
    try:
        yield gate
    finally:
        _current.reset(token)
