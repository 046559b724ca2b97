"""Learned step sizes: values, gradients by the formulas of the paper in float64 and by torch's operator, initialisation, qparams."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qcompiler import fake_quantize as fq
from qcompiler.errors import CalibrationError
from qcompiler.fake_quantize import LearnableFakeQuantize
from qcompiler.observers import PerChannelMinMaxObserver


def by_formula(x: torch.Tensor, s: torch.Tensor, z: torch.Tensor, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dy/dx, dy/ds, dy/dz) of every value, in float64."""
    t = x.double() / s.double()
    r = t.round() + z
    inside = (r >= low) & (r <= high)
    return inside.double(), torch.where(inside, t.round() - t, r.clamp(low, high) - z), torch.where(inside, 0.0, -s.double())


@pytest.mark.parametrize("learn_zero_point", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_gradients_are_the_papers(axis: int | None, learn_zero_point: bool) -> None:
    torch.manual_seed(0)
    kw = {} if axis is None else {"observer": PerChannelMinMaxObserver, "ch_axis": axis, "qscheme": torch.per_channel_affine}
    module = LearnableFakeQuantize(learn_zero_point=learn_zero_point, quant_min=0, quant_max=15, **kw)
    x = torch.randn(4, 6, 5, requires_grad=True)
    module(x)
    module.scale.data *= 0.4  # so that values are clipped
    y, grad = module(x), torch.randn(4, 6, 5)
    y.backward(grad)
    view = [1, 1, 1] if axis is None else [-1 if d == axis else 1 for d in range(3)]
    dx, ds, dz = by_formula(x.detach(), module.scale.detach().reshape(view), module.zero_point.detach().round().reshape(view), 0, 15)
    others = [d for d in range(3) if d != axis]
    factor = 1 / math.sqrt(x.numel() / module.scale.numel() * 15)
    assert 0 < dx.mean() < 1
    torch.testing.assert_close(x.grad.double(), dx * grad)
    torch.testing.assert_close(module.scale.grad.double(), ((ds * grad).sum(others) * factor).reshape(-1), rtol=1e-4, atol=1e-5)
    if learn_zero_point:
        torch.testing.assert_close(module.zero_point.grad.double(), ((dz * grad).sum(others) * factor).reshape(-1), rtol=1e-4, atol=1e-5)


def test_agrees_with_torchs_operator() -> None:
    torch.manual_seed(1)
    module = LearnableFakeQuantize(quant_min=0, quant_max=31)
    x = torch.randn(50)
    module(x)
    module.scale.data *= 0.7
    scale, zero_point = module.scale.detach().clone().requires_grad_(), module.zero_point.clone().requires_grad_()
    want = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, 0, 31, 1 / math.sqrt(50 * 31))
    got = module(x)
    torch.testing.assert_close(got, want)
    got.square().sum().backward(), want.square().sum().backward()
    torch.testing.assert_close(module.scale.grad, scale.grad)


def test_starts_from_the_observer_once() -> None:
    module, plain = fq.default_lsq_act_fake_quant(), fq.default_fake_quant()
    x = torch.linspace(-1, 3, 40)
    with pytest.raises(CalibrationError):
        module.qparams()
    assert torch.equal(module(x), plain(x)) and module.qparams() == plain.qparams()
    module(10 * x)
    module.enable_observer()
    module(10 * x)
    assert module.qparams() == plain.qparams()
    module.restart()
    module(10 * x)
    assert module.qparams().scale > plain.qparams().scale


def test_the_optimizer_moves_the_scale_towards_less_error() -> None:
    torch.manual_seed(2)
    module = LearnableFakeQuantize(quant_min=0, quant_max=7)
    x = torch.cat([torch.randn(500), torch.tensor([30.0])])  # an outlier that min-max gives all the range to
    module(x)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        error = (module(x) - x).abs().sum()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert [name for name, _ in module.named_parameters()] == ["scale"] and errors[-1] < 0.8 * errors[0]


def test_a_scale_below_zero_counts_as_the_smallest_and_recovers() -> None:
    module = LearnableFakeQuantize()
    module(torch.linspace(0, 1, 9))
    module.scale.data.fill_(-1.0)
    y = module(torch.linspace(0, 1, 9))
    assert bool(y.isfinite().all()) and module.qparams().scale > 0
    (y - torch.linspace(0, 1, 9)).square().sum().backward()
    assert module.scale.grad.item() < 0


def test_channels_are_allocated_and_keep_the_parameter() -> None:
    module = fq.default_lsq_per_channel_wt_fake_quant()
    scale = module.scale
    module.allocate(5)
    assert module.scale is scale and scale.shape == (5,)
    module(torch.randn(5, 3))
    fresh = fq.default_lsq_per_channel_wt_fake_quant()
    fresh.load_state_dict(module.state_dict())
    assert fresh.qparams() == module.qparams() and isinstance(fresh.scale, nn.Parameter)
    one = module.per_tensor()
    one(torch.randn(5, 3))
    assert type(one) is LearnableFakeQuantize and one.qparams().channel_axis is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["default_fake_quant", "default_fused_act_fake_quant", "default_lsq_act_fake_quant"])
def test_every_float_dtype_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    module = getattr(fq, name)()
    x = torch.randn(40, dtype=dtype, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.dtype is dtype and x.grad.dtype is dtype and module.scale.dtype is torch.float32
    assert (y - x).abs().max().item() <= 0.6 * module.scale.item() + 0.02
