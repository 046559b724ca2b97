"""Sums, products, tables, pools, copies and the ends of a network, on every instruction set that this machine has: equal bits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.backends.native import isa
from qcompiler.backends.native.build.compiler import Unit, find, link
from tests import native_oracle as reference
from tests.native_abi import FAMILIES, Guarded, Kernels, Library, QKernels, QTensor, QWindow, aligned, known, random_codes, sum_of
from tests.native_oracle import Ends
from tests.native_without_silicon import really

STAND_IN = """#include "qc.h"
#define QC_STAND_IN(ISA) const qc_kernels qc_kernels_##ISA = {.isa = #ISA};
"""


def dispatched(folder: Path, names: Sequence[str], *flags: str) -> ctypes.CDLL:
    """A library that chooses among kernels that are nothing but names."""
    (folder / "kernels.c").write_text(STAND_IN + "\n".join(f"QC_STAND_IN({name})" for name in names))
    units = [Unit("kernels", folder / "kernels.c", isa.COMMON_FLAGS, (isa.KERNELS,))]
    units += [Unit(name, isa.KERNELS / f"{name}.c", (*isa.COMMON_FLAGS, *flags)) for name in ("dispatch", "machine")]
    link(find(), units, folder, folder / "library.so")
    made = ctypes.CDLL(str(folder / "library.so"))
    for function in (made.qc_select, made.qc_exactly):
        function.restype = ctypes.POINTER(QKernels)
    return made


def named(table: Any) -> str | None:
    return table.contents.isa.decode() if table else None


def test_a_library_of_all_instruction_sets_takes_the_best_below_the_cap(tmp_path: Path) -> None:
    names = isa.isas(isa.architecture())
    library = dispatched(tmp_path, names)
    assert named(library.qc_select(b"")) == named(library.qc_select(None)) == really()[-1]
    for index, cap in enumerate(names):
        best = [name for name in names[: index + 1] if name in really()][-1]
        assert named(library.qc_select(cap.encode())) == best
        assert named(library.qc_exactly(cap.encode())) == (cap if cap in really() else None)
    assert named(library.qc_select(b"sse9")) is None is named(library.qc_exactly(b"sse9"))


def test_a_library_of_one_instruction_set_gives_that_or_nothing(tmp_path: Path) -> None:
    library = dispatched(tmp_path, ["scalar"], "-DQC_ONLY=scalar")
    assert named(library.qc_select(b"scalar")) == named(library.qc_exactly(b"scalar")) == "scalar"
    for name in really()[1:]:
        assert named(library.qc_select(name.encode())) is None is named(library.qc_exactly(name.encode()))


def square_window(k: int, s: int, p: int) -> QWindow:
    return QWindow((1, k, k), (1, s, s), (1, 1, 1), (0, p, p))


OPERANDS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "equal": ((2, 13, 5, 7), (2, 13, 5, 7)),
    "long": ((1, 64, 14, 14), (1, 64, 14, 14)),
    "a value a channel": ((2, 19, 4, 6), (2, 19, 1, 1)),
    "a map for all channels": ((1, 33, 5, 5), (1, 1, 5, 5)),
    "one number": ((2, 8, 3, 3), (1, 1, 1, 1)),
}


def spread(value: Guarded, like: Tensor) -> QTensor:
    """The operand with the result's sizes: strides of 0 where it has length 1."""
    t = value.tensor
    shape, target = tuple(value.shape), tuple(like.shape)
    sizes = {"n": target[0], "d": 1, "h": target[2], "w": target[3], "c": shape[1]}
    strides = {name: 0 if shape[axis] == 1 != target[axis] else getattr(t, name) for name, axis in (("sn", 0), ("sh", 2), ("sw", 3))}
    return QTensor(p=t.p, **sizes, sd=0, **strides)


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("family", ["add", "mul"])
def test_sums_and_products(kernels: Kernels, family: str, name: str, gap: int) -> None:
    rng = np.random.default_rng(len(name))
    a, b = (random_codes(rng, *shape) for shape in OPERANDS[name])
    left, right, y = Guarded(a, (0, 1, 1), a.shape[1] + gap), Guarded(b), Guarded(torch.zeros_like(a), (0, 2, 1), a.shape[1] + 2 * gap)
    for ends in (Ends(0), Ends(255), Ends(100, 100, 180)):
        common = {"step": int(b.shape[1] == a.shape[1]), "threads": 3}
        operands = {"a": left.tensor, "b": spread(right, a), "y": y.tensor}
        if family == "add":
            for factors in ((0.5, 1.7, -140.25), (-2.0, 2.0, 3.0), (0.5, 3.7, -440.25), (1.0, 1.0, 900.0)):  # the last two in floats
                kernels("add", sum=sum_of(factors, ends), **operands, **common)
                expected = reference.add(a, b, factors, ends)
                torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)
        else:
            for k in (0.0071, 4e4):  # the other leaves the 32-bit integers
                kernels("mul", za=128, zb=3, k=k, zero=ends.zero, lo=ends.lo, hi=ends.hi, **operands, **common)
                expected = reference.mul(a, b, (128, 3), k, ends)
                torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)
        torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)
        assert y.untouched()


def test_a_sum_may_lie_on_its_operand(kernels: Kernels) -> None:
    rng = np.random.default_rng(1)
    a, b = random_codes(rng, 1, 67, 5, 5), random_codes(rng, 1, 67, 5, 5)
    left, right = Guarded(a), Guarded(b)
    kernels("add", a=left.tensor, b=right.tensor, y=left.tensor, sum=sum_of((0.4, 0.6, 1.0), Ends()), step=1)
    torch.testing.assert_close(left.codes(), reference.add(a, b, (0.4, 0.6, 1.0), Ends()), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 70, 5, 9), (1, 256, 4, 4), (1, 3, 2, 33)])
@pytest.mark.parametrize("gap", [0, 5])
def test_tables_and_copies(kernels: Kernels, shape: tuple[int, ...], gap: int) -> None:
    rng = np.random.default_rng(2)
    x, table = random_codes(rng, *shape), torch.from_numpy(rng.permutation(256).astype(np.uint8))
    values, y, memory = Guarded(x, (0, 1, 0)), Guarded(torch.zeros_like(x), (0, 0, 1), shape[1] + gap), aligned(table.numpy())
    kernels("map", 3, x=values.tensor, y=y.tensor, table=memory.ctypes.data)
    torch.testing.assert_close(y.codes(), table[x.long()], rtol=0, atol=0)
    kernels("map", x=values.tensor, y=y.tensor, table=None)
    torch.testing.assert_close(y.codes(), x, rtol=0, atol=0)
    assert y.untouched()


def test_tables_on_processors_without_vpermi2b(native_library: Library) -> None:
    """AVX-512 VNNI came before VBMI: there a table of 256 is 16 shuffles."""
    kernels = native_library.kernels("avx512_vnni")
    if kernels is None:
        pytest.skip("needs AVX-512 VNNI")
    flag = ctypes.c_int.in_dll(native_library.library("avx512_vnni"), "qc_has_vbmi")
    table, had = torch.from_numpy(np.random.default_rng(3).permutation(256).astype(np.uint8)), flag.value
    x, memory = torch.arange(256, dtype=torch.uint8).view(1, 64, 2, 2), aligned(table.numpy())
    values = Guarded(x)
    try:
        for flag.value in {0, had}:
            y = Guarded(torch.zeros_like(x))
            kernels("map", x=values.tensor, y=y.tensor, table=memory.ctypes.data)
            torch.testing.assert_close(y.codes(), table[x.long()], rtol=0, atol=0)
    finally:
        flag.value = had


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 70, 5, 9), (1, 3, 2, 33)])
def test_a_table_for_each_channel(kernels: Kernels, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    x, tables = random_codes(rng, *shape), rng.integers(0, 256, (shape[1], 256), dtype=np.uint8)
    values, y, memory = Guarded(x, (0, 1, 0)), Guarded(torch.zeros_like(x), (0, 0, 1), shape[1] + 2), aligned(tables)
    kernels("map", 3, x=values.tensor, y=y.tensor, table=memory.ctypes.data, each=1)
    expected = torch.from_numpy(tables)[torch.arange(shape[1])[None, :, None, None], x.long()]
    torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)
    assert y.untouched()


def element_strides(x: Tensor) -> tuple[int, ...]:
    n, c, *spatial = x.stride()
    return (n, *(0,) * (3 - len(spatial)), *spatial, c)


@pytest.mark.parametrize("shape", [(1, 3, 6, 7), (2, 3, 4, 300), (1, 1, 5, 33), (2, 17, 3, 4), (1, 4, 2, 65)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_quantize_and_dequantize(kernels: Kernels, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(3)
    x = (torch.randn(shape) * 3).contiguous(memory_format=layout)
    x[0, 0, 0, :4] = torch.tensor([1e9, -1e9, 0.125, 0.375])  # far outside, and ties
    for ends in (Ends(0), Ends(255), Ends(114, 0, 127)):
        y = Guarded(torch.zeros(shape, dtype=torch.uint8), (0, 1, 1))
        numbers = {"zero": ends.zero, "lo": ends.lo, "hi": ends.hi}
        floats = known(x.permute(0, 2, 3, 1).numpy() if layout == torch.channels_last else x.numpy())
        kernels("quantize", 2, x=floats.ctypes.data, xs=element_strides(x), y=y.tensor, inverse=12.0, **numbers)
        expected = reference.quantize(x, 12.0, ends)
        torch.testing.assert_close(y.codes(), expected.contiguous(), rtol=0, atol=0)
        assert y.untouched()
        memory = known(np.full_like(floats, 9.0))
        kernels("dequantize", 2, x=y.tensor, y=memory.ctypes.data, ys=element_strides(x), scale=1 / 12.0, zero=ends.zero)
        back = torch.from_numpy(memory)
        back = back.permute(0, 3, 1, 2) if layout == torch.channels_last else back
        torch.testing.assert_close(back, reference.dequantize(expected, 1 / 12.0, ends.zero), rtol=0, atol=0)


POOLS: dict[str, tuple[tuple[int, ...], int, int, int, bool]] = {  # x, kernel, stride, padding, ceil_mode
    "2x2": ((1, 20, 8, 10), 2, 2, 0, False),
    "3x3, padded": ((2, 65, 9, 7), 3, 2, 1, False),
    "3x3, ceil": ((1, 300, 8, 8), 3, 2, 0, True),
    "5x5, stride 1": ((1, 16, 6, 6), 5, 1, 2, False),
    "one channel": ((1, 1, 5, 5), 3, 1, 1, False),
}


@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize("name", POOLS)
def test_max_pool(kernels: Kernels, name: str, gap: int) -> None:
    shape, k, s, p, ceil = POOLS[name]
    x = random_codes(np.random.default_rng(4), *shape)
    expected = F.max_pool2d(x.float(), k, s, p, ceil_mode=ceil).to(torch.uint8)
    y = Guarded(torch.zeros_like(expected), (0, 1, 1), shape[1] + gap)
    values = Guarded(x)
    kernels("max_pool", 2, x=values.tensor, y=y.tensor, k=square_window(k, s, p), adaptive=0)
    torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)
    assert y.untouched()


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("divisor", [0, 5, 40, -7])
@pytest.mark.parametrize("name", POOLS)
def test_avg_pool(kernels: Kernels, name: str, divisor: int, include_pad: bool) -> None:
    shape, k, s, p, ceil = POOLS[name]
    zero, ratio = 31, 0.8
    x = random_codes(np.random.default_rng(5), *shape)

    def means(values: Tensor, **more: object) -> Tensor:
        return F.avg_pool2d(values, k, s, p, ceil_mode=ceil, **more)  # type: ignore[arg-type]

    ones = torch.ones(shape, dtype=torch.float64)
    inside = means(ones, divisor_override=1)
    counts = inside if not include_pad else (inside / means(ones, count_include_pad=True)).round()
    counts = torch.full_like(counts, divisor) if divisor else counts
    sums = means(x.double(), divisor_override=1).round() + (counts - inside) * zero
    expected = reference.avg_pool(sums, counts, ratio, -ratio * zero, Ends(20))
    true = means((x.double() - zero) * ratio, count_include_pad=include_pad, divisor_override=divisor or None)
    assert bool(((true.round() + 20).clamp(0, 255) - expected).abs().max() <= 1)
    y = Guarded(torch.zeros_like(expected), (0, 1, 1))
    numbers = {
        "ratio": ratio,
        "b": -ratio * zero,
        "include_pad": include_pad,
        "divisor": divisor,
        "x_zero": zero,
        "zero": 20,
        "lo": 0,
        "hi": 255,
    }
    values = Guarded(x)
    kernels("avg_pool", 2, x=values.tensor, y=y.tensor, k=square_window(k, s, p), adaptive=0, **numbers)
    torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)
    assert y.untouched()


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (7, 5), (9, 11)])
@pytest.mark.parametrize("family", ["max_pool", "avg_pool"])
def test_adaptive_pools(kernels: Kernels, family: str, size: tuple[int, int]) -> None:
    x = random_codes(np.random.default_rng(6), 2, 70, 7, 9)
    values = Guarded(x, (0, 1, 1))
    numbers: dict[str, object] = {}
    if family == "max_pool":
        expected = F.adaptive_max_pool2d(x.float(), size).to(torch.uint8)
    else:
        means = F.adaptive_avg_pool2d(x.double(), size)
        spans = [[-(-(i + 1) * n // o) - i * n // o for i in range(o)] for n, o in zip((7, 9), size)]
        counts = torch.tensor(spans[0]).reshape(-1, 1) * torch.tensor(spans[1])
        expected = reference.avg_pool((means * counts).round(), counts.expand_as(means), 1.0, -9.0, Ends(9))
        numbers = {"ratio": 1.0, "b": -9.0, "zero": 9, "lo": 0, "hi": 255}
    y = Guarded(torch.zeros_like(expected))
    kernels(family, 2, x=values.tensor, y=y.tensor, adaptive=1, **numbers)
    torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)


def volumes(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[Guarded, Guarded]:
    x = random_codes(np.random.default_rng(9), *shape)
    return Guarded(x, (0, 1, 1), shape[1] + 3), Guarded(torch.zeros((*shape[:2], *size), dtype=torch.uint8), (0, 1, 0), shape[1] + 1)


SIZES = [
    ((2, 20, 5, 7), (10, 14)),
    ((1, 200, 9, 6), (4, 4)),
    ((1, 1, 3, 3), (1, 1)),
    ((1, 33, 4, 5), (13, 5)),
    ((1, 6, 3, 4, 5), (5, 4, 9)),
]


@pytest.mark.parametrize(("shape", "size"), SIZES)
@pytest.mark.parametrize("aligned", [False, True])
def test_resize_linear(kernels: Kernels, shape: tuple[int, ...], size: tuple[int, ...], aligned: bool) -> None:
    value, y = volumes(shape, size)
    pairs = list(zip(shape[2:], size))
    scales = [((a - 1) / (b - 1) if b > 1 else 0.0) if aligned else a / b for a, b in pairs]
    axes = [reference.Axis.linear(scale, a, b, aligned) for scale, (a, b) in zip(scales, pairs)]
    given = (*(1.0,) * (3 - len(size)), *scales)
    kernels("resize", 2, x=value.tensor, y=y.tensor, scale=given, m=0.9, b=-3.5, mode=3 if aligned else 2, zero=7, lo=2, hi=240)
    expected = reference.resize_linear(value.codes(), axes, (0.9, -3.5), Ends(7, 2, 240))
    torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)
    assert y.untouched()
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    floats = F.interpolate(value.codes().float(), size, mode=mode, align_corners=aligned) * 0.9 - 3.5
    assert (torch.clamp(floats.round() + 7, 2, 240) - expected).abs().max() <= 1  # torch sums in another order


@pytest.mark.parametrize(("shape", "size"), SIZES)
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_resize_nearest(kernels: Kernels, shape: tuple[int, ...], size: tuple[int, ...], mode: str) -> None:
    value, y = volumes(shape, size)
    scale = (*(1.0,) * (3 - len(size)), *(a / b for a, b in zip(shape[2:], size)))
    kernels("resize", 2, x=value.tensor, y=y.tensor, scale=scale, mode=int(mode == "nearest-exact"))
    expected = F.interpolate(value.codes().float(), size, mode=mode).to(torch.uint8)
    torch.testing.assert_close(y.codes(), expected, rtol=0, atol=0)
    assert y.untouched()


def test_halo(kernels: Kernels) -> None:
    x = random_codes(np.random.default_rng(7), 2, 5, 3, 4, 6)
    value = Guarded(x, (1, 2, 1), around=None)
    kernels("halo", 2, t=value.tensor, before=(1, 2, 1), after=(1, 2, 1), value=77)
    expected = Guarded(x, (1, 2, 1), around=77)
    np.testing.assert_array_equal(value.memory[128:-128], expected.memory[128:-128])
    assert (value.memory[:128] == value.before[:128]).all() and (value.memory[-128:] == value.before[-128:]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)])
def test_copy(kernels: Kernels, dtype: type, order: tuple[int, ...]) -> None:
    x = known(np.random.default_rng(8).integers(0, 100, (3, 4, 5, 6)).astype(dtype))
    expected = np.ascontiguousarray(x.transpose(order))
    y = known(np.zeros_like(expected))
    lengths = (1, 1, *expected.shape)
    xs, ys = (0, 0, *x.transpose(order).strides), (0, 0, *y.strides)
    kernels("copy", 2, x=x.ctypes.data, y=y.ctypes.data, length=lengths, xs=xs, ys=ys, size=y.itemsize)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("groups, channels", [(2, 37), (2, 1), (3, 40)])
def test_channel_shuffle(kernels: Kernels, groups: int, channels: int) -> None:
    x = known(np.random.default_rng(9).integers(0, 256, (3, 4, groups, channels)).astype(np.uint8))
    y = known(np.zeros((3, 4, channels, groups), np.uint8))
    row, pixel = 4 * groups * channels, groups * channels
    lengths, xs, ys = (1, 1, 3, 4, groups, channels), (0, 0, row, pixel, channels, 1), (0, 0, row, pixel, 1, groups)
    kernels("copy", 2, x=x.ctypes.data, y=y.ctypes.data, length=lengths, xs=xs, ys=ys, size=1)
    np.testing.assert_array_equal(y, x.transpose(0, 1, 3, 2))


def test_every_family_is_known_really() -> None:
    """A family that the kernels have and these tests do not would stand unproved."""
    header = (isa.KERNELS / "qc.h").read_text()
    listed = header.split("#define QC_FAMILIES(F) ")[1].replace("\\\n", "").split("\n")[0]
    assert [part.strip("F()") for part in listed.split()] == list(FAMILIES)
