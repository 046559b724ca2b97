"""Transposed convolutions in C: plain ones by phases, beside torch on equal codes, on the instruction sets of this machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.backends.native.plan.transposed import Stretch
from qcompiler.errors import InputError
from tests.native_nets import converted, example, region_of, steps_apart
from tests.native_ops import OneOp, floats

SPACE = (5, 7, 4)

# Dimensions, input channels, output channels of a group, kernel, then the settings.
CASES: dict[str, tuple[int, int, int, Any, dict[str, Any]]] = {
    "3x3, doubled": (2, 8, 6, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "4x4, doubled": (2, 16, 20, 4, {"stride": 2, "padding": 1}),
    "windows side by side": (2, 8, 3, 2, {"stride": 2}),
    "gaps between windows": (2, 8, 3, 2, {"stride": 3, "output_padding": 2}),
    "one tap": (2, 32, 32, 1, {"stride": 2}),
    "pointwise and cropped": (2, 32, 17, 1, {"padding": 1}),
    "stride 1, cropped": (2, 4, 4, 5, {"padding": 3}),
    "one channel": (2, 1, 1, 4, {"stride": 2, "padding": 1}),
    "uneven": (2, 4, 4, (3, 2), {"stride": (2, 1), "padding": (0, 1)}),
    "groups": (2, 8, 3, 3, {"groups": 2, "stride": 2}),
    "depthwise": (2, 16, 1, 3, {"groups": 16, "stride": 2, "padding": 1, "output_padding": 1}),
    "dilated": (2, 4, 4, 3, {"stride": 2, "dilation": 3}),
    "stride and dilation share a factor": (2, 4, 4, 3, {"stride": 4, "dilation": 2, "padding": 1}),
    "a sequence": (1, 4, 5, 7, {"stride": 3, "padding": 2}),
    "a sequence, cropped": (1, 4, 4, 3, {"stride": 2, "padding": 4}),
    "a volume": (3, 4, 5, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "a volume of groups": (3, 6, 2, 2, {"stride": (1, 2, 3), "groups": 3}),
}  # fmt: skip


def one_op(
    name: str, given: tuple[float, int] = (0.05, 131), made: tuple[float, int] = (0.4, 120), bias: bool = True, **more: Any
) -> OneOp:
    dims, inputs, outputs, kernel, settings = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    window = kernel if isinstance(kernel, tuple) else (kernel,) * dims
    weight = torch.randint(-128, 128, (inputs, outputs, *window), generator=generator, dtype=torch.int8)
    scale = torch.rand(outputs, generator=generator, dtype=torch.float64) * 0.01 + 0.002
    added = torch.randn(outputs * settings.get("groups", 1), generator=generator) if bias else None
    return OneOp(f"conv_transpose{dims}d", (2, inputs, *SPACE[:dims]), settings | more, given, made, (weight, scale, 1), added)


@pytest.mark.parametrize("cap", ["scalar", ""])
@pytest.mark.parametrize("name", CASES)
def test_each_result_is_within_a_step(name: str, cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_ISA", cap)
    case = one_op(name)
    region = case.region()
    for shape in (case.shape, (1, *case.shape[1:-1], case.shape[-1] + 3), (3, case.shape[1], *(n + 1 for n in case.shape[2:]))):
        assert case.steps_apart(region, floats(shape)) <= 1  # sums are rounded twice in C, and in float32 in torch


@pytest.mark.parametrize("given", [(0.05, 0), (0.05, 255)])
@pytest.mark.parametrize("bounds", [None, (0.0, 6.0)])
def test_zero_points_at_the_ends_and_bounds(given: tuple[float, int], bounds: Any) -> None:
    case = one_op("3x3, doubled", given, (0.2, 0), False, **({} if bounds is None else {"bounds": bounds}))
    assert case.steps_apart(case.region(), floats(case.shape)) <= 1


def test_a_size_without_a_result_is_refused() -> None:
    case = one_op("a sequence, cropped")
    with pytest.raises(InputError):
        case.region()(floats((1, 4, 2)))


def test_every_tap_belongs_to_one_phase() -> None:
    for kernel, stride, padding, dilation in ((1, 3, 0, 1), (4, 2, 1, 1), (5, 3, 2, 2), (3, 4, 1, 2), (2, 6, 0, 4)):
        stretch = Stretch(kernel, stride, padding, 0, dilation)
        taps = [tap for start in range(stride) for tap in stretch.phase(start).taps]
        assert sorted(taps) == list(range(kernel))


@pytest.mark.parametrize("layers", [
    pytest.param((nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, 2, 1, 1)),
                 id="decoder"),
    pytest.param((nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 5, 3, padding=1)), id="sub-pixel"),
    pytest.param((nn.Conv2d(8, 8, 1), nn.PixelUnshuffle(2), nn.ChannelShuffle(4), nn.Conv2d(32, 5, 1)), id="shuffles"),
])  # fmt: skip
def test_networks_are_one_region(layers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    module, graph = converted(nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.ReLU(), *layers), x := example((1, 3, 8, 6)))
    assert {call.op for call in module.program.calls} == {"runtime.run_region", "operator.getitem"}
    assert region_of(module) and not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    for given in (x, example((3, 3, 10, 8))):
        assert max(steps_apart(module, graph, given).values()) <= 1


REARRANGED: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "pixel_shuffle": ("pixel_shuffle", (2, 8, 5, 6), {"upscale_factor": 2}),
    "pixel_shuffle of one image": ("pixel_shuffle", (9, 2, 3), {"upscale_factor": 3}),
    "pixel_unshuffle": ("pixel_unshuffle", (2, 3, 6, 8), {"downscale_factor": 2}),
    "channel_shuffle": ("channel_shuffle", (2, 6, 4, 5), {"groups": 3}),
    "channel_shuffle of a sequence": ("channel_shuffle", (2, 6, 4), {"groups": 2}),
    "unfold": ("unfold", (2, 3, 7, 8), {"kernel_size": (2, 3), "padding": (1, 2), "stride": (2, 1), "dilation": (2, 1)}),
    "diagonal": ("diagonal", (2, 3, 5, 6), {"offset": 1, "dim1": 2, "dim2": 3}),
    "unfold_dimension": ("unfold_dimension", (2, 3, 8), {"dimension": 2, "size": 3, "step": 2}),
}  # fmt: skip


@pytest.mark.parametrize("made", [(0.05, 128), (0.09, 3)])
@pytest.mark.parametrize("name", REARRANGED)
def test_what_is_rearranged_is_torchs(name: str, made: tuple[float, int]) -> None:
    op, shape, kwargs = REARRANGED[name]
    case = OneOp(op, shape, kwargs, made=made)
    region = case.region()
    for given in (shape, (shape[0] * 4, *shape[1:])) if len(shape) > 3 else (shape,):
        assert case.steps_apart(region, floats(given)) == 0
