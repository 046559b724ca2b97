"""What keeps a transformer accurate: float residual stream and attention, int8 linears."""

from __future__ import annotations

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


class ClassToken(nn.Module):
    """A small learned token joined to large patches, as in every vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv1d(3, 16, 4, stride=4), nn.LayerNorm(16), nn.Linear(16, 5)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16) * 0.01), nn.Parameter(torch.randn(1, 9, 16) * 0.01)

    def forward(self, x: Tensor, norm: bool = True) -> Tensor:
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), self.patches(x).transpose(1, 2)], 1)
        return self.head(self.norm(y + self.places)[:, 0] if norm else y)


def test_a_cat_that_only_the_residual_stream_uses_stays_float() -> None:
    torch.manual_seed(0)
    model, x = ClassToken().eval(), 10 * torch.randn(4, 3, 32)
    prepared = qcompiler.prepare_fx(model, None, (x,))
    prepared(x)
    small = qcompiler.convert_fx(prepared)
    rows = {row.op: row for row in qcompiler.explain(small).rows}
    assert rows["cat"].code == "float-users" and rows["conv1d"].int8 and rows["linear"].int8
    assert compute_sqnr(model(x), small(x)) > 30  # 10 with a token on the scale of the patches


def test_a_cat_that_a_linear_uses_is_int8() -> None:
    prepared = qcompiler.prepare_fx(ClassToken().eval(), None, (torch.randn(2, 3, 32),), concrete_args={"norm": False})
    assert next(quant_of(n).int8 for n in prepared.graph.nodes if n.name == "cat")
