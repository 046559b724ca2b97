"""Shape ops that are a view and then a reshape (pixel_shuffle, channel_shuffle, unfold), stack, and one of several values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from qcompiler.backends.native.plan.bundle import Bundle
from qcompiler.backends.native.plan.pick import Pick, lies_on, on_codes, on_result
from qcompiler.backends.native.plan.places import Many
from qcompiler.backends.native.plan.planning import Facts, Planning
from qcompiler.backends.native.plan.shape import Reshape, View, plan_cat
from qcompiler.backends.native.steps import Step


def _shuffle_pixels(x: Tensor, upscale_factor: int) -> Tensor:
    """(..., C r r, H, W) -> (..., C, H, r, W, r)"""
    split: Tensor = x.unflatten(-3, (x.shape[-3] // upscale_factor**2, upscale_factor, upscale_factor))
    return split.movedim((-4, -3), (-3, -1))


def _unshuffle_pixels(x: Tensor, downscale_factor: int) -> Tensor:
    """(..., C, H r, W r) -> (..., C, r, r, H, W)"""
    height, width = (n // downscale_factor for n in x.shape[-2:])
    split: Tensor = x.unflatten(-1, (width, downscale_factor)).unflatten(-3, (height, downscale_factor))
    return split.movedim((-3, -1), (-4, -3))


def _shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """(N, C, ...) -> (N, C / groups, groups, ...)"""
    split: Tensor = x.unflatten(1, (groups, x.shape[1] // groups))
    return split.transpose(1, 2)


def _windows(x: Tensor, kernel_size: Many, dilation: Many = 1, stride: Many = 1) -> Tensor:
    """(..., C, H, W) -> (..., C, kh, kw, h, w): a view of overlapping windows."""
    for dim, kernel, step, apart in zip((-2, -1), two(kernel_size), two(stride), two(dilation), strict=True):
        x = x.unfold(dim if dim == -2 else -2, apart * (kernel - 1) + 1, step)[..., ::apart]
    return x.movedim((-2, -1), (-4, -3))


def two(value: Many) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


# For each op the view, and from which dimension on the view's dimensions are joined, in runs of these lengths.
SPLITS: dict[str, tuple[Callable[..., Tensor], int, tuple[int, ...]]] = {
    "pixel_shuffle": (_shuffle_pixels, -5, (1, 2, 2)),
    "pixel_unshuffle": (_unshuffle_pixels, -5, (3, 1, 1)),
    "channel_shuffle": (_shuffle_channels, 1, (2,)),
    "unfold": (_windows, -5, (3, 2)),
}


def joined(x: Tensor, first: int, runs: tuple[int, ...]) -> Tensor:
    """Neighbouring dimensions from `first` on as one, in runs of these lengths; the others stay."""
    at = first % x.dim()
    shape = list(x.shape[:at])
    for run in runs:
        shape.append(int(torch.Size(x.shape[at : at + run]).numel()))
        at += run
    return x.reshape(*shape, *x.shape[at:])


def plan_rearranged(step: Step, planner: Planning) -> None:
    (out, x, codes), kwargs = on_result(step, planner), dict(step.kwargs)
    if step.op == "unfold" and any(pad := two(kwargs.pop("padding", 0))):
        sides = {"pad": (pad[1], pad[1], pad[0], pad[0])}
        zero = 0 if codes is None else codes.zero
        x = planner.add(Pick(f"{out}.padded", planner.label(step), x, "pad", (), sides, zero, codes is None), codes)
    split, first, runs = SPLITS[step.op]
    x = planner.add(View(f"{out}.split", planner.label(step), x, step.op, (), kwargs, split), codes)
    join = partial(joined, first=first, runs=runs)
    planner.add(Reshape(out, planner.label(step), x, step.op, (), {}, join), codes)


def plan_stack(step: Step, planner: Planning) -> None:
    """Each part gets the new dimension; then they are joined along it."""
    dim = step.kwargs.get("dim", 0)
    parts = []
    for index, argument in enumerate(step.args[0]):
        x = planner.operand(argument)
        out = f"{step.out}.part.{index}"
        parts.append("%" + planner.add(View(out, planner.label(step), x, "unsqueeze", (dim,), {}), planner.codes.get(x)))
    plan_cat(step.with_arguments((parts, *step.args[1:])), planner)


def refuse_part(step: Step, facts: Facts) -> str | None:
    return None if facts.is_parts(step.args[0]) else "its input is no list of values"


def plan_part(step: Step, planner: Planning) -> None:
    """One of several values: they have no codes together, so it is brought on those of the result by itself."""
    x = planner.operand(step.args[0])
    bundle, (out, codes) = planner.made.get(x), planner.result(step)
    part = bundle.part(step.kwargs.get("index")) if isinstance(bundle, Bundle) else None
    if part is not None and codes is None:
        planner.alias[out] = part
        return
    given = planner.codes.get(x)
    whole = out if lies_on(given, codes) else f"{out}.part"
    made = planner.add(View(whole, planner.label(step), x, step.op, step.args[1:], dict(step.kwargs)), given)
    if codes is not None and made != out:
        on_codes(out, step, planner, made, codes)
