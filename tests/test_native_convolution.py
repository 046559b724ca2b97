"""Convolutions of every kind, on every instruction set that this machine has, against the integer reference: equal bits.

Values lie in memory with halos, gaps and random bytes around them: whatever a kernel writes outside, or believes that it must not, shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qcompiler.backends.native import packing
from qcompiler.backends.native.plan.curve import with_halves
from tests import native_oracle as reference
from tests.native_abi import Guarded, Kernels, Library, QEpilogue, QTensor, QWindow, aligned, known, random_codes, sum_of
from tests.native_oracle import Bend, Ends, Epilogue, Residual, Window


@dataclass(frozen=True)
class Case:
    """A convolution. window: kernel, stride, padding, dilation of each axis; halo: more of it than the padding needs."""

    x: tuple[int, ...]
    out: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    pad: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    x_zero: int = 128
    halo: int = 0
    x_gap: int = 0
    y_gap: int = 0
    y_halo: int = 0
    ends: Ends = field(default_factory=lambda: Ends(zero=3))
    residual: bool = False
    far: bool = False  # whether the residual's sum leaves the whole numbers
    table: bool = False
    bend: str = ""
    curve: bool = False
    knee: tuple[int, int] | None = None
    floats: bool = False
    saturated: bool = False
    threads: int = 1
    fold: bool = True
    factor: float = 1.0


def image(c: int, h: int, w: int, n: int = 1) -> tuple[int, ...]:
    return (n, c, h, w)


def case(x: tuple[int, ...], out: int, k: int, s: int = 1, p: int = 0, **more: object) -> Case:
    return Case(x, out, (k, k), (s, s), (p, p), **more)  # type: ignore[arg-type]


CONVOLUTIONS = {
    "one channel": case(image(1, 5, 4), 1, 3, 1, 1),
    "pointwise": case(image(24, 6, 5), 20, 1),
    "pointwise, long": case(image(160, 7, 7), 96, 1),
    "pointwise, 144 channels": case(image(144, 9, 8), 24, 1),
    "pointwise, input has a halo": case(image(32, 9, 7), 33, 1, halo=1),
    "pointwise, few positions": case(image(40, 3, 3), 64, 1, residual=True),
    "pointwise, stride": case(image(64, 14, 14), 64, 1, 2),
    "pointwise, stride, narrow": case(image(64, 9, 9), 48, 1, 2),
    "pointwise, slice of wider pixels": case(image(24, 6, 6), 40, 1, x_gap=24, y_gap=8, fold=False),
    "3x3": case(image(64, 14, 14), 64, 3, 1, 1),
    "3x3, rows of 7": case(image(48, 7, 7), 96, 3, 1, 1, residual=True),
    "3x3, batch": case(image(16, 10, 9, n=3), 40, 3, 1, 1, y_halo=1),
    "3x3, stride": case(image(24, 15, 17), 40, 3, 2, 1),
    "3x3, wide": case(image(8, 3, 70), 24, 3, 1, 1, x_zero=0),
    "3x3, dilated": Case(image(20, 12, 12), 24, (3, 3), (1, 1), (2, 2), (2, 2)),
    "3x3, slice": case(image(20, 8, 8), 24, 3, 1, 1, x_gap=12, fold=False),
    "first, 3x3": case(image(3, 20, 22), 32, 3, 2, 1, x_zero=114),
    "first, 7x7": case(image(3, 30, 30), 64, 7, 2, 3, x_zero=255),
    "uneven window": Case(image(12, 9, 11), 17, (1, 7), (1, 1), (0, 3)),
    "uneven strides": Case(image(12, 9, 11), 17, (5, 3), (2, 1), (2, 1)),
    "groups of 4": case(image(32, 8, 8), 32, 3, 1, 1, groups=8),
    "groups of 20": case(image(40, 6, 6), 40, 3, 1, 1, groups=2),
    "groups of 16": case(image(64, 9, 9), 64, 3, 2, 1, groups=4, residual=True),
    "groups, more outputs": case(image(8, 6, 6), 32, 3, 1, 1, groups=8),
    "saturated": case(image(64, 6, 6), 32, 3, 1, 1, saturated=True, x_zero=0),
    "bounds": case(image(16, 6, 6), 32, 1, ends=Ends(10, 10, 200)),
    "zero point at the end": case(image(16, 6, 6), 32, 1, ends=Ends(255), x_zero=255),
    "residual": case(image(32, 8, 8), 48, 3, 1, 1, residual=True, y_gap=16),
    "residual, far": case(image(32, 8, 8), 48, 1, residual=True, far=True),
    "residual, bounds, table, far": case(image(32, 5, 7), 41, 3, 1, 1, residual=True, table=True, far=True, ends=Ends(7, 9, 200)),
    "residual, bounds": case(image(40, 8, 8), 72, 1, residual=True, ends=Ends(100, 100, 250)),
    "residual, sums beyond integers": case(image(16, 6, 6), 48, 1, residual=True, factor=1e9),
    "table": case(image(32, 8, 8), 24, 1, table=True),
    "slopes": case(image(32, 8, 8), 48, 3, 1, 1, bend="slopes", ends=Ends(40)),
    "slopes, groups": case(image(64, 9, 9), 64, 3, 2, 1, groups=4, bend="top", ends=Ends(128, 9, 240)),
    "slopes, linear, residual": case(image(48, 1, 37), 70, 1, bend="slopes", residual=True),
    "slopes, tiles": case(image(20, 9, 11, n=2), 33, 3, 1, 1, bend="top", threads=3, ends=Ends(90)),
    "curve": case(image(24, 9, 9), 72, 1, curve=True),
    "curve, groups": case(image(64, 9, 9), 64, 3, 2, 1, groups=4, curve=True, ends=Ends(0, 9, 240)),
    "curve, sequence": Case((2, 12, 31), 20, (5,), (1,), (2,), (1,), curve=True),
    "curve, linear": case(image(200, 1, 3), 70, 1, curve=True),
    "curve, tiles": case(image(20, 9, 11, n=2), 33, 3, 1, 1, curve=True, threads=3),
    "curve, tiles of 64 channels": case(image(64, 24, 20), 64, 3, 1, 1, curve=True),
    "curve, saturated": case(image(64, 6, 6), 32, 3, 1, 1, saturated=True, x_zero=0, curve=True),
    "curve, sums beyond integers": case(image(16, 6, 6), 48, 1, curve=True, factor=1e9),
    "knee": case(image(24, 9, 9), 72, 1, knee=(2804, 1402), ends=Ends(16)),
    "knee, groups": case(image(64, 9, 9), 64, 3, 2, 1, groups=4, knee=(9635, 4818), ends=Ends(141, 9, 240)),
    "knee, sequence": Case((2, 12, 31), 20, (5,), (1,), (2,), (1,), knee=(707, 353), ends=Ends(1)),
    "knee, linear": case(image(200, 1, 3), 70, 1, knee=(32767, 32767)),
    "knee, tiles": case(image(20, 9, 11, n=2), 33, 3, 1, 1, knee=(5000, 10), threads=3),
    "knee, tiles of 64 channels": case(image(64, 24, 20), 64, 3, 1, 1, knee=(2804, 1402)),
    "knee, sums beyond integers": case(image(16, 6, 6), 48, 1, knee=(2804, 1402), factor=1e9),
    "residual and table": case(image(32, 8, 8), 24, 1, table=True, residual=True, ends=Ends(7, 5, 250)),
    "floats": case(image(30, 4, 4), 50, 1, floats=True),
    "more threads than work": case(image(16, 2, 2), 16, 1, threads=7),
    "threads": case(image(32, 15, 13, n=2), 80, 3, 1, 1, threads=4),
    "threads, stride": case(image(32, 15, 13), 80, 3, 2, 1, threads=3),
    "tiles": case(image(32, 12, 12), 48, 3, 1, 1),
    "tiles, odd sizes": case(image(20, 9, 11, n=2), 33, 3, 1, 1, residual=True, threads=3),
    "tiles, no padding": case(image(24, 13, 7), 20, 3, table=True, x_zero=0),
    "tiles, wide padding": case(image(16, 10, 9), 16, 3, 1, 2, halo=1, x_zero=255),
    "tiles, floats": case(image(36, 8, 10), 40, 3, 1, 1, floats=True),
    "tiles, slices": case(image(20, 8, 8), 24, 3, 1, 1, x_gap=12, y_gap=40, y_halo=1, fold=False),
    "tiles, taps apart": case(image(48, 8, 8), 32, 3, 1, 1, fold=False, ends=Ends(7, 9, 200)),
    "tiles, many channels": case(image(276, 7, 7), 40, 3, 1, 1, residual=True, table=True, threads=4),
    "tiles, many positions": case(image(16, 41, 38), 16, 3, 1, 1),
    "tiles, volume": Case((2, 16, 3, 8, 7), 18, (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1), threads=2),
    "tiles, saturated": case(image(112, 8, 8), 32, 3, 1, 1, saturated=True, x_zero=0),
    "tiles, saturated, sums too large": case(image(116, 8, 8), 32, 3, 1, 1, saturated=True, x_zero=0),
    # Where instructions take products of bytes fourfold, tiles pay for more channels only.
    "tiles of 64 channels": case(image(64, 16, 16), 64, 3, 1, 1),
    "tiles of 64 channels, odd sizes": case(image(64, 25, 26), 64, 3, 1, 1, residual=True, table=True, threads=3),
    "tiles of 112 channels, saturated": case(image(112, 24, 21), 64, 3, 1, 1, saturated=True, x_zero=0),
    "tiles of 132 channels": case(image(132, 28, 31), 32, 3, 1, 1, fold=False, ends=Ends(7, 9, 200), y_gap=16, y_halo=1),
    "tiles to 90 channels, floats": case(image(64, 24, 24), 90, 3, 1, 1, floats=True),
    "tiles to 48 channels, no padding": case(image(64, 38, 38), 43, 3, x_zero=255, residual=True, y_gap=5),
    "tiles of 64 channels, slopes": case(image(64, 24, 20), 64, 3, 1, 1, bend="top", residual=True, ends=Ends(90)),
    "tiles of 160 channels": case(image(160, 12, 12), 128, 3, 1, 1, threads=4, x_gap=12, fold=False),
    "tiles of 64 channels, volume": Case((1, 64, 3, 24, 23), 64, (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1), threads=2),
    "sequence": Case((2, 12, 31), 20, (5,), (1,), (2,), (1,)),
    "volume": Case((1, 6, 4, 5, 6), 18, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "volume, stride": Case((2, 5, 5, 6, 7), 33, (3, 2, 3), (2, 1, 2), (1, 0, 1), (1, 1, 1)),
    "linear": case(image(200, 1, 1), 70, 1),
    "linear, longer than a panel": case(image(33000, 1, 1), 20, 1),
    "pointwise, longer than a panel": case(image(6001, 2, 4), 17, 1, residual=True, threads=2),
    "3x3, longer than a panel": case(image(700, 4, 3), 17, 3, 1, 1),
    "linear, rows": case(image(48, 1, 37), 70, 1, floats=True),
    "many positions": case(image(8, 40, 41), 8, 1),
}
DEPTHWISE = {
    "3x3": case(image(32, 9, 9), 32, 3, 1, 1),
    "3x3, odd channels": case(image(37, 7, 8), 37, 3, 1, 1, x_zero=0),
    "3x3, one channel": case(image(1, 5, 5), 1, 3, 1, 1),
    "3x3, stride": case(image(96, 13, 11), 96, 3, 2, 1, x_zero=255),
    "3x3, many channels": case(image(200, 7, 7), 200, 3, 1, 1),
    "3x3, batch": case(image(24, 8, 9, n=2), 24, 3, 1, 1, y_halo=2, threads=3),
    "5x5": case(image(72, 9, 9), 72, 5, 1, 2, table=True),
    "5x5, curve": case(image(72, 9, 9), 72, 5, 1, 2, curve=True),
    "5x5, stride, curve": case(image(40, 14, 14), 40, 5, 2, 2, curve=True, ends=Ends(0, 9, 240)),
    "9x9, curve": case(image(130, 12, 12), 130, 9, 1, 4, curve=True),
    "sequence, curve": Case((2, 12, 40), 12, (31,), (1,), (15,), (1,), curve=True),
    "volume, curve": Case((1, 6, 4, 5, 6), 6, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), curve=True),
    "saturated, curve": case(image(64, 6, 6), 64, 3, 1, 1, saturated=True, x_zero=0, curve=True),
    "slopes": case(image(70, 9, 9), 70, 3, 1, 1, bend="slopes", ends=Ends(40)),
    "5x5, slopes": case(image(130, 9, 10), 130, 5, 1, 2, bend="top", ends=Ends(128, 9, 240), threads=3),
    "5x5, stride, slopes": case(image(37, 14, 14), 37, 5, 2, 2, bend="slopes", ends=Ends(90)),
    "sequence, slopes": Case((2, 12, 40), 12, (31,), (1,), (15,), (1,), bend="slopes"),
    "volume, slopes": Case((1, 6, 4, 5, 6), 6, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), bend="top", ends=Ends(30)),
    "slopes and table": case(image(33, 7, 7), 33, 3, 1, 1, bend="slopes", ends=Ends(100), table=True),
    "saturated, slopes": case(image(64, 6, 6), 64, 3, 1, 1, saturated=True, x_zero=0, bend="slopes"),
    "knee": case(image(70, 9, 9), 70, 3, 1, 1, knee=(2804, 1402), ends=Ends(16)),
    "5x5, stride, knee": case(image(40, 14, 14), 40, 5, 2, 2, knee=(9635, 4818), ends=Ends(141, 9, 240)),
    "sequence, knee": Case((2, 12, 40), 12, (31,), (1,), (15,), (1,), knee=(707, 353)),
    "saturated, knee": case(image(64, 6, 6), 64, 3, 1, 1, saturated=True, x_zero=0, knee=(2804, 1402)),
    "5x5, stride": case(image(40, 14, 14), 40, 5, 2, 2, ends=Ends(9, 9, 255)),
    "7x7": case(image(96, 9, 9), 96, 7, 1, 3),
    "9x9": case(image(16, 12, 12), 16, 9, 1, 4),
    "dilated": Case(image(20, 12, 12), 20, (3, 3), (1, 1), (2, 2), (2, 2)),
    "dilated, stride": Case(image(20, 13, 12), 20, (3, 3), (2, 2), (2, 2), (2, 2)),
    "uneven": Case(image(33, 8, 12), 33, (1, 5), (1, 2), (0, 2)),
    "column": Case(image(64, 9, 5), 64, (7, 1), (1, 1), (3, 0)),
    "sequence": Case((2, 12, 40), 12, (31,), (1,), (15,), (1,)),
    "volume": Case((1, 6, 4, 5, 6), 6, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "saturated": case(image(64, 6, 6), 64, 3, 1, 1, saturated=True, x_zero=0),
    "gaps": case(image(24, 8, 8), 24, 3, 1, 1, x_gap=8, y_gap=40),
    "wide": case(image(16, 4, 150), 16, 3, 1, 1),
    "threads": case(image(130, 9, 6), 130, 3, 1, 1, threads=5),
}
CONVOLUTIONS_AND_DEPTHWISE = [
    *(pytest.param("conv", c, id=f"conv, {name}") for name, c in CONVOLUTIONS.items()),
    *(pytest.param("depthwise", replace(c, groups=c.x[1]), id=f"depthwise, {name}") for name, c in DEPTHWISE.items()),
]


def three(values: tuple[int, ...], fill: int) -> tuple[int, int, int]:
    return ((fill,) * (3 - len(values)) + tuple(values))[:3]  # type: ignore[return-value]


def window_of(c: Case) -> QWindow:
    parts = (three(c.kernel, 1), three(c.stride, 1), three(c.dilation, 1), three(c.pad, 0))
    return QWindow(*parts)


def bend_of(c: Case, rng: np.random.Generator) -> Bend:
    gain, offset, slope = (torch.from_numpy(rng.normal(0, s, c.out).astype(np.float32)) for s in (1.0, 20.0, 0.4))
    return Bend(gain, offset, slope, 60.0 if c.bend == "top" else math.inf)


def curve_of(rng: np.random.Generator) -> Tensor:
    """Parabolas that leave 16 bits at both ends, and each extreme of their numbers."""
    base, slope, bend = rng.integers(-32768, 32768, 32), rng.integers(-20000, 20001, 32), rng.integers(-12000, 12001, 32)
    base[:4], slope[:6], bend[:4] = (-32768, 32767, 0, 64), (32767, -32767, 0, 0, 1, -1), (0, 0, 32767, -32767)
    slope[8::2] //= 20
    return torch.from_numpy(np.concatenate([base, slope, bend]).astype(np.int16))


class Problem:
    """The numbers of one case: operands, constants, and what the reference says."""

    def __init__(self, c: Case, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.case = c
        self.x = random_codes(rng, *c.x)
        self.weight = rng.integers(-128, 128, (c.out, c.x[1] // c.groups, *c.kernel), dtype=np.int8)
        if c.saturated:
            self.x.fill_(255)
            self.weight[...] = np.where(np.arange(c.out).reshape(-1, *[1] * (self.weight.ndim - 1)) % 2, 127, -128)
        size = float(np.sqrt(self.weight[0].size)) * 60.0 * 75.0
        scale = rng.uniform(0.3, 1.5, c.out)
        folded = packing.fold_epilogue(packing.RowSums.of(self.weight), 40.0 * scale / size, rng.normal(0, 30, c.out), 1.0, c.x_zero, 1.0)
        self.m, self.b, self.wide = folded.m, folded.b, folded.wide
        self.sums = reference.conv_sums(self.x, torch.from_numpy(self.weight), c.x_zero, Window(c.stride, c.pad, c.dilation, c.groups))
        self.table = torch.from_numpy(rng.permutation(256).astype(np.uint8)) if c.table else None
        self.residual = None
        if c.residual:
            factors = (0.83, 2.61, -277.5) if c.far else (0.83, 0.61, -77.5)
            self.residual = Residual(random_codes(rng, *self.sums.shape), *factors, Ends(12, 12, 255))
        self.bend = bend_of(c, rng) if c.bend else None
        self.curve = curve_of(rng) if c.curve else None
        factor = np.float32(c.factor * (256.0 if c.curve or c.knee else 1.0))
        self.m, self.b, self.wide = self.m * factor, self.b * factor, self.wide or c.factor > 1
        m, b = (torch.from_numpy(values[: c.out]) for values in (self.m, self.b))
        ends = Epilogue(m, b, c.ends, self.residual, self.table, self.bend, self.curve, c.knee)
        self.expected = reference.affine(self.sums, ends.m, ends.b) if c.floats else reference.finish(self.sums, ends)

    def epilogue(self, keep: list[object]) -> QEpilogue:
        m, b = aligned(self.m), aligned(self.b)
        e = QEpilogue(m=m.ctypes.data, b=b.ctypes.data, wide=self.wide)
        e.zero, e.lo, e.hi = self.case.ends.zero, self.case.ends.lo, self.case.ends.hi
        keep += [m, b]
        if (bend := self.bend) is not None:
            e.top = bend.top
            for name in ("gain", "slope", "offset"):
                held = aligned(packing.padded_floats(getattr(bend, name).numpy()))
                setattr(e, name, held.ctypes.data)
                keep.append(held)
        if self.curve is not None:
            held = aligned(with_halves(self.curve.numpy()))
            e.curve = held.ctypes.data
            keep.append(held)
        if self.case.knee is not None:
            e.knee, e.half = self.case.knee
        if self.table is not None:
            table = aligned(self.table.numpy())
            e.table = table.ctypes.data
            keep.append(table)
        if (r := self.residual) is not None:
            e.sum = sum_of((r.k, r.kr, r.kc), r.ends)
        return e

    def members(self, family: str, keep: list[object]) -> dict[str, object]:
        """The struct's members; what they point to goes to `keep`."""
        c = self.case
        halo = three(tuple(max(p, d * (k - 1) - p) + c.halo for k, p, d in zip(c.kernel, c.pad, c.dilation)), 0)
        x = Guarded(self.x, halo, c.x[1] + c.x_gap, around=c.x_zero)
        found = packing.RowSums.of(self.weight)
        r = QTensor()
        if self.residual is not None:
            residual = Guarded(self.residual.codes, (0, 1, 2), c.out + 3)
            keep.append(residual)
            r = residual.tensor
        if family == "conv":
            packed = packing.pack_conv(self.weight, c.groups, fold=c.fold and set(c.dilation) == {1})
            weights, sums = aligned(packed.weights), aligned(found.padded)
            more: dict[str, object] = {"groups": packed.groups, "fold": packed.fold, "floats": c.floats}
            more["small"], more["r"] = found.stay_small, r
        else:
            weights, sums, more = aligned(packing.pack_depthwise(self.weight)), aligned(found.padded), {}
        keep += [x, weights, sums]
        return {
            "x": x.tensor,
            "k": window_of(c),
            "e": self.epilogue(keep),
            "w": weights.ctypes.data,
            "wsum": sums.ctypes.data,
            **more,
        }


def check_convolution(kernels: Kernels, family: str, problem: Problem) -> None:
    c, keep = problem.case, []  # type: ignore[var-annotated]
    members = problem.members(family, keep)
    if c.floats:
        check_floats(kernels, family, problem, members)
        return
    y = Guarded(torch.zeros(problem.expected.shape, dtype=torch.uint8), (0, c.y_halo, c.y_halo), c.out + c.y_gap)
    kernels(family, c.threads, y=y.tensor, **members)
    torch.testing.assert_close(y.codes(), problem.expected, rtol=0, atol=0)
    assert y.untouched()


def check_floats(kernels: Kernels, family: str, problem: Problem, members: dict[str, object]) -> None:
    n, c, h, w = problem.expected.shape
    out = known(np.full((n, h, w, c + 1), np.float32(7.5)))
    strides = dict(zip(("sn", "sh", "sw"), out.strides))
    kernels(family, y=QTensor(p=out.ctypes.data, n=n, d=1, h=h, w=w, c=c, sd=0, **strides), **members)
    assert (out[..., c] == 7.5).all()
    np.testing.assert_array_equal(out[..., :c].transpose(0, 3, 1, 2), problem.expected.numpy())


@pytest.mark.parametrize(("family", "c"), CONVOLUTIONS_AND_DEPTHWISE)
def test_convolution(kernels: Kernels, family: str, c: Case) -> None:
    check_convolution(kernels, family, Problem(c))


@pytest.mark.slow  # a library of its own
def test_convolutions_without_memory_for_what_they_keep_meanwhile(tmp_path: Path) -> None:
    library = Library(tmp_path, ["-O1", "-DQC_ROOM(bytes)=((void)(bytes),NULL)"])
    found = [kernels for isa in ("avx2", "avx512_vnni") if (kernels := library.kernels(isa)) is not None]
    if not found:
        pytest.skip("needs AVX2")
    names = ("pointwise", "3x3, stride", "tiles, odd sizes", "tiles, floats", "tiles, many channels", "tiles of 64 channels, odd sizes")
    for kernels in found:
        for name in (*names, "tiles to 48 channels, no padding", "tiles to 90 channels, floats"):
            check_convolution(kernels, "conv", Problem(CONVOLUTIONS[name]))


def random_case(rng: np.random.Generator) -> Case:
    def pick(*choices: int) -> int:
        return int(rng.choice(choices))

    k, stride, dilation = pick(1, 1, 2, 3, 3, 5, 7), pick(1, 1, 2, 3), pick(1, 1, 1, 2)
    span = dilation * (k - 1) + 1
    height, width = span + int(rng.integers(0, 12)), span + int(rng.integers(0, 40))
    channels, out, pad = int(rng.integers(1, 150)), int(rng.integers(1, 100)), int(rng.integers(0, k))
    ends = Ends(pick(0, 128, 255, 17), pick(0, 5), pick(255, 201))
    switches = {name: bool(rng.integers(0, 2)) for name in ("residual", "table", "fold")}
    switches["curve"] = not (switches["residual"] or switches["table"])
    gaps = {name: pick(0, 0, 5) for name in ("x_gap", "y_gap", "y_halo", "halo")}
    fold = switches.pop("fold") and gaps["x_gap"] == 0
    x = image(channels, height, width, n=pick(1, 2))
    return replace(
        case(x, out, k, stride, pad),
        dilation=(dilation,) * 2,
        ends=ends,
        x_zero=pick(0, 77, 255),
        threads=pick(1, 3),
        fold=fold,
        **switches,
        **gaps,
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("family", ["conv", "depthwise"])
def test_convolution_of_random_shape(kernels: Kernels, family: str, seed: int) -> None:
    c = random_case(np.random.default_rng(seed))
    if family == "depthwise":
        c = replace(c, out=c.x[1], groups=c.x[1], residual=False)
    check_convolution(kernels, family, Problem(c, seed))


EPILOGUES: dict[str, dict[str, object]] = {
    "codes": {"ends": Ends(3)},
    "bounds": {"ends": Ends(10, 10, 200)},
    "table": {"table": True, "ends": Ends(90)},
    "residual": {"residual": True},
    "residual, far": {"residual": True, "far": True},
    "slopes": {"bend": "slopes", "ends": Ends(100)},
    "curve": {"curve": True, "ends": Ends(0, 3, 250)},
    "knee": {"knee": (2804, 1402), "ends": Ends(16)},
}


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("out", [1, 8, 16, 17, 31, 32, 33, 48, 72])
def test_every_tail_of_channels_and_of_positions(kernels: Kernels, out: int, epilogue: str) -> None:
    """Vectors hold 16 channels and tiles up to 14 positions of a row: what is left of either writes nothing beside its place."""
    for width in (1, 2, 3, 5, 7, 9, 11, 12, 13, 14, 15, 29):
        c = case(image(20, 2, width), out, 1, y_gap=3, y_halo=1, **EPILOGUES[epilogue])
        check_convolution(kernels, "conv", Problem(c, width))


@pytest.mark.parametrize("epilogue", ["codes", "bounds", "table", "slopes", "curve", "knee"])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_depthwise_windows_that_share_columns(kernels: Kernels, k: int, epilogue: str) -> None:
    for width in (1, 2, 4, 5, 7, 14, 17):
        c = case(image(130, 5, width), 130, k, 1, k // 2, groups=130, y_gap=3, y_halo=1, **EPILOGUES[epilogue])
        check_convolution(kernels, "depthwise", Problem(c, width))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 8, 16, 17, 32])
def test_depthwise_strips_whose_ends_are_not_alike(kernels: Kernels, channels: int, stride: int) -> None:
    """Without padding the first and the last column of a strip differ: a vector behind the last one must not be taken for the first."""
    for k, dilation in ((2, 1), (3, 1), (5, 1), (3, 2)):
        for results in (7, 8, 15, 16, 17, 32):
            wide = (results - 1) * stride + (k - 1) * dilation + 1
            x, strides, dilations = image(channels, (k - 1) * dilation + 1, wide), (stride, stride), (dilation, dilation)
            c = Case(x, channels, (k, k), strides, (0, 0), dilations, groups=channels)
            check_convolution(kernels, "depthwise", Problem(c, results))


def test_sums_that_leave_the_integers_are_cut(kernels: Kernels) -> None:
    problem = Problem(case(image(64, 5, 5), 32, 3, 1, 1, saturated=True, x_zero=0))
    problem.m = problem.m * np.float32(1e7)
    problem.wide = True
    problem.expected = reference.finish(problem.sums, Epilogue(torch.from_numpy(problem.m), torch.from_numpy(problem.b), problem.case.ends))
    assert set(problem.expected.unique().tolist()) == {0, 255}
    check_convolution(kernels, "conv", problem)
