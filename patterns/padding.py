"""Explicit zero padding in front of a convolution, as TensorFlow-style "same" models write it.

conv(pad(x, same amount on both sides), padding=p) -> conv(x, padding=p + amount).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from qcompiler.compile.rewrite import Link, Match, Reject, Rule
from qcompiler.ops.spec import Family, Op

Sides = tuple[tuple[int, int], ...]


def sides_of(pad: fx.Node, dims: int) -> Sides:
    """Zeros before and after, per spatial dimension; rejects every other kind of padding."""
    flat, value = pad.kwargs.get("pad"), pad.kwargs.get("value")
    if pad.kwargs.get("mode", "constant") != "constant" or value not in (None, 0, 0.0):
        raise Reject("not-zeros", "it does not pad with zeros")
    if not isinstance(flat, Sequence) or not all(isinstance(p, int) and p >= 0 for p in flat):
        raise Reject("not-constant", "its sizes are negative or computed at run time")
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    if any(pair != (0, 0) for pair in pairs[dims:]):
        raise Reject("pads-channels", "it pads channels or the batch")
    pairs = pairs[:dims] + [(0, 0)] * (dims - len(pairs))
    return tuple(reversed(pairs))  # type: ignore[arg-type]


def _padding(conv: fx.Node, dims: int) -> tuple[int, ...]:
    padding: Any = conv.kwargs.get("padding", 0)
    if isinstance(padding, str):
        raise Reject("named-padding", "the convolution's own padding is given by name")
    return tuple(padding) if isinstance(padding, Sequence) else (padding,) * dims


def _dims(match: Match, conv: fx.Node) -> int:
    dims = match.row(conv).dims
    assert dims is not None
    return dims


def _is_convolution(row: Op) -> bool:
    return row.family is Family.CONVOLUTION


def _together(match: Match, pad: fx.Node, conv: fx.Node) -> tuple[int, ...]:
    """The convolution's padding with the pad in it; refused where no convolution pads so."""
    dims = _dims(match, conv)
    sides, own = sides_of(pad, dims), _padding(conv, dims)
    if any(a != b for a, b in sides):
        raise Reject("uneven", "the two sides differ")
    return tuple(p + a for p, (a, _) in zip(own, sides, strict=True))


def _can_fold(match: Match, pad: fx.Node, conv: fx.Node) -> None:
    _together(match, pad, conv)


def fold_pad(match: Match, pad: fx.Node, conv: fx.Node) -> None:
    conv.kwargs = {**conv.kwargs, "padding": _together(match, pad, conv)}
    conv.args = (pad.args[0], *conv.args[1:])
    match.replace(conv, conv)


PATTERN = (Link("pad", ("pad",)), Link("conv", _is_convolution))
RULES = (Rule("fold_pad", PATTERN, fold_pad, candidate="pad", check=_can_fold),)
