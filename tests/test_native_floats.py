"""Kernels of floats on every instruction set that this machine has: the bits of the numpy reference, and near torch's functions.

What is near is asked of torch's float64: its float32 depends on the CPU, and where it has AVX-512 its GELU is 8e-7 off.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from qcompiler.backends.native import isa
from tests import native_float_oracle as reference
from tests.native_abi import L3, SLACK, Kernels, Library, QOperand, QResult, QTensor, known

Array = NDArray[Any]
NEAR = 2e-6  # of a float kernel and the true value: a few roundings of 6e-8 each

_ENUMS = re.sub(r"\s", "", (isa.KERNELS / "qc.h").read_text())
FUNCTIONS = re.search(r"enum\{(QC_COPY,.*?)\};", _ENUMS).group(1).split(",")  # type: ignore[union-attr]


class Memory:
    """An array in memory whose surroundings are watched; floats, or codes."""

    def __init__(self, values: Array) -> None:
        self.raw = known(np.full(values.nbytes + 2 * SLACK, 0x5A, np.uint8))
        self.array: Array = self.raw[SLACK : SLACK + values.nbytes].view(values.dtype).reshape(values.shape)
        self.array[...] = values

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def untouched(self) -> bool:
        size = self.array.nbytes
        return bool((self.raw[:SLACK] == 0x5A).all() and (self.raw[SLACK + size :] == 0x5A).all())


def tensor(array: Array, address: int | None = None) -> QTensor:
    """Of an array of up to five dimensions, its last one that of a pixel's elements."""
    sizes, strides = (1,) * (5 - array.ndim) + array.shape, (0,) * (5 - array.ndim) + array.strides
    return QTensor(address or array.ctypes.data, *sizes, *strides[:4])


def operand(array: Array, scale: float = 1.0, zero: int = 0) -> QOperand:
    codes = int(array.dtype == np.uint8)
    return QOperand(tensor(array), array.strides[-1] if array.shape[-1] > 1 else array.itemsize, scale, zero, codes)


def result(array: Array, inverse: float = 1.0, zero: int = 0) -> QResult:
    return QResult(tensor(array), inverse, zero, 0, 255, int(array.dtype == np.uint8))


def floats(*shape: int, seed: int = 0, scale: float = 2.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def equal(got: Array, expected: Array) -> None:
    np.testing.assert_array_equal(got, expected)


ENDS = np.array([0.0, -0.0, 88.0, -88.0, 100.0, -104.0, 1e-30, -1e-5, 3.999, 0.62499, -0.625, 1.0, np.inf, -np.inf], np.float32)
KNOWN = {"QC_EXP": reference.exp, "QC_TANH": reference.tanh, "QC_ERF": reference.erf, "QC_SIGMOID": reference.sigmoid,
         "QC_GELU": reference.gelu}  # fmt: skip
TORCH: dict[str, tuple[Any, tuple[float, float]]] = {
    "QC_COPY": (lambda x: x, (0, 0)), "QC_CLAMP": (lambda x: x.clamp(-0.5, 1.5), (-0.5, 1.5)), "QC_EXP": (torch.exp, (0, 0)),
    "QC_LOG": (torch.log, (0, 0)), "QC_TANH": (torch.tanh, (0, 0)), "QC_ERF": (torch.erf, (0, 0)),
    "QC_SIGMOID": (torch.sigmoid, (0, 0)), "QC_SILU": (F.silu, (0, 0)), "QC_GELU": (F.gelu, (0, 0)),
    "QC_GELU_TANH": (lambda x: F.gelu(x, approximate="tanh"), (0, 0)), "QC_SQRT": (torch.sqrt, (0, 0)),
    "QC_RSQRT": (torch.rsqrt, (0, 0)), "QC_RECIPROCAL": (torch.reciprocal, (0, 0)), "QC_SQUARE": (torch.square, (0, 0)),
    "QC_NEG": (torch.neg, (0, 0)), "QC_ABS": (torch.abs, (0, 0)), "QC_HARDSIGMOID": (F.hardsigmoid, (0, 0)),
    "QC_HARDSWISH": (F.hardswish, (0, 0)), "QC_LEAKY_RELU": (lambda x: F.leaky_relu(x, 0.2), (0.2, 0)),
    "QC_ELU": (lambda x: F.elu(x, 0.7) * 1.5, (0.7, 1.5)), "QC_SOFTPLUS": (lambda x: F.softplus(x, 2.0, 10.0), (2.0, 10.0)),
    "QC_MISH": (F.mish, (0, 0)), "QC_SIN": (torch.sin, (0, 0)), "QC_COS": (torch.cos, (0, 0)), "QC_FLOOR": (torch.floor, (0, 0)),
    "QC_CEIL": (torch.ceil, (0, 0)), "QC_TRUNC": (torch.trunc, (0, 0)), "QC_ROUND": (torch.round, (0, 0)),
    "QC_FRAC": (torch.frac, (0, 0)), "QC_SIGN": (torch.sign, (0, 0)), "QC_EXPM1": (torch.expm1, (0, 0)),
    "QC_LOG1P": (torch.log1p, (0, 0)), "QC_LOG_TO": (torch.log2, (1.4426950408889634, 0)), "QC_POWER": (lambda x: x**-3, (-3, 0)),
    "QC_SOFTSIGN": (F.softsign, (0, 0)), "QC_LOGSIGMOID": (F.logsigmoid, (0, 0)),
}  # fmt: skip
POSITIVE = ("QC_LOG", "QC_SQRT", "QC_RSQRT", "QC_LOG1P", "QC_LOG_TO")


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("count", [1, 17, 700])
def test_functions_are_near_torchs(kernels: Kernels, name: str, count: int) -> None:
    function, numbers = TORCH[name]
    x = floats(3, count, seed=count)
    if name in POSITIVE:
        x = np.abs(x)
    x, y = Memory(x), Memory(np.zeros_like(x))
    kernels("float_map", 2, x=operand(x.array), y=result(y.array), p=(numbers), function=FUNCTIONS.index(name))
    expected = function(torch.from_numpy(x.array).double()).numpy()
    np.testing.assert_allclose(y.array, expected, rtol=NEAR, atol=NEAR / 4)
    assert y.untouched()


@pytest.mark.parametrize("name", KNOWN)
def test_functions_have_the_bits_of_the_reference(kernels: Kernels, name: str) -> None:
    x = Memory(np.concatenate([ENDS, np.linspace(-110, 95, 2001).astype(np.float32), floats(999)]))
    y = Memory(np.zeros_like(x.array))
    kernels("float_map", x=operand(x.array), y=result(y.array), function=FUNCTIONS.index(name))
    with np.errstate(all="ignore"):
        equal(y.array, KNOWN[name](x.array))


FAR = np.array([0.0, -0.0, 0.49999997, 0.5, 1.5, -2.5, 3e-8, -1e-20, 1e-40, 8388607.5, -8388609.0, 67108864.0, 67108868.0, 1e9, -7e15, 3e22,
                1.7e38, -3.4e38, np.inf, -np.inf, np.nan,
                1e-3, -0.9999999, 87.0, -90.0, 1000.5, 31337.25, 16777215.0], np.float32)  # fmt: skip


def mapped(kernels: Kernels, name: str, x: Array) -> Array:
    given, y = Memory(x), Memory(np.zeros_like(x))
    kernels("float_map", x=operand(given.array), y=result(y.array), p=TORCH[name][1], function=FUNCTIONS.index(name))
    return y.array


@pytest.mark.parametrize("name", ["QC_FLOOR", "QC_CEIL", "QC_TRUNC", "QC_ROUND"])
def test_whole_numbers_have_the_bits_of_torchs(kernels: Kernels, name: str) -> None:
    x = np.concatenate([FAR, floats(501, scale=3), floats(99, scale=1e7)])
    expected = TORCH[name][0](torch.from_numpy(x)).numpy()
    equal(mapped(kernels, name, x), expected)
    equal(np.signbit(mapped(kernels, name, x)), np.signbit(expected))


@pytest.mark.parametrize("name", ["QC_SIN", "QC_COS", "QC_EXPM1", "QC_LOG1P"])
def test_floats_of_any_size(kernels: Kernels, name: str) -> None:
    """Sines of what turns round many times; what is near 0, where e^x - 1 and log(1 + x) are x."""
    x = np.concatenate([FAR, floats(501, scale=1e-4), floats(501, scale=1e5), floats(200, scale=1e12), floats(200, scale=20)])
    expected = TORCH[name][0](torch.from_numpy(x).double()).float().numpy()
    np.testing.assert_allclose(mapped(kernels, name, x), expected, rtol=NEAR, atol=1e-7 if name in ("QC_SIN", "QC_COS") else 0)


@pytest.mark.parametrize("name", [name for name in TORCH if name not in KNOWN])
def test_functions_have_the_bits_of_the_portable_kernels(kernels: Kernels, native_library: Library, name: str) -> None:
    portable = native_library.kernels("scalar")
    assert portable is not None
    x = np.concatenate([FAR[np.isfinite(FAR)], floats(999), floats(333, scale=50)])
    equal(mapped(kernels, name, x), mapped(portable, name, x))


@pytest.mark.parametrize("name", ["QC_EXP", "QC_TANH", "QC_ERF", "QC_SIGMOID", "QC_SILU", "QC_GELU", "QC_LOG", "QC_SIN", "QC_FLOOR",
                                  "QC_EXPM1", "QC_LOG1P", "QC_LOGSIGMOID"])  # fmt: skip
def test_nan_stays_nan(kernels: Kernels, name: str) -> None:
    x = Memory(np.full(19, np.nan, np.float32))
    y = Memory(np.zeros_like(x.array))
    kernels("float_map", x=operand(x.array), y=result(y.array), function=FUNCTIONS.index(name))
    assert np.isnan(y.array).all()


def test_codes_in_and_out(kernels: Kernels) -> None:
    codes = Memory(np.random.default_rng(1).integers(0, 256, (5, 3, 21), dtype=np.uint8))
    mid, back = Memory(np.zeros((5, 3, 21), np.float32)), Memory(np.zeros((5, 3, 21), np.uint8))
    kernels("float_map", 2, x=operand(codes.array, 0.25, 7), y=result(mid.array), function=FUNCTIONS.index("QC_COPY"))
    equal(mid.array, (codes.array.astype(np.float32) - np.float32(7)) * np.float32(0.25))
    kernels("float_map", x=operand(mid.array), y=result(back.array, 4.0, 7), function=FUNCTIONS.index("QC_COPY"))
    equal(back.array, codes.array)
    table = Memory(floats(256))
    kernels("float_map", x=operand(codes.array), y=result(mid.array), table=table.address, function=FUNCTIONS.index("QC_TABLE"))
    equal(mid.array, table.array[codes.array])


PAIRS: dict[str, Any] = {
    "QC_ADD": lambda a, b: a + b * np.float32(0.5), "QC_SUB": lambda a, b: a - b * np.float32(0.5), "QC_MUL": lambda a, b: a * b,
    "QC_DIV": lambda a, b: a / b, "QC_MAXIMUM": np.maximum, "QC_MINIMUM": np.minimum,
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("spread", [(3, 4, 37), (1, 1, 37), (3, 4, 1), (1, 1, 1)])
def test_pairs(kernels: Kernels, name: str, spread: tuple[int, ...]) -> None:
    a, small, y = Memory(floats(3, 4, 37)), Memory(floats(*spread, seed=2)), Memory(np.zeros((3, 4, 37), np.float32))
    b = np.broadcast_to(small.array, a.array.shape)
    right = QOperand(tensor(b, small.address), b.strides[-1], 1.0, 0, 0)
    bounds = {"lo": -1.0, "hi": 3.0}
    kernels("float_pair", 3, a=operand(a.array), b=right, y=result(y.array), times=0.5, op=list(PAIRS).index(name), **bounds)
    equal(y.array, np.clip(PAIRS[name](a.array, b), np.float32(-1), np.float32(3)))
    assert y.untouched()


ROWS = [1, 2, 15, 16, 17, 255, 256, 257, 3000]


@pytest.mark.parametrize("length", ROWS)
def test_softmax_and_norms(kernels: Kernels, length: int) -> None:
    x, y = Memory(floats(5, length, seed=length)), Memory(np.zeros((5, length), np.float32))
    w, b = Memory(floats(length, seed=1)), Memory(floats(length, seed=2))
    rows = torch.from_numpy(x.array).double()
    kernels("softmax", 2, x=operand(x.array), y=result(y.array))
    equal(y.array, reference.softmax(x.array))
    np.testing.assert_allclose(y.array, rows.softmax(-1).numpy(), rtol=NEAR * 2, atol=1e-9)
    kernels("softmax", x=operand(x.array), y=result(y.array), log=1)
    np.testing.assert_allclose(y.array, rows.log_softmax(-1).numpy(), rtol=NEAR, atol=NEAR)
    for rms in (0, 1):
        kernels("norm", 2, x=operand(x.array), y=result(y.array), w=w.address, b=b.address, cycle=1, each=1, eps=1e-5, rms=rms)
        equal(y.array, reference.norm(x.array, w.array, b.array, 1e-5, bool(rms)))
    if length > 2:  # of two numbers the deviation is their difference, and what is lost in it counts
        weight, bias = torch.from_numpy(w.array).double(), torch.from_numpy(b.array).double()
        kernels("norm", x=operand(x.array), y=result(y.array), w=w.address, b=b.address, cycle=1, each=1, eps=1e-5)
        np.testing.assert_allclose(y.array, F.layer_norm(rows, (length,), weight, bias, 1e-5).numpy(), rtol=NEAR * 4, atol=NEAR * 4)
    assert y.untouched()


@pytest.mark.parametrize("length", ROWS)
def test_cumsum_has_torchs_bits(kernels: Kernels, length: int) -> None:
    x = Memory(floats(5, length, seed=length) * np.float32(1e3))
    if length > 2:
        x.array[1, 1], x.array[2, 2] = np.inf, np.nan
    y = Memory(np.zeros_like(x.array))
    kernels("cumsum", 3, x=operand(x.array), y=result(y.array))
    np.testing.assert_array_equal(y.array, torch.from_numpy(x.array).cumsum(-1).numpy())
    assert y.untouched()


def test_a_row_of_minus_infinity_is_nan_as_in_torch(kernels: Kernels) -> None:
    x = Memory(np.full((2, 20), -np.inf, np.float32))
    x.array[1, 3] = 1.0
    y = Memory(np.zeros_like(x.array))
    kernels("softmax", x=operand(x.array), y=result(y.array))
    np.testing.assert_array_equal(y.array, torch.from_numpy(x.array).softmax(-1).numpy())


@pytest.mark.parametrize(("channels", "groups", "space"), [(12, 3, 35), (4, 4, 300), (6, 1, 1), (5, 5, 1)])
def test_norms_in_groups(kernels: Kernels, channels: int, groups: int, space: int) -> None:
    x = Memory(floats(2, groups, channels // groups * space))
    y, w, b = Memory(np.zeros_like(x.array)), Memory(floats(channels, seed=3)), Memory(floats(channels, seed=4))
    kernels("norm", 2, x=operand(x.array), y=result(y.array), w=w.address, b=b.address, cycle=groups, each=space, eps=1e-5)
    parts = (np.repeat(v.array, space).reshape(1, groups, -1) for v in (w, b))
    equal(y.array, reference.norm(x.array, *parts, 1e-5))


@pytest.mark.parametrize("length", ROWS)
def test_reductions(kernels: Kernels, length: int) -> None:
    x, y = Memory(floats(7, length)), Memory(np.zeros((7, 1), np.float32))
    for op, expected in enumerate(
        (reference.row_sum(x.array) * np.float32(0.5), x.array.max(-1, keepdims=True), x.array.min(-1, keepdims=True))
    ):
        kernels("reduce", 2, x=operand(x.array), y=result(y.array), factor=0.5, op=op)
        equal(y.array, expected)


def packed(kernels: Kernels, matrices: Array, **codes: Any) -> Memory:
    """(*batch, K, N) in panels."""
    *batch, depth, columns = matrices.shape
    made = Memory(np.full((*batch, -(-columns // 16), depth, 16), np.nan, np.float32))
    kernels("pack", 2, x=operand(matrices, **codes), y=made.address)
    assert made.untouched()
    return made


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (5, 7, 3), (13, 64, 33), (3, 300, 16), (25, 9, 70)])
@pytest.mark.parametrize("turned", [False, True])
def test_products(kernels: Kernels, m: int, k: int, n: int, turned: bool) -> None:
    a, right = Memory(floats(2, 3, m, k)), Memory(floats(3, n, k, seed=1) if turned else floats(3, k, n, seed=1))
    b = np.swapaxes(right.array, -1, -2) if turned else right.array
    panels, y = packed(kernels, b), Memory(np.zeros((2, 3, m, n), np.float32))
    kernels("matmul", 3, a=tensor(a.array), b=panels.address, b_of=L3(0, 0, 1), y=result(y.array))
    equal(y.array, reference.matmul(a.array, b))
    np.testing.assert_allclose(y.array, a.array.astype(float) @ b.astype(float), rtol=NEAR, atol=NEAR * k)
    codes = Memory(np.zeros((2, 3, m, n), np.uint8))
    kernels("matmul", a=tensor(a.array), b=panels.address, b_of=L3(0, 0, 1), y=result(codes.array, 3.0, 100))
    rounded = np.clip(np.rint(reference.matmul(a.array, b) * np.float32(3)) + 100, 0, 255)
    equal(codes.array, rounded.astype(np.uint8))
    assert y.untouched() and codes.untouched()


def test_codes_are_packed_as_floats(kernels: Kernels) -> None:
    codes = Memory(np.random.default_rng(2).integers(0, 256, (2, 9, 21), dtype=np.uint8))
    equal(packed(kernels, codes.array, scale=0.5, zero=3).array[1, 1, :, :5], (codes.array[1, :, 16:] - np.float32(3)) * np.float32(0.5))


SHAPES = [(1, 1, 4, 3), (7, 7, 16, 16), (6, 300, 8, 20), (17, 257, 33, 40)]


@pytest.mark.parametrize(("queries", "keys", "width", "values"), SHAPES)
@pytest.mark.parametrize("kind", ["plain", "mask", "causal"])
def test_attention(kernels: Kernels, queries: int, keys: int, width: int, values: int, kind: str) -> None:
    q, rows, columns = (Memory(floats(2, 3, *shape, seed=n)) for n, shape in enumerate(((queries, width), (keys, width), (keys, values))))
    k, v = rows.array, columns.array
    mask, more = None, {}
    if kind == "mask":
        held = Memory(floats(queries, keys, seed=3))
        held.array[:, keys // 2 :] = -np.inf if keys > 1 else 0
        mask = np.broadcast_to(held.array, (2, 3, queries, keys))
        more = {"mask": QOperand(tensor(mask, held.address), 4, 1.0, 0, 0)}
    if kind == "causal":
        mask = np.where(np.arange(keys) > np.arange(queries)[:, None], np.float32(-np.inf), np.float32(0)).astype(np.float32)
        more = {"causal": 1}
    first, second = packed(kernels, np.swapaxes(k, -1, -2)), packed(kernels, v)
    y = Memory(np.zeros((2, 3, queries, values), np.float32))
    kernels("attention", 3, q=tensor(q.array), k=first.address, v=second.address, k_of=L3(0, 3, 1), v_of=L3(0, 3, 1), y=result(y.array),
            scale=0.3, keys=keys, **more)  # fmt: skip
    with np.errstate(all="ignore"):
        equal(y.array, reference.attention(q.array, k, v, 0.3, mask))
    parts = (torch.from_numpy(np.ascontiguousarray(part)).double() for part in (q.array, k, v))
    given = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask)).double()
    expected = F.scaled_dot_product_attention(*parts, attn_mask=given, scale=0.3)
    np.testing.assert_allclose(y.array, expected.numpy(), rtol=NEAR * 5, atol=NEAR * 5)
    assert y.untouched()


def test_a_query_that_sees_no_key_gives_zeros(kernels: Kernels) -> None:
    q, rows, columns = (Memory(floats(*shape, seed=n)) for n, shape in enumerate(((2, 8), (5, 8), (5, 4))))
    k, v = rows.array, columns.array
    mask = Memory(np.full((2, 5), -np.inf, np.float32))
    mask.array[1, 2] = 0.0
    y = Memory(np.full((2, 4), 9.0, np.float32))
    first, second = packed(kernels, k.T[None]), packed(kernels, v[None])
    kernels(
        "attention", q=tensor(q.array), k=first.address, v=second.address, mask=operand(mask.array), y=result(y.array), scale=1.0, keys=5
    )
    equal(y.array, np.stack([np.zeros(4, np.float32), v[2]]))
