"""Small networks for the native back end, one for each kind of layer, and how far C and the QUANTIZED graph are apart layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import qcompiler
from qcompiler.backends.native.build.library import here
from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.native.regions import regions_of
from qcompiler.debug import compute_sqnr
from tests import native_layers


class Through(nn.Module):
    """A model whose forward is a function of its layers and the input."""

    def __init__(self, forward: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layers, x)


def conv(i: int, o: int, k: int = 3, **settings: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, bias=False, **settings), nn.BatchNorm2d(o), nn.ReLU())


def between(*layers: nn.Module) -> Callable[[], nn.Module]:
    """Layers of 8 channels between two convolutions, 3 to 8 and 8 to 4 channels."""
    return lambda: nn.Sequential(conv(3, 8), *layers, conv(8, 4, 1))


def residual(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[2](F.relu(m[1](y) + y))


def both_sides(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[3](m[1](y) + m[2](y))


def squeeze_and_excite(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[3](y * torch.sigmoid(m[2](F.relu(m[1](y.mean((2, 3), keepdim=True))))))


def shuffled(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    n, c, h, w = y.shape
    y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    a, b = y.chunk(2, dim=1)
    return m[2](torch.cat([a, m[1](b)], 1))


def resized(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[2](F.interpolate(m[1](y), size=y.shape[-2:], mode="bilinear", align_corners=False) + y)


def numbers(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[1](torch.sub(1 - y / 3, m[2](y), alpha=2) * 0.5 + 1)


def joined(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[3](torch.cat([m[1](y), m[2](y) * 3, y], 1))


def tokens(m: Any, x: Tensor) -> Tensor:
    y = m[0](x).flatten(2).transpose(1, 2)
    return m[1](y)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Sequential(conv(3, 16), conv(16, 24, 3, padding=1, stride=2)), (2, 3, 17, 13)),
    "one channel": (lambda: nn.Sequential(conv(1, 1, 3, padding=1), conv(1, 5, 2)), (1, 1, 9, 11)),
    "dilated": (lambda: conv(4, 8, 3, padding=2, dilation=2), (1, 4, 12, 10)),
    "groups": (lambda: nn.Sequential(conv(8, 8, 1), conv(8, 12, 3, padding=1, groups=4)), (1, 8, 7, 7)),
    "depthwise": (lambda: nn.Sequential(conv(6, 20, 1), conv(20, 20, 5, padding=2, groups=20, stride=2)), (1, 6, 15, 14)),
    "residual": (lambda: Through(residual, conv(3, 8), nn.Conv2d(8, 8, 3, padding=1), conv(8, 4, 1)), (2, 3, 10, 9)),
    "two convolutions added": (lambda: Through(both_sides, conv(3, 8), *(nn.Conv2d(8, 6, 1) for _ in "ab"), conv(6, 4, 3)), (1, 3, 8, 8)),
    "squeeze and excite": (lambda: Through(squeeze_and_excite, conv(3, 8), conv(8, 4, 1), nn.Conv2d(4, 8, 1), conv(8, 4, 1)), (2, 3, 9, 7)),
    "shuffle": (lambda: Through(shuffled, conv(3, 16), conv(8, 8, 3, padding=1), conv(16, 4, 1)), (1, 3, 8, 9)),
    "sums with numbers": (lambda: Through(numbers, conv(3, 8), conv(8, 4, 1), nn.Conv2d(8, 8, 1)), (1, 3, 8, 8)),
    "cat": (lambda: Through(joined, conv(3, 8), conv(8, 4, 1), nn.Conv2d(8, 6, 1), conv(18, 5, 3, padding=1)), (1, 3, 8, 8)),
    "pools": (between(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1)), (1, 3, 21, 20)),
    "average without padding": (between(nn.AvgPool2d(3, 1, 1, count_include_pad=False)), (1, 3, 9, 9)),
    "adaptive": (lambda: nn.Sequential(between(nn.AdaptiveAvgPool2d((3, 2)))(), nn.Flatten(), nn.Linear(24, 3)), (2, 3, 11, 9)),
    "nearest": (between(nn.Upsample(scale_factor=2)), (1, 3, 9, 8)),
    "exact factor": (between(nn.Upsample(scale_factor=(1.5, 2.5), mode="nearest-exact")), (1, 3, 9, 8)),
    "bilinear": (between(nn.Upsample(scale_factor=1.7, mode="bilinear")), (1, 3, 9, 8)),
    "bilinear to a size": (between(nn.Upsample(size=(11, 5), mode="bilinear", align_corners=True)), (1, 3, 9, 8)),
    "to another's size": (lambda: Through(resized, conv(3, 8), conv(8, 8, 3, stride=2), conv(8, 4, 1)), (2, 3, 9, 8)),
    "functions": (between(nn.Conv2d(8, 8, 1), nn.Hardswish(), nn.MaxPool2d(2), nn.SiLU()), (1, 3, 9, 9)),
    "norm before activation": (between(nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()), (1, 3, 9, 9)),
    "linear": (lambda: nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 7)), (5, 20)),
    "rows": (lambda: nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 7)), (2, 3, 20)),
    "tokens": (lambda: Through(tokens, nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 9)), (2, 3, 12, 8)),
    "sequence": (lambda: nn.Sequential(nn.Conv1d(6, 12, 5, 2, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(12, 4, 1)), (2, 6, 31)),
    "volume": (lambda: nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 4, 1)), (1, 3, 6, 8, 10)),
}  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """Seeded statistics of BatchNorm, so that folding it shows."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


def example(shape: tuple[int, ...], seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def converted(model: nn.Module, x: Tensor) -> tuple[Any, fx.GraphModule]:
    """The native module, and the QUANTIZED graph with the same qparams."""
    prepared = qcompiler.prepare_fx(shaken(model), None, (x,), backend="native")
    qcompiler.calibrate(prepared, [x, example(tuple(x.shape), 6)])
    return qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared)


def net(name: str) -> tuple[Any, fx.GraphModule, Tensor]:
    torch.manual_seed(1)
    make, shape = NETS[name]
    x = example(shape)
    return (*converted(make(), x), x)


def steps_apart(module: Any, graph: fx.GraphModule, x: Tensor) -> dict[str, int]:
    """By layer, how many quanta the C is from the QUANTIZED graph on equal inputs; a fused layer counts with what it was fused into."""
    return native_layers.steps_apart(native_layers.watched(module, (x,), {}).values, graph, (x,), {})


def region_of(module: Any) -> NativeRegion:
    (region,) = regions_of(module)
    return region


def check_equal_bits(module: Any, given: Tensor, expected: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same results on every instruction set that the machine has, on one thread and on four."""
    before = torch.get_num_threads()
    for cap in here():
        monkeypatch.setenv("QCOMPILER_ISA", cap)
        capped = copy.deepcopy(module)
        for threads in (1, 4):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, pytree.tree_leaves(capped(given)), expected)), (cap, threads)
        torch.set_num_threads(before)


def check_bits(module: Any, graph: fx.GraphModule, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the QUANTIZED graph at three sizes of the batch, with equal bits on every instruction set and number of threads."""
    for given in (x, torch.cat([x, example(tuple(x.shape), 9)]), x[:0]):
        with torch.inference_mode():
            expected, near = (pytree.tree_leaves(made(given)) for made in (module, graph))
        for a, b in zip(near, expected, strict=True):
            assert a.shape == b.shape and (not a.numel() or compute_sqnr(a, b) > 35)
        check_equal_bits(module, given, expected, monkeypatch)
