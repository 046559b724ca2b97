"""Small networks for the ONNX export, one for each thing that it has to get right."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.native_nets import conv


class Bert(nn.Module):
    """Embeddings, attention under a mask that is made of integers, and layers as BERT has them."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2, words: int = 50) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(words, width), nn.Embedding(24, width), nn.Embedding(2, width)
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.layers = nn.ModuleList(nn.ModuleDict({
            **{name: nn.Linear(width, width) for name in ("query", "key", "value", "out")},
            "up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width),
            "first": nn.LayerNorm(width), "second": nn.LayerNorm(width),
        }) for _ in range(depth))  # fmt: skip
        self.pooler = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.places(places) + self.kinds(torch.zeros_like(input_ids)))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer["first"](x + self._attention(layer, x, mask))
            x = layer["second"](x + layer["down"](F.gelu(layer["up"](x))))
        return {"last_hidden_state": x, "pooler_output": torch.tanh(self.pooler(x[:, 0]))}

    def _attention(self, layer: Any, x: Tensor, mask: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

        q, k, v = (heads(layer[name](x)) for name in ("query", "key", "value"))
        products = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
        made = torch.softmax(products, -1) @ v
        return layer["out"](made.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class UNet(nn.Module):
    """Two levels, transposed convolutions upwards, and what is skipped joined on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8, padding=1), conv(8, 16, padding=1), conv(16, 16, padding=1)
        self.up, self.d = nn.ConvTranspose2d(16, 16, 2, 2), conv(32, 8, padding=1)
        self.up2, self.e = nn.ConvTranspose2d(8, 8, 2, 2), conv(16, 8, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up(c), b], 1))
        return self.head(self.e(torch.cat([self.up2(d), a], 1)))


class Yolo(nn.Module):
    """Boxes off two levels: a grid made of the sizes, sigmoids, slices, one table of all boxes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem, self.down, self.top = conv(3, 16, padding=1, stride=4), conv(16, 16, padding=1, stride=2), conv(32, 16, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(16, 5 + classes, 1) for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, Any]:
        near = self.stem(x)
        far = self.down(near)
        near = self.top(torch.cat([near, F.interpolate(far, scale_factor=2.0)], 1))
        boxes = [self._boxes(head(level), step) for head, level, step in zip(self.heads, (near, far), (4, 8))]
        table = torch.cat(boxes, 1)
        return {"boxes": table[..., :4], "scores": (table[..., 4:5], table[..., 5:].softmax(-1))}

    @staticmethod
    def _boxes(raw: Tensor, step: int) -> Tensor:
        n, c, h, w = raw.shape
        ys, xs = torch.arange(h).view(1, h, 1, 1).expand(1, h, w, 1), torch.arange(w).view(1, 1, w, 1).expand(1, h, w, 1)
        raw = raw.permute(0, 2, 3, 1)
        centre = (torch.sigmoid(raw[..., :2]) + torch.cat([xs, ys], -1).float()) * step
        made = torch.cat([centre, raw[..., 2:4].clamp(max=4).exp() * step, torch.sigmoid(raw[..., 4:5]), raw[..., 5:]], -1)
        return made.reshape(n, h * w, c)


class Recurrent(nn.Module):
    """A bidirectional layer and cells over time."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Linear(6, 8), kind(8, 12, 2, batch_first=True, bidirectional=True), nn.Linear(24, 5)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.layer(self.before(x))
        return self.after(y), state[0] if isinstance(state, tuple) else state


class Decides(nn.Module):
    """Heads of two kinds in nested containers; one result is handed out twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = conv(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        y = self.body(inputs["image"]) * inputs["weight"][:, None, None, None]
        first = self.a(y)
        return OrderedDict(logits=first, aux=[self.b(y), first], seen=inputs["weight"])


def tokens(*shape: int, most: int = 50) -> Tensor:
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(4))


def randn(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask(n: int, length: int) -> Tensor:
    return (torch.arange(length)[None] < torch.tensor([length - i for i in range(n)])[:, None]).long()


# Model, arguments of the example, arguments at other sizes.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], tuple[Any, ...]]] = {
    "bert": (Bert, (tokens(2, 9), mask(2, 9)), (tokens(3, 14), mask(3, 14))),
    "u-net": (UNet, (randn(2, 3, 16, 24),), (randn(1, 3, 32, 16),)),
    "yolo": (Yolo, (randn(1, 3, 32, 48),), (randn(2, 3, 64, 32),)),
    "lstm": (lambda: Recurrent(nn.LSTM), (randn(2, 7, 6),), (randn(3, 4, 6),)),
    "gru": (lambda: Recurrent(nn.GRU), (randn(2, 7, 6),), (randn(3, 4, 6),)),
    "containers": (Decides, ({"image": randn(2, 3, 9, 9), "weight": randn(2)},), ({"image": randn(3, 3, 8, 12), "weight": randn(3)},)),
    "transformer": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False),
                    (randn(2, 6, 32),), (randn(3, 9, 32),)),
}  # fmt: skip
