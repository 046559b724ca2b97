"""What stands behind conv1d runs along its memory, with equal values on each engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
import qcompiler.debug
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES
from qcompiler.debug import compute_sqnr


class Behind(nn.Module):
    """An op on a conv1d's result, and another conv1d behind it."""

    def __init__(self, op: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], wider: int = 1) -> None:
        super().__init__()
        self.first, self.last, self.op = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8 * wider, 8, 3, padding=1), op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.op(self.first(x), x))  # type: ignore[no-any-return]


OPS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], int]] = {
    "add": (lambda y, x: y + x, 1),
    "swapped": (lambda y, x: x + y, 1),
    "add_relu": (lambda y, x: torch.relu(x + y), 1),
    "twice": (lambda y, x: (y + x) * y, 1),
    "itself": (lambda y, x: y + y, 1),
    "mul": (lambda y, x: y * x, 1),
    "sub": (lambda y, x: y - x, 1),
    "maximum": (lambda y, x: torch.maximum(y, x), 1),
    "number": (lambda y, x: (y * 0.5 + x) * 2.0, 1),
    "gates": (lambda y, x: torch.tanh(y) * torch.sigmoid(y), 1),
    "hardswish": (lambda y, x: F.hardswish(y) + x, 1),
    "gelu": (lambda y, x: F.gelu(y), 1),
    "relu6": (lambda y, x: F.relu6(y * 7) + x, 1),
    "clamp": (lambda y, x: torch.clamp(y + x, -0.3, 0.4), 1),
    "in place": (lambda y, x: F.leaky_relu_(y.add_(x), 0.2), 1),
    "cat": (lambda y, x: torch.cat([y, x], 1), 2),
    "cat of steps": (lambda y, x: torch.cat([y, x, y], -1), 1),
    "cat of batches": (lambda y, x: torch.cat([y, x]), 1),
    "keyword": (lambda y, x: torch.cat(tensors=[y, x], dim=1), 2),
    "chomp": (lambda y, x: y[:, :, :-2] + x[:, :, 2:], 1),
    "spread": (lambda y, x: y * y.mean(2, keepdim=True) + x, 1),
    "one channel": (lambda y, x: y + x[:, :1], 1),
    "turned": (lambda y, x: (y.transpose(1, 2) + x.transpose(1, 2)).transpose(1, 2), 1),
    "pool": (lambda y, x: F.max_pool1d(y + x, 2) + F.avg_pool1d(y, 2), 1),
    "norm": (lambda y, x: F.layer_norm(y + x, (y.shape[-1],)) + y, 1),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPS)
def test_ops_behind_conv1d(name: str, engine: str) -> None:
    """Five 8-bit steps in a row lose less than 30 dB leaves; a swapped dimension would leave about 0."""
    torch.manual_seed(3)
    op, wider = OPS[name]
    model = Behind(op, wider).eval()
    examples = [torch.randn(2, 8, 12) for _ in range(8)]
    module = qcompiler.quantize(model, examples, engine=engine, progress=False)
    with torch.no_grad():
        for x in (examples[0], torch.cat(examples[:3]), examples[1][:1], examples[1][:, :, :8]):
            assert module(x).shape == model(x).shape
            assert float(compute_sqnr(model(x), module(x))) > 22
            assert torch.equal(torch.jit.script(module)(x), module(x))


def lines(module: Any, *names: str) -> list[str]:
    return [line for line in module.code.splitlines() if any(f"= {name}(" in line for name in names)]


def residual_blocks(count: int) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.b(torch.relu(self.a(x))))

    return nn.Sequential(*(Block() for _ in range(count))).eval()


def test_sums_of_residual_blocks_are_given_dense_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At their memory, not by time: both operands of each sum are contiguous, so that the kernel goes through them at once."""
    model = nn.Sequential(residual_blocks(3), nn.Conv1d(8, 8, 1)).eval()  # the last sum is int8, since a convolution reads it
    module = qcompiler.quantize(model, [torch.randn(2, 8, 12)], engine="x86", progress=False)
    seen: list[bool] = []
    add = module.forward.__func__.__globals__["quantized_add"]

    def watched(a: torch.Tensor, b: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.extend(x.is_contiguous() for x in (a, b))
        return add(a, b, *rest)  # type: ignore[no-any-return]

    monkeypatch.setitem(module.forward.__func__.__globals__, "quantized_add", watched)
    for batch in (2, 1, 5):
        module(torch.randn(batch, 8, 12))
    assert seen == [True] * 18
    assert len(lines(module, "aten_contiguous")) == 1  # the input of the network; results of sums are rows as they are


def test_nothing_turns_without_conv1d() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(x + self.a(x)))  # type: ignore[no-any-return]

    assert not lines(qcompiler.quantize(Words().eval(), [torch.randn(2, 5, 8)], engine="x86", progress=False), "aten_transpose_int")


def test_conv2d_blocks_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 3)).eval()
    module = qcompiler.quantize(model, [torch.randn(2, 4, 8, 8)], engine="x86", progress=False)
    assert not lines(module, "aten_transpose_int")


def test_training_ends_in_equal_values() -> None:
    """convert's own parity check compares each value with the simulated one."""
    x = torch.randn(4, 8, 12)
    prepared = qcompiler.prepare_qat_fx(residual_blocks(2).train(), None, (x,))
    prepared(x)
    module = qcompiler.convert_fx(prepared.eval())
    assert lines(module, "aten_transpose_int")
    assert float(compute_sqnr(prepared(x), module(x))) > 25


@pytest.mark.parametrize("x", [
    torch.randn(2, 8, 12), torch.randn(2, 12, 8).transpose(1, 2), torch.randn(1, 12, 8).transpose(1, 2), torch.randn(2, 3, 8, 5)[:, :, ::2],
    torch.randn(1, 12, 8).transpose(1, 2).reshape(1, 8, 3, 4), torch.randn(2, 8, 3, 4).contiguous(memory_format=torch.channels_last),
    torch.randn(2, 2, 3, 4, 8).movedim(-1, 1), torch.randn(5, 4), torch.randn(4, 5).t(), torch.randn(7),
    torch.randn(0, 12, 8).transpose(1, 2),
    torch.randn(1, 1, 9).transpose(1, 2),
], ids=lambda x: f"{tuple(x.shape)} {x.stride()}")  # fmt: skip
def test_floats_are_quantized_along_their_memory(x: torch.Tensor) -> None:
    made = runtime.quantize_along(x, 0.03, 120)
    assert torch.equal(made, torch.quantize_per_tensor(x, 0.03, 120, torch.quint8))
    if x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        assert made.movedim(1, -1).is_contiguous()


class Speech(nn.Module):
    """Tokens (N, T, C) that a convolution takes as (N, C, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.point, self.head = nn.LayerNorm(8), nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(self.norm(x).transpose(1, 2)))
        return self.head((self.point(y) + y).permute(0, 2, 1))  # type: ignore[no-any-return]


class Image(nn.Module):
    """Tokens (N, H W, C) that a convolution takes as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.head = nn.LayerNorm(8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x).transpose(1, 2).reshape(x.shape[0], 8, 4, 4)
        return self.head(self.conv(y).flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [Speech, Image])
def test_tokens_become_images(make: type[nn.Module], engine: str) -> None:
    model, examples = make().eval(), [torch.randn(2, 16, 8) for _ in range(4)]
    module = qcompiler.quantize(model, examples, engine=engine, progress=False)
    assert len(lines(module, "quantize_along")) == 1
    with torch.no_grad():
        for x in (examples[0], examples[0][:1], torch.cat(examples)):
            assert float(compute_sqnr(model(x), module(x))) > 28
            assert torch.equal(torch.jit.script(module)(x), module(x))
    assert qcompiler.debug.compare(model, module, examples[:1]).output > 28


@pytest.mark.parametrize("dims", [2, 3])
def test_a_sum_beside_a_convolution_meets_one_layout(dims: int) -> None:
    """A float image is quantized with channels innermost, as the convolution hands on what is added to it."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = (nn.Conv2d, nn.Conv3d)[dims - 2](16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x) + x
            return self.first(y)

    x = torch.randn(2, 16, *[6] * dims, generator=torch.Generator().manual_seed(0))
    module = qcompiler.quantize(Residual().eval(), [x], progress=False, engine="x86")
    assert len(lines(module, "quantize_as_images")) == 1
    with torch.no_grad():
        assert torch.equal(torch.jit.script(module)(x), module(x))
        assert torch.equal(torch.cat([module(one[None]) for one in x]), module(x))
