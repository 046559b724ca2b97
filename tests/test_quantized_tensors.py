"""What the back end relies on in torch's quantized tensors; docs/quantized-tensors.md says it to users. A failure is a change in torch."""

from __future__ import annotations

import copy
import io
import pickle
import struct
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.flow import randn

RANGES = {torch.quint8: (0, 255), torch.qint8: (-128, 127), torch.qint32: (-(2**31), 2**31 - 1)}
STORED = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}
COMPARATORS = ("eq", "ne", "lt", "le", "gt", "ge")


def quint8(*shape: int, scale: float = 0.1, zero_point: int = 100, seed: int = 0) -> Tensor:
    return torch.quantize_per_tensor(randn(*shape, seed=seed) * 5, scale, zero_point, torch.quint8)


def per_channel(axis: int = 0) -> Tensor:
    x = randn(4, 6, 3, 3)
    scales = x.abs().amax([d for d in range(4) if d != axis]) / 127
    return torch.quantize_per_channel(x, scales, torch.zeros_like(scales, dtype=torch.int64), axis, torch.qint8)


# Making and reading


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("zero_point", [0, 7, 64])
@pytest.mark.parametrize("size", [1, 33, 1000])
def test_quantize_rounds_the_sum_to_even_and_clamps(dtype: torch.dtype, zero_point: int, size: int) -> None:
    """A scale of a power of two makes quotients exact, halves among them, so the whole formula is exact."""
    x = torch.arange(size, dtype=torch.float64) * 0.125 - 20
    x[0] = 1e7 if dtype is not torch.qint32 else 3
    low, high = RANGES[dtype]
    expected = (x / 0.25 + zero_point).round().clamp(low, high).to(STORED[dtype])
    found = torch.quantize_per_tensor(x.float(), 0.25, zero_point, dtype)
    assert torch.equal(found.int_repr(), expected)
    channels = torch.quantize_per_channel(x.float()[None], torch.tensor([0.25]), torch.tensor([zero_point]), 0, dtype)
    assert torch.equal(channels.int_repr()[0], expected)


@pytest.mark.parametrize("dtype", RANGES)
def test_dequantize_is_scale_times_difference_and_zero_is_exact(dtype: torch.dtype) -> None:
    q = torch.quantize_per_tensor(randn(50), 0.013, 3, dtype)
    real = (q.int_repr().double() - 3) * 0.013
    assert torch.allclose(q.dequantize().double(), real, rtol=1e-6, atol=0)
    assert torch.quantize_per_tensor(torch.zeros(1), 0.013, 3, dtype).dequantize().item() == 0


def test_accessors() -> None:
    q, w = quint8(2, 3), per_channel(1)
    assert (q.q_scale(), q.q_zero_point(), q.qscheme(), q.dtype) == (0.1, 100, torch.per_tensor_affine, torch.quint8)
    assert (w.qscheme(), w.q_per_channel_axis(), w.dtype) == (torch.per_channel_affine, 1, torch.qint8)
    assert w.q_per_channel_scales().shape == w.q_per_channel_zero_points().shape == (6,)
    assert w.q_per_channel_scales().dtype is torch.float64 and q.int_repr().dtype is torch.uint8
    for wrong in (q.q_per_channel_scales, q.q_per_channel_axis, w.q_scale, w.q_zero_point):
        with pytest.raises(RuntimeError):
            wrong()


def test_a_tensor_made_of_integers_is_the_one_made_of_reals() -> None:
    """State dicts hold integers, scales and zero points: the quantized tensor comes from these."""
    q, w = quint8(5), per_channel()
    assert torch.equal(torch._make_per_tensor_quantized_tensor(q.int_repr(), 0.1, 100), q)
    parts = w.int_repr(), w.q_per_channel_scales(), w.q_per_channel_zero_points(), 0
    assert torch.equal(torch._make_per_channel_quantized_tensor(*parts), w)


# Views

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda t: t.view(6, -1), "flatten": lambda t: t.flatten(1), "transpose": lambda t: t.transpose(1, 2),
    "permute": lambda t: t.permute(0, 2, 3, 1), "slice": lambda t: t[:, 1:, ::2], "index": lambda t: t[1],
    "unsqueeze": lambda t: t.unsqueeze(1), "squeeze": lambda t: t[:1].squeeze(0), "expand": lambda t: t[:1].expand(4, -1, -1, -1),
    "chunk": lambda t: t.chunk(2, 1)[1],
    "split": lambda t: t.split([1, 2], 1)[1], "narrow": lambda t: t.narrow(1, 1, 2), "detach": lambda t: t.detach(),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_views_share_the_integers_and_keep_the_qparams(name: str) -> None:
    q = quint8(2, 3, 4, 4)
    view = VIEWS[name](q)
    assert torch.equal(view.int_repr(), VIEWS[name](q.int_repr())) and torch.equal(view.dequantize(), VIEWS[name](q.dequantize()))
    assert (view.q_scale(), view.q_zero_point()) == (0.1, 100)
    assert q.data_ptr() <= view.data_ptr() < q.data_ptr() + q.numel()


def test_layouts_change_and_stay() -> None:
    q = quint8(2, 3, 4, 4)
    last = q.contiguous(memory_format=torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, q)
    assert last.clone().is_contiguous()  # unlike a float tensor's
    assert last.clone(memory_format=torch.preserve_format).is_contiguous(memory_format=torch.channels_last)
    assert q.transpose(1, 2).contiguous().is_contiguous() and torch.equal(q.transpose(1, 2).contiguous(), q.transpose(1, 2))


def test_a_channel_of_a_weight_is_per_tensor() -> None:
    w = per_channel()
    assert w[2].qscheme() == torch.per_tensor_affine and w[2].q_scale() == w.q_per_channel_scales()[2].item()
    for refused in (lambda: w.transpose(0, 1), lambda: w.permute(1, 0, 2, 3), lambda: w.max(), lambda: w.clone().resize_(2)):
        with pytest.raises(RuntimeError):
            refused()
    assert w.view(-1).q_per_channel_axis() == 0  # no check: 4 scales, 216 elements


# Comparing


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("other", [0.3, quint8(4, 5, scale=0.2, zero_point=90, seed=1), randn(4, 5)], ids=["number", "quantized", "float"])
def test_comparators_compare_real_values(name: str, other: Tensor | float) -> None:
    q = quint8(4, 5)
    real = other.dequantize() if isinstance(other, Tensor) else other
    expected = getattr(q.dequantize(), name)(real)
    assert torch.equal(getattr(q, name)(other), expected) and torch.equal(getattr(torch, name)(q, other), expected)


def test_equal_compares_qparams_and_integers() -> None:
    q = quint8(5)
    make = torch._make_per_tensor_quantized_tensor
    same, signed = make(q.int_repr(), 0.1, 100), torch.quantize_per_tensor(q.dequantize(), 0.1, 100, torch.qint8)
    assert torch.equal(q, same) and q.equal(same)
    others = make(q.int_repr(), 0.1, 99), make(q.int_repr(), 0.2, 100), signed, q[:4]
    assert not any(torch.equal(q, other) for other in others)


# Copying


@pytest.mark.parametrize("make", [lambda: quint8(2, 3, 4, 4), per_channel, lambda: per_channel(1)], ids=["tensor", "channels", "axis 1"])
@pytest.mark.parametrize("how", ["clone", "deepcopy", "pickle", "torch.save", "to"])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch.load warns of its own doing
def test_copies_are_equal_and_apart(make: Callable[[], Tensor], how: str) -> None:
    q, file = make(), io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    made = {"clone": q.clone, "deepcopy": lambda: copy.deepcopy(q), "pickle": lambda: pickle.loads(pickle.dumps(q)),
            "torch.save": lambda: torch.load(file, weights_only=True), "to": lambda: q.to("cpu", copy=True)}[how]()  # fmt: skip
    assert torch.equal(made, q) and made.qscheme() == q.qscheme() and made.data_ptr() != q.data_ptr()
    if q.qscheme() == torch.per_channel_affine:
        assert made.q_per_channel_axis() == q.q_per_channel_axis()


def test_copy_quantizes_floats_and_takes_over_the_qparams_of_quantized_tensors() -> None:
    x, source, target = randn(5), quint8(5), quint8(5, scale=0.5, zero_point=3, seed=1)
    assert torch.equal(target.copy_(x), torch.quantize_per_tensor(x, 0.5, 3, torch.quint8))
    assert torch.equal(target.copy_(source), source) and target.q_scale() == 0.1
    with pytest.raises(RuntimeError, match="dequantize"):
        torch.empty(5).copy_(source)


def test_resize_keeps_what_was_there() -> None:
    q = quint8(2, 3)
    assert torch.equal(q.clone().resize_(4).int_repr(), q.int_repr().flatten()[:4])
    grown = q.clone().resize_(3, 3)
    assert grown.shape == (3, 3) and torch.equal(grown[:2], q) and grown.q_scale() == 0.1


# Reducing


@pytest.mark.parametrize("dim", [None, 0, -1])
def test_max_and_min_are_exact(dim: int | None) -> None:
    q = quint8(4, 5)
    for name in ("max", "min"):
        arguments = () if dim is None else (dim,)
        found, expected = getattr(q, name)(*arguments), getattr(q.dequantize(), name)(*arguments)
        values = found if dim is None else found.values
        assert torch.equal(values.dequantize(), expected if dim is None else expected.values) and values.q_scale() == 0.1
        if dim is not None:
            assert torch.equal(q.dequantize().gather(dim, found.indices.unsqueeze(dim)).squeeze(dim), expected.values)


def test_float_zero_points_make_another_scheme() -> None:
    """That of embeddings, for which zero need not be exact."""
    w = torch.quantize_per_channel(randn(2, 3), torch.ones(2), torch.zeros(2), 0, torch.quint8)
    assert w.qscheme() == torch.per_channel_affine_float_qparams


@pytest.mark.parametrize("dim", [None, 1, (2, 3)])
@pytest.mark.parametrize("engine", ["x86", "qnnpack"])
def test_the_mean_is_rounded_once(dim: int | tuple[int, ...] | None, engine: str) -> None:
    q = quint8(2, 3, 8, 8)
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        found = q.mean() if dim is None else q.mean(dim)
    finally:
        torch.backends.quantized.engine = before
    exact = (q.int_repr().double() - 100).mean() if dim is None else (q.int_repr().double() - 100).mean(dim)
    assert found.q_scale() == 0.1 and float((found.int_repr().double() - 100 - exact).abs().max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("descending", [False, True])
def test_sort_and_topk_are_exact(descending: bool) -> None:
    q = quint8(4, 9)
    found, expected = q.sort(dim=1, descending=descending), q.dequantize().sort(dim=1, descending=descending)
    assert torch.equal(found.values.dequantize(), expected.values)
    assert torch.equal(q.dequantize().gather(1, found.indices), expected.values)
    best, wanted = q.topk(3, largest=descending), q.dequantize().topk(3, largest=descending)
    assert torch.equal(best.values.dequantize(), wanted.values) and best.values.q_zero_point() == 100
    assert torch.equal(q.dequantize().gather(1, best.indices), wanted.values)


NO_QUANTIZED_FORM = ("q + q", "q.sum()", "q.argmax()", "torch.zeros_like(q)", "torch.where(q > 0, q, q)", "q.gather(0, q.argsort())",
                     "q.numpy()", "q.tolist()", "torch.isclose(q, q)")  # fmt: skip


@pytest.mark.parametrize("refused", NO_QUANTIZED_FORM)
def test_what_has_no_quantized_form_raises(refused: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        eval(refused, {"q": quint8(3), "torch": torch})


def test_torch_does_not_check_what_it_quantizes() -> None:
    """Why observers refuse NaN and why scales are checked when they are made."""
    torch.quantize_per_tensor(torch.tensor([struct.unpack("f", b"\0\0\xc0\x7f")[0]]), 0.1, 3, torch.quint8)
    assert torch.quantize_per_tensor(torch.ones(1), -0.1, 0, torch.qint8).q_scale() == -0.1
