"""Explicit zero padding in front of a convolution, as TensorFlow-style "same" models write it.

conv(pad(x, same amount on both sides), padding=p) -> conv(x, padding=p + amount).

centre_depthwise: a depthwise convolution with stride s behind uneven padding (a before, b = (k - 1) / 2 after) equals the
centred one with stride 1, of which every s-th result is kept from (k - 1) / 2 - a on. For back ends whose depthwise kernel
takes centred padding only: the way around it was 50 times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from qcompiler.ir.types import SOURCE, VALUE, Value, source_of, value_of
from qcompiler.ops.functional import getitem
from qcompiler.ops.spec import Family, Op
from qcompiler.rewrite import Link, Match, Reject, Rule

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


def centre_depthwise(match: Match, pad: fx.Node, conv: fx.Node) -> None:
    dims = _dims(match, conv)
    sides, own = sides_of(pad, dims), _padding(conv, dims)
    weight: Any = conv.args[1]
    shape = value_of(weight).shape or ()
    half = tuple((k - 1) // 2 for k in shape[2:])
    dilated = conv.kwargs.get("dilation", 1) not in (1, (1,) * dims)
    if shape[1:2] != (1,) or conv.kwargs.get("groups", 1) == 1 or any(own) or dilated or any(k % 2 == 0 for k in shape[2:]):
        raise Reject("not-depthwise", "it is no plain depthwise convolution")
    if any(b != h or a > h for (a, b), h in zip(sides, half, strict=True)):
        raise Reject("not-centrable", "its padding does not end as a centred one would")
    stride: Any = conv.kwargs.get("stride", 1)
    strides = tuple(stride) if isinstance(stride, Sequence) else (stride,) * dims
    conv.kwargs = {**{k: v for k, v in conv.kwargs.items() if k != "stride"}, "padding": half}
    conv.args = (pad.args[0], *conv.args[1:])
    index = (slice(None), slice(None), *(slice(h - a, None, s) for (a, _), h, s in zip(sides, half, strides, strict=True)))
    with match.gm.graph.inserting_after(conv):
        kept = match.gm.graph.create_node("call_function", getitem, (conv,), {"index": index}, name=f"{conv.name}_strided")
    kept.meta[VALUE], kept.meta[SOURCE] = conv.meta[VALUE], source_of(conv)
    conv.meta[SOURCE] = replace(source_of(conv), origin=(f"{conv.name}_centred",))  # no node of the model has these values
    conv.replace_all_uses_with(kept, delete_user_cb=lambda user: user is not kept)
    before, value = value_of(pad.args[0]).shape, value_of(conv)  # type: ignore[arg-type]
    if before is not None and value.shape is not None:
        conv.meta[VALUE] = Value((*value.shape[:2], *before[2:]), value.dtype)
    match.gm.graph.erase_node(pad)


def centre_rule(wanted: Callable[..., bool]) -> Rule:
    """The rule centre_depthwise for the convolutions that `wanted(row, node)` names."""

    def rewrite(match: Match, pad: fx.Node, conv: fx.Node) -> None:
        if not wanted(match.row(conv), conv):
            raise Reject("kernel-pads", "the back end's kernel takes uneven padding as it is")
        centre_depthwise(match, pad, conv)

    return Rule("centre_depthwise", PATTERN, rewrite, candidate="pad")


PATTERN = (Link("pad", ("pad",)), Link("conv", _is_convolution))
RULES = (Rule("fold_pad", PATTERN, fold_pad, candidate="pad", check=_can_fold),)
