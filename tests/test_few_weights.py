"""Scales of depthwise weights: the largest of a channel is one of few, and lies halfway between two integers at the observer's scale."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import QConfig, QConfigMapping, calibrate, convert_to_reference_fx, prepare_fx
from qcompiler.backends.torch.kernels.depthwise import safe_channels, shrink_to_safe
from qcompiler.export.onnx_qdq.target import AnyPair
from qcompiler.ir.types import QParams
from qcompiler.observers import MinMaxObserver, PerChannelMinMaxObserver, default_per_channel_weight_observer
from qcompiler.observers.defaults import per_channel_weight_observer_range_neg_127_to_127
from qcompiler.observers.weights import of_few, of_few_held
from qcompiler.stages.quantized import Call, steps


def observed(weight: Tensor, maker: Any = default_per_channel_weight_observer, axis: int = 0) -> QParams:
    observer = maker()
    observer.ch_axis = axis
    observer(weight)
    found: QParams = observer.qparams()
    return found


def errors(weight: Tensor, scale: Any) -> Tensor:
    steps_ = torch.tensor(scale)[:, None]
    return torch.round(weight.flatten(1) * steps_.reciprocal()).clamp(-128, 127) * steps_ - weight.flatten(1)  # as quantize_weight


def cost(weight: Tensor, scale: Any) -> Tensor:
    """What a window of neighbours that are much alike makes of the errors."""
    error, window = errors(weight, scale), weight.shape[2:]
    places = torch.tensor(list(itertools.product(*map(range, window)))).float()
    return torch.einsum("ci,ij,cj->c", error, 0.8 + 0.2 * torch.exp(-torch.cdist(places, places) / 2), error)


def test_no_channel_gets_worse_and_most_get_better() -> None:
    weight = torch.randn(500, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    before, after = observed(weight), of_few(weight, observed(weight))
    worse, less = cost(weight, before.scale), cost(weight, after.scale)
    assert bool((less <= worse * (1 + 1e-6)).all()) and float(less.sum()) < 0.1 * float(worse.sum())
    bound = weight.flatten(1).abs().amax(1) / torch.tensor(after.scale)
    assert float(bound.min()) > 112 and float(bound.max()) <= 128


@pytest.mark.parametrize("window", [(5,), (3, 3), (3, 5), (3, 3, 3), (7, 7)])
def test_results_on_smooth_inputs_get_better(window: tuple[int, ...]) -> None:
    """Not by the measure alone: on random walks with a level of their own, as channels of a photo have."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 1, *window, generator=generator)
    x = torch.randn(200, 40, *window, generator=generator)
    for axis in range(2, x.dim()):
        x = x.cumsum(axis)
    x = (0.3 * x + 2 * torch.randn(200, 40, *[1] * len(window), generator=generator)).flatten(2)
    plain, found = (errors(weight, of.scale) for of in (observed(weight), of_few(weight, observed(weight))))
    before, after = (float(torch.einsum("cni,ci->cn", x, error).square().sum()) for error in (plain, found))
    assert after < 0.4 * before


def test_scales_of_wide_windows_stay() -> None:
    weight = torch.randn(8, 1, 13, 13, generator=torch.Generator().manual_seed(0))
    assert of_few(weight, observed(weight)) == observed(weight)
    safe = torch.tensor(observed(weight).scale, dtype=torch.float64)
    assert torch.equal(of_few_held(weight, safe * 1.1, safe, 0, AnyPair(0).holds), safe * 1.1)


@pytest.mark.parametrize("window", [(3,), (3, 3), (5, 5)])
def test_scales_of_a_channel_do_not_depend_on_other_channels(window: tuple[int, ...]) -> None:
    """Only channels that the sums do not hold are looked at, and all others keep their scale."""
    weight = torch.randn(60, 1, *window, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    weight[::3] *= torch.linspace(1, 0.1, math.prod(window)).reshape(window)
    wanted = torch.tensor(observed(weight).scale, dtype=torch.float64)
    safe = shrink_to_safe(weight, wanted)
    held = of_few_held(weight, safe, wanted, 0, safe_channels)
    assert 0 < int((safe != wanted).sum()) < 60 and torch.equal(held == wanted, safe == wanted)
    for i in range(60):
        one, at = weight[i : i + 1], slice(i, i + 1)
        assert torch.equal(shrink_to_safe(one, wanted[at]), safe[at])
        assert torch.equal(of_few_held(one, safe[at], wanted[at], 0, safe_channels), held[at])


def test_a_largest_weight_of_either_sign_becomes_itself() -> None:
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])[:, None]
    given = observed(weight)
    found = of_few(weight, given)
    assert errors(weight, found.scale).abs().max() < 1e-7 < errors(weight, given.scale).abs().max()
    assert found.scale[2] == given.scale[2]  # type: ignore[index]


NARROW = PerChannelMinMaxObserver.with_args(dtype=torch.int8, qscheme=torch.per_channel_symmetric, quant_min=-64, quant_max=63)
AFFINE = PerChannelMinMaxObserver.with_args(dtype=torch.int8, qscheme=torch.per_channel_affine)


@pytest.mark.parametrize("maker", [per_channel_weight_observer_range_neg_127_to_127, NARROW, AFFINE])
def test_scales_that_the_user_chose_in_another_way_stay(maker: Any) -> None:
    weight = torch.randn(50, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    given = observed(weight, maker)
    assert of_few(weight, given) == given


def weights_of(layer: nn.Module, shape: tuple[int, ...], qconfig: QConfig | None = None) -> tuple[Tensor, Tensor]:
    """The scales of a layer's weight, and what the observer says of it."""
    data = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mapping = QConfigMapping().set_global(qconfig) if qconfig is not None else None
    prepared = prepare_fx(nn.Sequential(layer).eval(), mapping, (data,), backend="reference")
    calibrate(prepared, [data])
    call = next(step for step in steps(convert_to_reference_fx(prepared)) if isinstance(step, Call))
    weight = layer.weight.detach()
    assert isinstance(weight, Tensor) and call.weight is not None
    return call.weight.scale.float(), torch.tensor(observed(weight).scale)  # type: ignore[union-attr]


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Conv1d(16, 16, 5, groups=16), (2, 16, 9)), (nn.Conv2d(16, 32, 3, groups=16), (2, 16, 9, 9)),
    (nn.Conv3d(16, 16, 3, groups=16), (2, 16, 5, 5, 5)),
])  # fmt: skip
def test_depthwise_weights_get_them(layer: nn.Module, shape: tuple[int, ...]) -> None:
    nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    found, plain = weights_of(layer, shape)
    assert bool((found != plain).any())


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Conv2d(16, 16, 3, groups=8), (2, 16, 9, 9)), (nn.Conv2d(1, 16, 3), (2, 1, 9, 9)), (nn.Linear(16, 16), (2, 16)),
    (nn.Conv2d(16, 16, 1), (2, 16, 9, 9)),
])  # fmt: skip
def test_other_weights_have_the_observers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    found, plain = weights_of(layer, shape)
    assert torch.equal(found, plain)


def test_one_scale_for_all_stays() -> None:
    per_tensor = MinMaxObserver.with_args(dtype=torch.int8, qscheme=torch.per_tensor_symmetric)
    layer = nn.Conv2d(16, 16, 3, groups=16)
    found, _ = weights_of(layer, (2, 16, 9, 9), QConfig(MinMaxObserver, per_tensor))
    assert float(found) == float(torch.tensor(float(layer.weight.detach().abs().max())) / 127.5)


def test_scales_that_sums_hold_stay_safe_and_get_better() -> None:
    weight = torch.randn(300, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    limit = AnyPair(0)
    wanted = torch.tensor(observed(weight).scale, dtype=torch.float64)
    safe, _ = limit.qparams(weight, wanted, torch.zeros(300, dtype=torch.int64), 127)
    found = of_few_held(weight, safe, wanted, 0, limit.holds)
    codes = torch.round(weight.double() / found.reshape(-1, 1, 1, 1)).clamp(-128, 127).to(torch.int8)
    assert bool(limit.holds(codes).all()) and bool((found >= safe).all()) and torch.equal(found[safe == wanted], safe[safe == wanted])
    assert float(cost(weight, found.tolist()).sum()) < 0.2 * float(cost(weight, safe.tolist()).sum())
