"""Networks with floats between their int8 layers: one native region, the bits of every instruction set, near the QUANTIZED graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.build.library import here
from qcompiler.debug import compute_sqnr
from qcompiler.vision import import_torchvision
from tests.native_nets import Through, conv, converted, example, region_of


def vit() -> nn.Module:
    model = import_torchvision().models.VisionTransformer(16, 4, 2, 2, 24, 40, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model  # type: ignore[no-any-return]


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(12, 20, 1), CNBlockConfig(20, None, 1)], layer_scale=0.5, num_classes=5)


class Encoder(nn.Module):
    """A BERT encoder behind its embeddings."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(20, 2, 36, activation="gelu", batch_first=True, norm_first=norm_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[:, 0])  # type: ignore[no-any-return]


def attend(m: Any, x: Tensor) -> Tensor:
    q, k, v = m[0](x).chunk(3, -1)
    scores = torch.matmul(q, k.transpose(-2, -1)) / 3.0
    return m[1](torch.matmul(F.softmax(scores, dim=-1), v))  # type: ignore[no-any-return]


def causal(m: Any, x: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in m[0](x).chunk(3, -1))
    made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return m[1](made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def pointwise(m: Any, x: Tensor) -> Tensor:
    y = F.layer_norm(m[0](x), (12,))
    y = torch.tanh(y) * 2 - torch.exp(-y.abs()) + y.clamp(-1, 1) / (1.5 + torch.sigmoid(y))
    return m[1](torch.cat([y, F.gelu(y).mean(-1, keepdim=True), y.amax(-1, keepdim=True)], -1))  # type: ignore[no-any-return]


def softmax_of_channels(m: Any, x: Tensor) -> Tensor:
    return m[1](torch.softmax(m[0](x), 1) + 1)  # type: ignore[no-any-return]


def running(m: Any, x: Tensor) -> Tensor:
    """Sums of codes along channels, and of floats along two other dimensions."""
    y = torch.cumsum(m[0](x), 1) * 0.1
    return m[1](torch.tanh(y).cumsum(dim=-1) + y.cumsum(0))  # type: ignore[no-any-return]


def turned(m: Any, x: Tensor) -> Tensor:
    """A linear of rows that do not follow each other in memory."""
    return m[1](m[0](x).permute(0, 2, 3, 1).transpose(1, 2))  # type: ignore[no-any-return]


def normed(norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(conv(3, 8), norm(), nn.Conv2d(8, 8, 3, padding=1), norm(), nn.ReLU(), nn.Conv2d(8, 4, 1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit": (vit, (1, 3, 16, 16)),
    "convnext": (convnext, (1, 3, 32, 32)),
    "encoder": (Encoder, (2, 9, 20)),
    "encoder, norm first": (lambda: Encoder(True), (2, 9, 20)),
    "attention by hand": (lambda: Through(attend, nn.Linear(12, 30), nn.Linear(10, 4)), (2, 7, 12)),
    "causal attention": (lambda: Through(causal, nn.Linear(12, 36), nn.Linear(12, 4)), (2, 19, 12)),
    "pointwise": (lambda: Through(pointwise, nn.Linear(12, 12), nn.Linear(14, 4)), (2, 7, 12)),
    "running sums": (lambda: Through(running, conv(3, 5), nn.Conv2d(5, 4, 1)), (2, 3, 6, 7)),
    "softmax of channels": (lambda: Through(softmax_of_channels, conv(3, 5), nn.Conv2d(5, 4, 1)), (2, 3, 6, 7)),
    "rows that are not in order": (lambda: Through(turned, conv(3, 8), nn.Linear(8, 5)), (2, 3, 5, 7)),
    "group norm": (normed(lambda: nn.GroupNorm(2, 8)), (2, 3, 9, 7)),
    "instance norm": (normed(lambda: nn.InstanceNorm2d(8, affine=True)), (2, 3, 9, 7)),
    "layer norm of images": (normed(lambda: nn.LayerNorm((8, 7, 5), elementwise_affine=False)), (2, 3, 9, 7)),
    "rms norm": (lambda: nn.Sequential(nn.Linear(12, 10), nn.RMSNorm(10), nn.Linear(10, 3)), (2, 5, 12)),
}


@pytest.fixture(scope="module")
def made() -> Callable[[str], tuple[Any, Any, Tensor]]:
    known: dict[str, tuple[Any, Any, Tensor]] = {}

    def make(name: str) -> tuple[Any, Any, Tensor]:
        if name not in known:
            torch.manual_seed(2)
            model, x = NETS[name][0]().eval(), example(NETS[name][1])
            known[name] = (*converted(model, x), x)
        return known[name]

    return make


Made = Callable[[str], tuple[Any, Any, Tensor]]


@pytest.mark.parametrize("name", NETS)
def test_it_is_one_region_near_the_quantized_graph(made: Made, name: str) -> None:
    module, graph, x = made(name)
    region_of(module)
    calls = {call.op for call in module.program.calls if not call.op.startswith(("guard.", "operator."))}
    assert calls == {"runtime.run_region"}  # beside it numbers made of sizes, and checks of them
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    more = x[:1] if name == "layer norm of images" else torch.cat([x, example(tuple(x.shape), 9)])
    for given in (x, more):
        with torch.inference_mode():
            # A value at a half step falls to the other side here and there; all else is equal up to the last bits of floats.
            assert compute_sqnr(graph(given), module(given)) > 35, name


@pytest.mark.parametrize("name", NETS)
def test_equal_bits(made: Made, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, x = made(name)
    expected, before = module(x), torch.get_num_threads()
    for cap in here():
        monkeypatch.setenv("QCOMPILER_ISA", cap)
        capped = copy.deepcopy(module)
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                assert torch.equal(capped(x), expected), (cap, threads)
        finally:
            torch.set_num_threads(before)


def test_floats_alone_stay_in_torch() -> None:
    """A region without an int8 op gains nothing."""
    model = Through(lambda m, x: m[0](x).logcumsumexp(1).tanh() * 2, nn.Linear(4, 3))
    module, graph = converted(model, x := example((2, 4)))
    assert [call.op for call in module.program.calls].count("runtime.run_region") == 1
    with torch.no_grad():
        torch.testing.assert_close(module(x), graph(x), rtol=1e-5, atol=1e-6)


def test_results_of_several_kinds() -> None:
    """Floats that are read inside as well, a view of them, codes, and the same value twice."""

    def several(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        y = m[0](x)
        z = F.layer_norm(y, (6,))
        return y, z, z.transpose(0, 1), m[1](z), z

    module, graph = converted(Through(several, nn.Linear(4, 6), nn.Linear(6, 5)), x := example((2, 3, 4)))
    region_of(module)
    with torch.no_grad():
        for got, expected in zip(module(x), graph(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
