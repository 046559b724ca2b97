"""Transposed convolutions by phases: results whose indices leave one remainder by the stride are a plain convolution of stride 1.

Along an axis y[i] = sum over m, j with m s + j d = i + p of x[m] w[j]. For i = s q + r the taps j with j d = r + p (mod s) count; they lie
s / gcd(d, s) apart, and tap j reads x[q + (r + p - j d) / s]: a window with dilation d / gcd(d, s), its taps in reverse order.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.backends.native.plan.conv import Conv
from qcompiler.backends.native.plan.float_pointwise import clamped
from qcompiler.backends.native.plan.homes import Every
from qcompiler.backends.native.plan.layer import Layer, Lies
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.planning import NOT_INT8, Facts, Planning
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.window import Window, three
from qcompiler.backends.native.steps import Step

MOST_PHASES = 256


@dataclass(frozen=True)
class Stretch:
    """One axis of a transposed convolution: kernel, stride, padding, output_padding, dilation."""

    kernel: int
    stride: int
    padding: int
    more: int
    dilation: int

    def whole(self, size: int) -> int:
        """The length of the result."""
        found = (size - 1) * self.stride - 2 * self.padding + self.dilation * (self.kernel - 1) + self.more + 1
        if found < 1:
            raise ValueError(f"a result of {found} elements")
        return found

    def count(self, size: int, start: int) -> int:
        """How many of the results have index start, start + stride..."""
        return max(0, -(-(self.whole(size) - start) // self.stride))

    def phase(self, start: int) -> Phase:
        at = [j for j in range(self.kernel) if (j * self.dilation - start - self.padding) % self.stride == 0]
        offsets = [(start + self.padding - j * self.dilation) // self.stride for j in at] or [0]
        beyond = -(-(self.dilation * (self.kernel - 1) + self.more + 1 - 2 * self.padding - start) // self.stride) - 1
        apart = self.dilation // math.gcd(self.dilation, self.stride)
        return Phase(start, tuple(reversed(at)), apart, -offsets[-1], beyond + offsets[0])


@dataclass(frozen=True)
class Phase:
    """The window of one remainder. `taps`: of the kernel, in the order in which they meet x; none: the results are the bias alone."""

    start: int
    taps: tuple[int, ...]
    dilation: int
    pad: int
    after: int


@dataclass(frozen=True, eq=False)
class PhaseConv(Conv):
    """Every `stretch.stride`-th result of a transposed convolution, from `starts` on."""

    stretches: tuple[Stretch, ...] = ()
    starts: Axes = ()

    def _result(self, batch: Axes, space: Axes) -> Axes:
        counts = (one.count(n, start) for one, n, start in zip(self.stretches, space, self.starts, strict=True))
        return (*batch, self.channels, *counts)


@dataclass(frozen=True, eq=False)
class Phases(Layer):
    """All results, which have been made in their places."""

    x: str
    parts: tuple[str, ...]
    channels: int
    stretches: tuple[Stretch, ...]

    @property
    def dims(self) -> int:
        return len(self.stretches)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.parts

    def lies(self, known: Lies) -> str | None:
        return "pixels"

    def by_sample(self, samples: Samples) -> bool:
        return samples.holds(self.reads)

    def shape(self, sizes: Sizes) -> Axes:
        shape, dims = sizes.shape(self.x), len(self.stretches)
        space = (one.whole(n) for one, n in zip(self.stretches, shape[-dims:], strict=True))
        return (*shape[: -dims - 1], self.channels, *space)

    def place(self, sizes: Sizes) -> Place:
        return sizes.place(self.out)

    def text(self) -> str:
        return f"transposed, {len(self.parts)} phases"


def phase_weight(weight: Tensor, groups: int, phases: tuple[Phase, ...]) -> Tensor:
    """(I, O / groups, *kernel) -> (O, I / groups, *taps): what the results of a phase are made with."""
    inputs, outputs = weight.shape[:2]
    kernel = weight.shape[2:]
    plain = weight.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2).reshape(groups * outputs, inputs // groups, *kernel)
    for axis, phase in enumerate(phases, 2):
        picked = plain.index_select(axis, torch.tensor(phase.taps, dtype=torch.int64))
        plain = picked if phase.taps else torch.zeros_like(plain.narrow(axis, 0, 1))
    return plain.contiguous()


def stretches_of(dims: int, kernel: Axes, step: Step) -> tuple[Stretch, ...]:
    names = (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
    stride, padding, more, dilation = (three(step.kwargs.get(name, default), dims, default)[3 - dims :] for name, default in names)
    found = tuple(itertools.starmap(Stretch, zip(kernel, stride, padding, more, dilation, strict=True)))
    if any(s.stride < 1 or s.dilation < 1 or min(s.padding, s.more) < 0 or max(s.stride, s.padding, s.more) > 2**20 for s in found):
        raise ValueError("no settings of a transposed convolution")
    return found


def refuse_transposed(dims: int, step: Step, facts: Facts) -> str | None:
    if not facts.is_codes(step.args[0]):
        return NOT_INT8
    if any(isinstance(step.kwargs.get(name), str) for name in ("padding", "stride", "dilation", "output_padding")):
        return "its settings are computed at run time"
    phases = math.prod(three(step.kwargs.get("stride", 1), dims, 1))
    return f"its stride makes {phases} phases" if phases > MOST_PHASES else facts.weight_fault(step.args[1], 1)


def plan_transposed(dims: int, step: Step, planner: Planning) -> None:
    weight, scale = planner.weight(step.args[1], 1)
    groups = int(step.kwargs.get("groups", 1))
    if groups < 1 or weight.dim() != dims + 2 or weight.shape[0] % groups:
        raise ValueError(f"no weight of {groups} groups in {dims} dimensions: {tuple(weight.shape)}")
    stretches, scale = stretches_of(dims, tuple(weight.shape[2:]), step), scale.repeat(groups)
    bias = planner.tensor(step.args[2]) if len(step.args) > 2 and step.args[2] is not None else None
    (out, codes), bounds = planner.result(step), step.kwargs.get("bounds")
    whole = out if codes is not None or bounds is None else f"{out}.unbounded"
    every = [tuple(one.phase(start) for one, start in zip(stretches, starts, strict=True)) for starts in _starts(stretches)]
    pads = tuple(max(0, *(max(phases[axis].pad, phases[axis].after) for phases in every)) for axis in range(dims))
    x = planner.pixels(step.args[0], pads)
    parts = []
    for index, phases in enumerate(every):
        made = phase_weight(weight, groups, phases)
        window = Window(
            three(tuple(made.shape[2:]), dims, 1), (1, 1, 1), three(tuple(p.dilation for p in phases), dims, 1),
            three(tuple(p.pad for p in phases), dims, 0), three(tuple(p.after for p in phases), dims, 0),
        )  # fmt: skip
        starts = tuple(p.start for p in phases)
        name = f"{whole}.phase.{index}"
        planner.homes[name] = Every(whole, starts, tuple(one.stride for one in stretches))
        planner.add(PhaseConv(name, planner.label(step), x, dims, window, groups, made, scale, bias, planner.codes[x], codes,
                              bounds, stretches=stretches, starts=starts))  # fmt: skip
        parts.append(name)
    planner.add(Phases(whole, planner.label(step), x, tuple(parts), len(scale), stretches), codes)
    if whole != out:
        planner.add(clamped(out, planner.label(step), whole, bounds))


def _starts(stretches: tuple[Stretch, ...]) -> list[Axes]:
    return list(itertools.product(*(range(one.stride) for one in stretches)))
