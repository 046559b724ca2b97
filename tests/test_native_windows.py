"""Pools and resizes of floats, and cubic resizes, on every instruction set that this machine has: the bits of the references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from qcompiler.debug import compute_sqnr
from tests import native_float_oracle as float_reference
from tests import native_oracle as reference
from tests.native_abi import Kernels, QOperand, QResult, QWindow
from tests.native_nets import converted, example, steps_apart
from tests.native_oracle import Ends
from tests.test_native_floats import Memory, floats, tensor

Array = NDArray[Any]
SUM, LARGEST = 0, 1
CODES = (0.25, 7)  # scale and zero point
NEAR = 1e-5  # of sums of up to 49 elements in another order than torch's


def codes_of(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(4).integers(0, 256, shape, dtype=np.uint8)


def real(x: Array) -> Array:
    return x if x.dtype == np.float32 else (x.astype(np.float32) - np.float32(CODES[1])) * np.float32(CODES[0])


def pixels(x: Array) -> tuple[Memory, Any]:
    """(N, C, H, W) as memory in the order N, H, W, C, and its struct."""
    held = Memory(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    return held, tensor(held.array[:, None])


def values(held: Memory) -> Array:
    return np.ascontiguousarray(held.array.transpose(0, 3, 1, 2))


def rounded(v: Array) -> Array:
    return np.clip(np.rint(v * np.float32(1 / CODES[0])) + CODES[1], 0, 255).astype(np.uint8)


def axis_windows(size: int, k: int, s: int, p: int, out: int) -> tuple[list[list[int]], list[int]]:
    """For each result its elements inside, and how many the padding counts with them."""
    inside = [[at for at in range(o * s - p, o * s - p + k) if 0 <= at < size] for o in range(out)]
    return inside, [min(k, size + p - (o * s - p)) for o in range(out)]


SHAPES = [((2, 5, 9, 7), 3, 2, 1), ((1, 300, 4, 5), 2, 2, 0), ((3, 1, 6, 6), 5, 1, 2), ((1, 17, 7, 7), 7, 7, 0)]


@pytest.mark.parametrize(("shape", "k", "s", "p"), SHAPES)
@pytest.mark.parametrize("op", [SUM, LARGEST])
@pytest.mark.parametrize("ends", [("floats", "floats"), ("codes", "floats"), ("floats", "codes")])
def test_pools_of_floats(kernels: Kernels, shape: tuple[int, ...], k: int, s: int, p: int, op: int, ends: tuple[str, str]) -> None:
    x = codes_of(shape) if ends[0] == "codes" else floats(*shape)
    out = [(n + 2 * p - k) // s + 1 for n in shape[2:]]
    (rows, high), (columns, wide) = (axis_windows(n, k, s, p, o) for n, o in zip(shape[2:], out))
    (held, source), (made, target) = pixels(x), pixels(np.zeros((*shape[:2], *out), np.uint8 if ends[1] == "codes" else np.float32))
    padded = np.outer(high, wide).astype(np.float32)
    inside = np.outer([len(w) for w in rows], [len(w) for w in columns]).astype(np.float32)
    for include_pad, divisor in ((1, 0), (0, 0), (0, 3), (1, -5)):
        counts = None if op == LARGEST else np.full_like(padded, divisor) if divisor else padded if include_pad else inside
        window = QWindow((1, k, k), (1, s, s), (1, 1, 1), (0, p, p))
        kernels("float_pool", 3, x=QOperand(source, x.itemsize, *CODES, int(x.dtype == np.uint8)),
                y=QResult(target, 1 / CODES[0], CODES[1], 0, 255, int(ends[1] == "codes")), k=window, op=op,
                include_pad=include_pad, divisor=divisor)  # fmt: skip
        expected = float_reference.pooled(real(x), (rows, columns), op == LARGEST, counts)
        np.testing.assert_array_equal(values(made), rounded(expected) if ends[1] == "codes" else expected)
        assert made.untouched() and held.untouched()
        given = torch.from_numpy(real(x))
        torchs = F.max_pool2d(given, k, s, p) if op == LARGEST and p <= k // 2 else F.avg_pool2d(
            given, k, s, p, count_include_pad=bool(include_pad), divisor_override=divisor or None)  # fmt: skip
        np.testing.assert_allclose(expected, torchs.numpy(), rtol=NEAR, atol=NEAR)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (9, 11)])
@pytest.mark.parametrize("op", [SUM, LARGEST])
def test_adaptive_pools_of_floats(kernels: Kernels, size: tuple[int, int], op: int) -> None:
    x = floats(2, 70, 7, 9)
    (held, source), (made, target) = pixels(x), pixels(np.zeros((2, 70, *size), np.float32))
    windows = [[list(range(i * n // o, -(-(i + 1) * n // o))) for i in range(o)] for n, o in zip((7, 9), size)]
    counts = np.outer(*([len(w) for w in axis] for axis in windows)).astype(np.float32)
    kernels("float_pool", 2, x=QOperand(source, 4, 1.0, 0, 0), y=QResult(target, 1.0, 0, 0, 0, 0), op=op, adaptive=1)
    np.testing.assert_array_equal(values(made), float_reference.pooled(x, windows, op == LARGEST, None if op == LARGEST else counts))
    torchs = (F.adaptive_max_pool2d if op == LARGEST else F.adaptive_avg_pool2d)(torch.from_numpy(x), size)
    np.testing.assert_allclose(values(made), torchs.numpy(), rtol=NEAR, atol=NEAR)
    assert made.untouched() and held.untouched()


def test_the_largest_of_a_window_with_nan_is_nan(kernels: Kernels) -> None:
    x = floats(1, 3, 4, 4)
    x[0, 1, 0, 1] = np.nan
    (held, source), (made, target) = pixels(x), pixels(np.zeros((1, 3, 2, 2), np.float32))
    kernels("float_pool", x=QOperand(source, 4, 1.0, 0, 0), y=QResult(target, 1.0, 0, 0, 0, 0), op=LARGEST,
            k=QWindow((1, 2, 2), (1, 2, 2), (1, 1, 1), (0, 0, 0)))  # fmt: skip
    np.testing.assert_array_equal(values(made), F.max_pool2d(torch.from_numpy(x), 2).numpy())
    assert held.untouched()


RESIZED = [((2, 20, 5, 7), (10, 14)), ((1, 200, 9, 6), (4, 4)), ((1, 1, 3, 3), (1, 1)), ((1, 33, 4, 5), (13, 5)), ((2, 3, 1, 1), (2, 3))]


@pytest.mark.parametrize(("shape", "size"), RESIZED)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("ends", [("codes", "codes"), ("floats", "floats"), ("codes", "floats"), ("floats", "codes")])
def test_resizes(kernels: Kernels, shape: tuple[int, ...], size: tuple[int, int], aligned: bool, mode: str, ends: tuple[str, str]) -> None:
    if mode == "bilinear" and ends == ("codes", "codes"):
        pytest.skip("stands in test_native_kernels.py")
    x = codes_of(shape) if ends[0] == "codes" else floats(*shape)
    (held, source), (made, target) = pixels(x), pixels(np.zeros((*shape[:2], *size), np.uint8 if ends[1] == "codes" else np.float32))
    pairs = list(zip(shape[2:], size))
    scales = [((a - 1) / (b - 1) if b > 1 else 0.0) if aligned else a / b for a, b in pairs]
    factors, last = (0.9, -3.5), Ends(7, 2, 240) if ends[1] == "codes" else None
    number = {"bilinear": 2, "bicubic": 4}[mode] + int(aligned)
    kernels("resize", 2, x=source, y=target, scale=(1.0, *scales), m=factors[0], b=factors[1], mode=number, zero=7, lo=2, hi=240,
            x_floats=int(ends[0] == "floats"), y_floats=int(ends[1] == "floats"))  # fmt: skip
    given = torch.from_numpy(x)
    if mode == "bicubic":
        expected = reference.resize_cubic(given, size, scales, aligned, factors, last)
    else:
        axes = [reference.Axis.linear(scale, a, b, aligned) for scale, (a, b) in zip(scales, pairs)]
        expected = reference.resize_linear(given, axes, factors, last)
    np.testing.assert_array_equal(values(made), expected.numpy())
    assert made.untouched() and held.untouched()
    torchs = F.interpolate(given.float(), size, mode=mode, align_corners=aligned) * factors[0] + factors[1]
    near_torch(given, torchs, last, expected)


def near_torch(x: Tensor, v: Tensor, ends: Ends | None, made: Tensor) -> None:
    """torch adds in another order."""
    if ends is None:
        torch.testing.assert_close(made, v, rtol=1e-4, atol=1e-3 if x.dtype is torch.uint8 else 1e-5)
    else:
        assert (torch.clamp(v.round() + ends.zero, ends.lo, ends.hi) - made.float()).abs().max() <= 1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("divisor", [1, 7, 8, 30, -9])
def test_an_average_pool_that_divides_by_another_number(dims: int, divisor: int) -> None:
    """A sum that is divided by less than its window leaves its input's range, and stays float; none may lose its zero point."""
    conv, pool = (nn.Conv2d, nn.AvgPool2d) if dims == 2 else (nn.Conv3d, nn.AvgPool3d)
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 9, 1), pool(2, 2, 1, ceil_mode=True, divisor_override=divisor), conv(9, 4, 1)).eval()
    module, graph = converted(model, x := example((2, 3, *(7, 9, 6)[:dims])))
    assert max(steps_apart(module, graph, x).values()) <= 1
    with torch.no_grad():
        assert compute_sqnr(model(x), module(x)) > 28
