"""explain counts the multiply-accumulates of float ops too, so that the share of int8 is honest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import qcompiler
from qcompiler import explain, prepare_fx, remarks
from qcompiler.debug.sources import document_of
from qcompiler.errors import ConfigError
from qcompiler.quantization import quantize_dynamic
from tests.flow import flow, randn

A, B, Q, K, V = (2, 3, 4), (2, 4, 5), (2, 2, 6, 8), (2, 2, 7, 8), (2, 2, 7, 3)
SUMS: list[tuple[Callable[..., Any], tuple[tuple[int, ...], ...], int]] = [
    (torch.matmul, (A, B), 2 * 3 * 5 * 4),
    (torch.matmul, ((4,), (4,)), 4),
    (torch.matmul, ((4,), (4, 5)), 20),
    (torch.bmm, (A, B), 2 * 3 * 5 * 4),
    (lambda x, y: x @ y, (A, B), 2 * 3 * 5 * 4),
    (lambda x, y: x.bmm(y), (A, B), 2 * 3 * 5 * 4),
    (torch.mm, ((3, 4), (4, 5)), 60),
    (torch.mv, ((3, 4), (4,)), 12),
    (torch.dot, ((4,), (4,)), 4),
    (torch.addmm, ((3, 5), (3, 4), (4, 5)), 60),
    (lambda c, x, y: c.addmm(x, y), ((3, 5), (3, 4), (4, 5)), 60),
    (lambda c, x, y: torch.addmm(c, mat1=x, mat2=y), ((3, 5), (3, 4), (4, 5)), 60),
    (torch.baddbmm, ((2, 3, 5), A, B), 2 * 3 * 5 * 4),
    (torch.addbmm, ((3, 5), A, B), 2 * 3 * 5 * 4),
    (lambda x, y: torch.einsum("bij,bjk->bik", x, y), (A, B), 2 * 3 * 5 * 4),
    (lambda x, y: torch.einsum("bij,bjk", [x, y]), (A, B), 2 * 3 * 5 * 4),
    (lambda x, y: torch.einsum("...ij,...jk->...ik", x, y), ((7, 2, 3, 4), (2, 4, 5)), 7 * 2 * 3 * 4 * 5),
    (lambda x: torch.einsum("bij->bji", x), (A,), 0),
    (F.scaled_dot_product_attention, (Q, K, V), 2 * 2 * 6 * 7 * (8 + 3)),
    (lambda q, k, v: F.scaled_dot_product_attention(query=q, key=k, value=v, scale=0.5), (Q, K, V), 2 * 2 * 6 * 7 * (8 + 3)),
    (lambda x, w: F.conv2d(x, w, groups=2), ((1, 4, 6, 6), (6, 2, 3, 3)), 6 * 4 * 4 * 2 * 9),
    (lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2), ((1, 4, 6, 6), (4, 3, 3, 3)), 4 * 36 * 3 * 9),
    (lambda x, w: F.linear(x, w), (A, (5, 4)), 2 * 3 * 5 * 4),
    (lambda x, y: x * y + x.sum(), ((3, 4), (3, 4)), 0),
]


class Sum(nn.Module):
    """A float op on its inputs, beside an int8 linear of 16 multiply-accumulates a row."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, row: Tensor, *operands: Tensor) -> Any:
        return self.linear(row), self.function(*operands)


@pytest.mark.parametrize(("function", "shapes", "macs"), SUMS)
def test_float_sums_are_counted(function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], macs: int) -> None:
    model = Sum(function).eval()
    examples = (randn(1, 4), *(randn(*shape, seed=i) for i, shape in enumerate(shapes)))
    explanation = explain(prepare_fx(model, None, examples))
    assert sum(row.macs for row in explanation.rows if not row.int8) == macs
    assert explanation.int8_mac_share == 16 / (16 + macs) and not explanation.uncounted


def flops(model: nn.Module, *args: Tensor) -> int:
    """Of the operators that torch counts: the fused attention of inference mode is none."""
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        model(*args)
    return counter.get_total_flops()


class Block(nn.Module):
    """Attention and an MLP, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.patch, self.mlp = nn.Conv2d(3, 16, 4, stride=4), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2, groups=2)

    def forward(self, x: Tensor) -> Any:
        y = self.patch(x)
        tokens = y.flatten(2).transpose(1, 2)
        z = self.norm(tokens)
        tokens = tokens + self.attention(z, z, z, need_weights=False)[0]
        return self.mlp(tokens), self.up(y)


def test_a_transformer_agrees_with_torch() -> None:
    """torch's FlopCounterMode counts two operations for each multiply-accumulate."""
    torch.manual_seed(0)
    model, x = Block().eval(), randn(2, 3, 32, 32)
    explanation = explain(flow(model, (x,)).module)
    assert 2 * sum(row.macs for row in explanation.rows) == flops(model, x)
    attention = 2 * 2 * 64 * 64 * (8 + 8)
    assert sum(row.macs for row in explanation.rows if not row.int8) == attention
    assert 0 < explanation.int8_mac_share < 1


def test_a_module_that_is_called_as_a_whole_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.RNN(4, 4)).eval()
    explanation = explain(flow(model, (randn(3, 4),)).module)
    assert explanation.uncounted == ("1",)
    parameters = sum(p.numel() for p in model[1].parameters())
    title = " ".join(str(explanation).split())
    assert [row.op for row in explanation.rows if not row.counted]
    assert f"without those of 1 (1 part called as a whole with {parameters} parameters)" in title


@pytest.mark.parametrize("ask", [explain, remarks])
def test_a_float_model_has_nothing_to_explain(ask):
    with pytest.raises(ConfigError, match=f"{ask.__name__} takes a prepared") as caught:
        ask(nn.Linear(2, 2))
    assert "convert_fx" in caught.value.hint


def test_no_share_where_nothing_was_counted():
    text = str(explain(quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear})))
    assert "not counted" in text and "%" not in text


@pytest.mark.parametrize("width", [44, 140])
def test_the_reason_code(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)).eval()
    mapping = qcompiler.get_default_qconfig_mapping().set_module_name("1", None)
    small = qcompiler.quantize(model, [torch.randn(2, 3, 8, 8)], mapping, progress=False)
    explanation = qcompiler.explain(small)
    assert [row.code for row in explanation.rows] == ["", "qconfig-none"]
    assert explanation.to_data()[1]["code"] == "qconfig-none"
    assert ("qconfig-none" in str(explanation).split("why float", 1)[1]) == (width == 140)
    assert "its qconfig is None" in str(explanation)
    assert [n.get("reason_code") for n in document_of(small).nodes_at(-1) if n.get("reason")] == ["qconfig-none"]
