"""Graphs at every stage of models of many kinds, each made once in a process: what the tests of the contract look at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_to_reference_fx, fuse_fx, prepare_fx, prepare_qat_fx
from qcompiler.config.qconfig import default_dynamic_qconfig, float16_dynamic_qconfig, float_qparams_weight_only_qconfig_4bit
from qcompiler.config.qconfig_mapping import QConfigMapping, get_default_qat_qconfig_mapping
from tests import zoo
from tests.flow import randn, randomized


class Sequence(nn.Module):
    """1-dimensional convolutions, attention, a GRU, an embedding; the result is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru, self.embed = nn.Conv1d(8, 16, 3, padding=1), nn.GRU(16, 16, batch_first=True), nn.Embedding(50, 8)
        self.linear, self.up, self.norm = nn.Linear(16, 32), nn.ConvTranspose1d(32, 16, 2, stride=2), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.conv(self.embed(words).transpose(1, 2))).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        x, _ = self.gru(x)
        z = torch.tanh(self.linear(x)).transpose(1, 2)
        return {"up": torch.cat([self.up(z), self.up(z * 2)], 1), "mean": self.norm(x).mean(1)}


class Parts(nn.Module):
    """Tuples of int8 values, sizes that are asked for, values that float ops read, and constants as operands."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2), nn.Linear(4, 5)
        self.table = nn.Parameter(torch.linspace(-1, 1, 8).reshape(1, 8, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        x = self.first(x).relu() + self.table
        a, b = x.chunk(2, 1)
        y = self.second(F.pad(a * b, (1, 2, 0, 1)))
        rows = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])
        return self.last(rows), torch.cumsum(y, 2), y.shape[-1]


class Resizes(nn.Module):
    """Pools with and without ceil_mode, resizes, slices and unfolds: where sizes are floors of the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep, self.up = (
            nn.Conv2d(3, 8, 5, stride=2, padding=1),
            nn.Conv2d(8, 8, 3, dilation=2),
            nn.ConvTranspose2d(8, 4, 3, 2),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.hardswish(self.conv(x))
        y = F.max_pool2d(self.deep(x), 3, 2, 1, ceil_mode=True)
        z = F.interpolate(y, size=x.shape[-2:], mode="nearest")
        up = self.up(F.avg_pool2d(x + z, 2))
        return up[:, :, ::3, 1:-1], F.interpolate(up, scale_factor=1.5), F.adaptive_avg_pool2d(up, (3, None)).flatten(2)


class Branch(nn.Module):
    """An `if` on data: which of two values is meant is known at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 0:
            x = self.second(x)
        return x.relu()


def small_head() -> nn.Module:
    """vgg11_bn with a head of 1.6 million weights instead of 124: what is read of it is the same."""
    model = zoo.load("vgg11_bn")
    model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)).eval()
    return model


@dataclass(frozen=True)
class Entry:
    """A model with the arguments of one call. `sizes`: other arguments, whose sizes differ."""

    model: Callable[[], nn.Module]
    inputs: Callable[..., tuple[Any, ...]]
    mapping: Any = None


def images(batch: int = 2, height: int = 64, width: int = 64) -> tuple[Tensor]:
    return (randn(batch, 3, height, width),)


def words(batch: int = 2, length: int = 12) -> tuple[Tensor]:
    return (torch.arange(batch * length).reshape(batch, length) * 7 % 50,)


def rows(batch: int = 2, length: int = 5) -> tuple[Tensor]:
    return (randn(batch, length, 8),)


def _small(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return randomized(make())

    return build


VISION = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet", "efficientnet_b0", "squeezenet1_1")
WIDE = ("densenet121", "convnext_tiny", "swin_t", "regnet_y_400mf", "vgg11_bn")  # slow ones
DYNAMIC = QConfigMapping().set_global(default_dynamic_qconfig)
HALF = QConfigMapping().set_global(float16_dynamic_qconfig)
FOUR_BIT = QConfigMapping().set_object_type(nn.Embedding, float_qparams_weight_only_qconfig_4bit).set_object_type(
    nn.Linear, float_qparams_weight_only_qconfig_4bit)  # fmt: skip
ENTRIES: dict[str, Entry] = {
    **{name: Entry(lambda name=name: zoo.few(name), images) for name in (*VISION, *WIDE)},  # type: ignore[misc]
    "vgg11_bn": Entry(small_head, images),
    "sequence": Entry(_small(Sequence), words),
    "sequence dynamic": Entry(_small(Sequence), words, DYNAMIC),
    "sequence float16": Entry(_small(Sequence), words, HALF),
    "sequence 4 bits": Entry(_small(Sequence), words, FOUR_BIT),
    "parts": Entry(_small(Parts), images),
    "resizes": Entry(_small(Resizes), images),
    "branch": Entry(_small(Branch), rows),
}
SMALL = tuple(name for name in ENTRIES if name not in (*VISION, *WIDE))


KEPT_BYTES = 400 << 20  # of all graphs together: a pytest worker meets the same models in several files
_kept: OrderedDict[tuple[str, str], tuple[fx.GraphModule, int]] = OrderedDict()


def _keep(make: Callable[[str], fx.GraphModule]) -> Callable[[str], fx.GraphModule]:
    """Makes a graph once, as long as there is room: those that were not asked for longest are let go."""

    def kept(name: str) -> fx.GraphModule:
        key = (make.__name__, name)
        if key not in _kept:
            made = make(name)
            _kept[key] = made, sum(t.numel() * t.element_size() for t in (*made.parameters(), *made.buffers()))
        _kept.move_to_end(key)
        while len(_kept) > 1 and sum(size for _, size in _kept.values()) > KEPT_BYTES:
            _kept.popitem(last=False)
        return _kept[key][0]

    return kept


@_keep
def fused(name: str) -> fx.GraphModule:
    entry = ENTRIES[name]
    return fuse_fx(entry.model(), entry.inputs())


@_keep
def observed(name: str) -> fx.GraphModule:
    entry = ENTRIES[name]
    return prepare_fx(entry.model(), entry.mapping, entry.inputs())


@_keep
def quantized(name: str) -> fx.GraphModule:
    calibrate(observed(name), [ENTRIES[name].inputs()])
    return convert_to_reference_fx(observed(name))


@_keep
def trained(name: str) -> fx.GraphModule:
    """The QUANTIZED graph of a model that was prepared for training."""
    entry = ENTRIES[name]
    prepared = prepare_qat_fx(entry.model().train(), get_default_qat_qconfig_mapping(), entry.inputs())
    prepared(*entry.inputs())
    return convert_to_reference_fx(prepared.eval())
