"""ReLU, ReLU6 and clamps, absorbed into the range of what computes their input.

clamp(op(x), low, high) -> op(x, bounds=(low, high)); two clamps in a row meet in one.
"""

from __future__ import annotations

from torch import fx

from qcompiler.compile.rewrite import Link, Match, Reject, Rule
from qcompiler.ir.types import VALUE, value_of

Pair = tuple[float | None, float | None]


def tighten(inner: Pair, outer: Pair) -> Pair:
    """The bounds of clamp(clamp(x, inner), outer)."""
    if inner[0] is not None and outer[1] is not None and inner[0] > outer[1]:
        raise Reject("empty-range", f"the clamps {inner} and {outer} do not overlap")
    lows, highs = [b for b in (inner[0], outer[0]) if b is not None], [b for b in (inner[1], outer[1]) if b is not None]
    return (max(lows) if lows else None, min(highs) if highs else None)


def _bounds(match: Match, producer: fx.Node, clamp: fx.Node) -> Pair:
    """The bounds of both; refused where they are no constants, or leave nothing."""
    row, dtype = match.row(clamp), value_of(producer).dtype
    if dtype is not None and not dtype.is_floating_point:
        raise Reject("not-float", "it clamps integers")
    assert row.clamp is not None
    low, high = row.clamp(clamp.kwargs)
    if any(isinstance(b, fx.Node) or (b is not None and not isinstance(b, (int, float))) for b in (low, high)):
        raise Reject("tensor-bounds", "its bounds are computed at run time")
    inner = producer.kwargs.get("bounds") or (None, None)
    return tighten(inner, (None if low is None else float(low), None if high is None else float(high)))  # type: ignore[arg-type]


def _can_absorb(match: Match, producer: fx.Node, clamp: fx.Node) -> None:
    _bounds(match, producer, clamp)


def absorb(match: Match, producer: fx.Node, clamp: fx.Node) -> None:
    producer.kwargs = {**producer.kwargs, "bounds": _bounds(match, producer, clamp)}
    producer.meta[VALUE] = clamp.meta.get(VALUE, producer.meta.get(VALUE))
    match.replace(clamp, producer)


PATTERN = (Link("producer", lambda row: row.takes_bounds), Link("clamp", lambda row: row.clamp is not None))
RULES = (Rule("absorb_clamp", PATTERN, absorb, check=_can_absorb),)
