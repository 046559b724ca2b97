"""Sums in the epilogue of native convolutions: the other operand in every order in which it may lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.backends.native import region
from qcompiler.backends.native.plan.conv import Conv
from tests.native_nets import Through, check_equal_bits, converted, example, region_of, steps_apart

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(6, 6, 3, padding=1), (2, 6, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 4, 3, padding=1), (2, 4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(3, 3, 1), (2, 3, 2, 3, 4)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), (2, 8, 5, 6)),
    "linear": (lambda: nn.Linear(8, 8), (2, 5, 8)),
    "linear of images": (lambda: nn.Linear(6, 6), (2, 3, 4, 6)),
}
LIES: dict[str, Callable[[Tensor], Tensor]] = {  # how the int8 value that is added was made
    "norm": lambda v: F.layer_norm(v, v.shape[-1:]),
    "turned": lambda v: torch.tanh(v.transpose(1, -1).contiguous()).transpose(1, -1),
    "softmax": lambda v: v.softmax(-1),
    "product": lambda v: (v @ v.transpose(-1, -2)).softmax(-1) @ v,
}


class Sum(nn.Module):
    def __init__(self, layer: nn.Module, lies: Callable[[Tensor], Tensor], swapped: bool) -> None:
        super().__init__()
        self.layer, self.lies, self.swapped = layer, lies, swapped

    def forward(self, x: Tensor) -> Tensor:
        other = self.lies(x)
        y, other = self.layer(other), other.clamp(-1, 1)
        result: Tensor = self.layer(torch.relu(other + y if self.swapped else y + other))
        return result


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("lies", LIES)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_added_may_lie_in_any_order(layer: str, lies: str, swapped: bool) -> None:
    make, shape = LAYERS[layer]
    torch.manual_seed(1)
    x = example(shape)
    module, graph = converted(Sum(make(), LIES[lies], swapped), x)
    fused: list[Any] = [made for made in region_of(module).network.layers if isinstance(made, Conv) and made.residual is not None]
    for size in (x, x[:1]):
        assert max(steps_apart(module, graph, size).values()) <= 1
    assert bool(fused) == (layer != "depthwise")


class WithPositions(nn.Module):
    """A constant of one sample, of one row, or of all places: spread over what the caller gives."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], on_it: bool) -> None:
        super().__init__()
        self.layer, self.on_it = layer, on_it
        self.positions = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.positions) + torch.tanh(x) if self.on_it else self.layer(x) + self.positions
        result: Tensor = self.layer(torch.relu(y))
        return result


@pytest.mark.parametrize("on_it", [False, True])
@pytest.mark.parametrize("spread", ["batch", "rows"])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_has_one_shape_in_the_example_alone(layer: str, spread: str, on_it: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = LAYERS[layer]
    first = 1 if layer.startswith("linear") else 2  # the first dimension that holds no channels
    one = (1, *shape[1:]) if spread == "batch" else (*shape[:first], *(1 for _ in shape[first:-1]), shape[-1])
    torch.manual_seed(1)
    module, graph = converted(WithPositions(make(), one, on_it), example(one))
    for size in (example(one), example(shape), example((3, *shape[1:]))[: 3 if spread == "batch" else shape[0]]):
        assert max(steps_apart(module, graph, size).values()) <= 1
        with torch.no_grad():
            assert module(size).shape == graph(size).shape
        check_equal_bits(module, size, [module(size)], monkeypatch)


def early(conv: nn.Module, x: Tensor) -> Tensor:
    """A part that is made before the convolution beside it, in the order of the caller's tensor."""
    y = torch.tanh(x) + 0.1
    return torch.cat([conv(conv(y)), y], 1)


def early_floats(conv: nn.Module, x: Tensor) -> Tensor:
    y = x.abs() / (1 + x.abs())
    return torch.cat([conv(y), y * 2, conv(y)], 1)


def behind_a_table(conv: nn.Module, x: Tensor) -> Tensor:
    """A part that was to lie as the convolution does, which the new step of the other was fused into."""
    y = torch.tanh(x.transpose(1, -1).contiguous()).transpose(1, -1)
    return torch.cat([conv(y), y], 1)


def twice_in_it(conv: nn.Module, x: Tensor) -> Tensor:
    y = F.gelu(conv(x))
    return torch.cat([y, x, y], 1)


@pytest.mark.parametrize("join", [early, early_floats, behind_a_table, twice_in_it], ids=lambda f: f.__name__)
@pytest.mark.parametrize("layer", ["conv1d", "conv2d", "conv3d", "depthwise"])
def test_parts_of_a_cat_may_be_made_in_any_order(layer: str, join: Callable[[nn.Module, Tensor], Tensor]) -> None:
    class Joined(nn.Module):
        def __init__(self, first: nn.Module, channels: int, dims: int) -> None:
            super().__init__()
            self.first = first
            self.last = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](channels, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(join(self.first, x))
            return result

    make, shape = LAYERS[layer]
    torch.manual_seed(1)
    x = example(shape)
    first = make()
    module, graph = converted(Joined(first, join(first, x).shape[1], x.dim() - 2), x)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    for size in (x, x[:1], x.contiguous(memory_format=last)):
        assert max(steps_apart(module, graph, size).values()) <= 1


def shared(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return x.tanh() + y + y * 0.5


def spread(m: Any, x: Tensor) -> Tensor:
    return x.tanh() + m[0](x).mean((2, 3), keepdim=True)


def two_at_once(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return y + y


# How a value and what a convolution makes are put together, and whether the convolution can do it.
FORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "other + conv": (lambda m, x: x.tanh() + m[0](x), 1),
    "other - conv": (lambda m, x: x.tanh() - m[0](x), 1),
    "conv - other": (lambda m, x: m[0](x) - x.tanh(), 1),
    "other + half of conv": (lambda m, x: torch.add(x.tanh(), m[0](x), alpha=0.5), 1),
    "other - twice conv": (lambda m, x: torch.sub(x.tanh(), m[0](x), alpha=2), 1),
    "conv - conv": (lambda m, x: m[0](x.tanh()) - m[0](x), 1),
    "relu of other - conv": (lambda m, x: torch.relu(x.tanh() - m[0](x)), 1),
    "other + conv that is read again": (shared, 0),
    "other + conv that is spread": (spread, 0),
    "conv + itself": (two_at_once, 0),
    "other * conv": (lambda m, x: x.tanh() * m[0](x), 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_makes_sums_and_differences(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, count = FORMS[form]
    x, results = example((2, 8, 5, 6)), []
    for fused in (True, False):
        torch.manual_seed(1)
        layers = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        if not fused:
            monkeypatch.setattr(region, "fuse", lambda network, example: network)
        module, graph = converted(Through(lambda m, x: m[1](function(m, x)), *layers), x)
        sums = [layer for layer in region_of(module).network.layers if isinstance(layer, Conv) and layer.residual is not None]
        assert len(sums) == (count if fused else 0)
        assert max(steps_apart(module, graph, x).values()) <= 1
        results.append(module(x))
    assert torch.equal(*results) or form == "conv - conv"  # there the later one makes the difference, whose operands turn around
