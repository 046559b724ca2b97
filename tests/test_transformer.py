"""What keeps a transformer accurate: float residual stream and attention, int8 linears."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from qcompiler.ir.types import quant_of


class Block(nn.Module):
    """A pre-norm block whose residual stream has one channel far larger than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.offset = nn.Parameter(torch.zeros(32).index_fill(0, torch.tensor([3]), 200.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0] + self.offset
        h = self.norm2(x)
        return self.norm1(x + self.down(nn.functional.gelu(self.up(h))))


def test_the_residual_stream_stays_float_and_the_linears_are_int8() -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 10, 32)
    prepared = qcompiler.prepare_fx(model, None, (x,))
    prepared(x)
    kinds = {row.op: row.int8 for row in qcompiler.explain(qcompiler.convert_fx(prepared)).rows}
    assert kinds["linear"] and kinds["gelu"] and not kinds["add"] and not kinds["layer_norm"]
    assert compute_sqnr(model(x), qcompiler.convert_fx(prepared)(x)) > 30
    assert any("normalizations" in remark.text for remark in qcompiler.remarks(prepared))


class Residual(nn.Module):
    """An ordinary residual block: its sum feeds a convolution too, so it is int8."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        return self.norm(y) + self.a(y)


def test_a_sum_that_a_convolution_uses_is_int8() -> None:
    prepared = qcompiler.prepare_fx(Residual().eval(), None, (torch.randn(1, 4, 8, 8),))
    assert all(quant_of(n).int8 for n in prepared.graph.nodes if n.name in ("add", "group_norm"))


class Tokens(nn.Module):
    """A class token far smaller than the patches of the image behind it, as a ViT begins; `user` also takes both."""

    def __init__(self, user: nn.Module | None = None) -> None:
        super().__init__()
        self.patches, self.user = nn.Conv2d(3, 32, 4, 4), user
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 32) * 0.01), nn.Parameter(torch.randn(1, 17, 32) * 0.01)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2) * 10
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        result = self.head(self.norm(tokens + self.position))[:, 0]
        return result if self.user is None else result + self.user(tokens)[:, 0]


def int8_cat(model: nn.Module, x: Tensor) -> tuple[bool, float]:
    module = qcompiler.quantize(model, [x], progress=False)
    cat = next(row for row in qcompiler.explain(module).rows if row.op == "cat")
    return cat.int8, float(compute_sqnr(model(x), module(x)))


def test_a_class_token_is_not_rounded_to_the_steps_of_the_patches() -> None:
    torch.manual_seed(0)
    int8, sqnr = int8_cat(Tokens().eval(), torch.randn(2, 3, 16, 16))
    assert not int8 and sqnr > 30


def test_a_cat_that_a_linear_uses_is_int8() -> None:
    torch.manual_seed(0)
    model = Tokens(nn.Linear(32, 32)).eval()
    nn.init.normal_(model.token, std=3.0)  # as large as the patches: a part that their steps would round to nothing makes the cat float
    assert int8_cat(model, torch.randn(2, 3, 16, 16))[0]


class Spectrum(nn.Module):
    """The logarithm of a magnitude: parts of one convolution squared, added, rooted; then a layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stft, self.head = nn.Conv1d(1, 16, 8, stride=4, bias=False), nn.Conv1d(8, 4, 3)

    def forward(self, x: Tensor, power: float = 0.5) -> Tensor:
        y = self.stft(x)
        return self.head((y[:, :8] ** 2 + y[:, 8:] ** 2) ** power)


def test_squares_that_a_root_reads_stay_float() -> None:
    torch.manual_seed(0)
    loud = torch.cat([torch.full((8,), 0.01), torch.full((8,), 1.0), torch.full((8,), 0.1)]).repeat_interleave(8)
    model, x = Spectrum().eval(), torch.randn(4, 1, 192) * loud
    prepared = qcompiler.prepare_fx(model, None, (x,))
    prepared(x)
    small = qcompiler.convert_fx(prepared)
    rows = {row.node: row for row in qcompiler.explain(small).rows}
    assert {row.code for row in rows.values() if row.op in ("pow", "add")} == {"steep-users", "float-input"}
    assert all(row.int8 for row in rows.values() if row.op == "conv1d")
    assert compute_sqnr(model(x), small(x)) > 30  # in int8 throughout: 17


def test_squares_that_a_square_or_a_sum_reads_are_int8() -> None:
    prepared = qcompiler.prepare_fx(Spectrum().eval(), None, (torch.randn(2, 1, 64),), concrete_args={"power": 1.5})
    assert all(quant_of(n).int8 for n in prepared.graph.nodes if n.name in ("pow_1", "add", "pow_3"))


class Quotient(nn.Module):
    def __init__(self, divide: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.divide = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), divide

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(self.divide(y, y * y))


@pytest.mark.parametrize(("divide", "stays_float"), [
    (lambda y, z: 1 / (z + 0.01), True), (lambda y, z: y / (z + 0.01), True), (lambda y, z: (z + 0.01).reciprocal(), True),
    (lambda y, z: z / 2, False), (lambda y, z: z / 3 + y, False), (lambda y, z: 1 / (z + 0.01) + (z + 0.01), False),
])  # fmt: skip
def test_what_only_divides_stays_float(divide: Callable[[Tensor, Tensor], Tensor], stays_float: bool) -> None:
    torch.manual_seed(0)
    prepared = qcompiler.prepare_fx(Quotient(divide).eval(), None, (torch.randn(2, 3, 9, 9),))
    square = next(row for row in qcompiler.explain(prepared).rows if row.op == "mul")
    assert (square.code == "steep-users") == stays_float and square.int8 != stays_float
