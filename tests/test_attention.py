"""nn.MultiheadAttention in the graph flow: every argument computes what the module does, with int8 linears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import convert_fx, explain, prepare_qat_fx, remarks
from qcompiler.debug import compute_sqnr
from tests.flow import flow, randn

CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
PADDING = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]], dtype=torch.bool)
Call = Callable[[nn.MultiheadAttention, Tensor, Tensor], Any]


class Attention(nn.Module):
    """An attention behind a linear; `padding` is an input, as in models that batch sentences."""

    def __init__(self, call: Call, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.call, self.before = call, nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 4, **{"batch_first": True, **options})
        for name, value in self.attention.named_parameters():
            if "bias" in name:
                nn.init.normal_(value, std=0.1)

    def forward(self, x: Tensor, padding: Tensor) -> Any:
        out = self.call(self.attention, self.before(x), padding)
        return tuple(t for t in out if t is not None) if isinstance(out, tuple) else out


CASES: dict[str, tuple[Call, dict[str, Any]]] = {
    "self": (lambda m, x, p: m(x, x, x), {}),
    "no weights": (lambda m, x, p: m(x, x, x, need_weights=False)[0], {}),
    "weights of each head": (lambda m, x, p: m(x, x, x, average_attn_weights=False), {}),
    "length first": (lambda m, x, p: m(x, x, x), {"batch_first": False}),
    "by name": (lambda m, x, p: m(query=x, key=x, value=x)[0], {}),
    "cross": (lambda m, x, p: m(x[:, :3], x, x)[0], {}),
    "other sizes": (lambda m, x, p: m(x, x[..., :6], x[..., 6:10])[0], {"kdim": 6, "vdim": 4}),
    "no bias": (lambda m, x, p: m(x, x, x)[0], {"bias": False}),
    "one sentence": (lambda m, x, p: m(x[0], x[0], x[0], key_padding_mask=p[0]), {}),
    "boolean mask": (lambda m, x, p: m(x, x, x, attn_mask=CAUSAL)[0], {}),
    "boolean mask, no weights": (lambda m, x, p: m(x, x, x, attn_mask=CAUSAL, need_weights=False)[0], {}),
    "additive mask": (lambda m, x, p: m(x, x, x, attn_mask=torch.zeros(5, 5).masked_fill(CAUSAL, -torch.inf))[0], {}),
    "causal": (lambda m, x, p: m(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)[0], {}),
    "mask of each head": (lambda m, x, p: m(x, x, x, attn_mask=CAUSAL.expand(8, 5, 5))[0], {}),
    "padding": (lambda m, x, p: m(x, x, x, key_padding_mask=p), {}),
    "padding, no weights": (lambda m, x, p: m(x, x, x, key_padding_mask=p, need_weights=False)[0], {}),
    "large negative padding": (lambda m, x, p: m(x, x, x, key_padding_mask=p * -1e9)[0], {}),
    "padding and mask": (lambda m, x, p: m(x, x, x, key_padding_mask=p, attn_mask=CAUSAL)[0], {}),
    "learned key": (lambda m, x, p: m(x, x, x)[0], {"add_bias_kv": True}),
    "zero key": (lambda m, x, p: m(x, x, x)[0], {"add_zero_attn": True}),
    "learned and zero key, padding": (lambda m, x, p: m(x, x, x, key_padding_mask=p)[0], {"add_bias_kv": True, "add_zero_attn": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_arguments(name: str) -> None:
    call, options = CASES[name]
    model = Attention(call, **options).eval()
    example = (randn(2, 5, 16), PADDING)
    if name == "length first":
        example = (randn(5, 2, 16), PADDING)
    result = flow(model, example)
    with torch.no_grad():
        wanted, found, reference = model(*example), result.module(*example), result.reference(*example)
    for w, f, r in zip(*(x if isinstance(x, tuple) else (x,) for x in (wanted, found, reference)), strict=True):
        assert w.shape == f.shape and compute_sqnr(w, f) >= 24
        assert (f - r).abs().max() <= 0.02 * w.abs().max()
    linears = [row for row in explain(result.module).rows if row.op == "linear"]
    assert len(linears) in (3, 5) and all(row.int8 for row in linears), "the projections are int8"


class Called(nn.Module):
    """The function that the module calls, with weights of the caller's."""

    def __init__(self, separate: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.separate, self.options = nn.Linear(16, 16), separate, options
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.packed = nn.Linear(16, 48)

    def forward(self, x: Tensor, padding: Tensor) -> Any:
        x, biases = self.before(x), self.packed.bias
        weights: dict[str, Any] = {}
        if self.separate:
            biases = torch.cat((self.q.bias, self.k.bias, self.v.bias))
            weights = {f"{n}_proj_weight": getattr(self, n).weight for n in "qkv"} | {"use_separate_proj_weight": True}
        out = F.multi_head_attention_forward(
            x, x, x, 16, 4, torch.empty([0]) if self.separate else self.packed.weight, biases, None, None, False, 0.1, self.out.weight,
            self.out.bias, self.training, None if self.separate else padding, **self.options, **weights)  # fmt: skip
        return tuple(t for t in out if t is not None)


OPTIONS: dict[str, tuple[bool, dict[str, Any]]] = {
    "packed": (False, {}),
    "packed, no weights": (False, {"need_weights": False}),
    "separate": (True, {"attn_mask": torch.linspace(-1, 1, 200).reshape(8, 5, 5)}),
    "separate, no weights": (True, {"need_weights": False, "attn_mask": CAUSAL}),
    "of each head": (True, {"average_attn_weights": False}),
}


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_function(name: str, backend: str) -> None:
    """F.multi_head_attention_forward, as WavLM and CLIP's attention pool call it: int8 linears, one native region."""
    separate, options = OPTIONS[name]
    model, example = Called(separate, **options).eval(), (randn(5, 2, 16), PADDING)
    result = flow(model, example, backend=backend)
    with torch.no_grad():
        for wanted, found in zip(model(*example), result.module(*example), strict=True):
            assert wanted.shape == found.shape and compute_sqnr(wanted, found) >= 24
    linears = [row for row in explain(result.module).rows if row.op == "linear"]
    assert len(linears) == (5 if separate else 3) and all(row.int8 for row in linears), "the projections are int8"
    assert not [remark for remark in remarks(result.module) if remark.code == "native-torch"]


@pytest.mark.parametrize("separate", [False, True])
def test_the_function_in_training(separate: bool) -> None:
    """What has parameters of its own is simulated, and int8 computes what was trained; biases that a cat makes are no parameters."""
    model, example = Called(separate).train(), (randn(5, 2, 16), PADDING)
    prepared = prepare_qat_fx(model, None, example)
    prepared(*example)[0].square().sum().backward()
    assert all(value.grad is not None for value in (prepared.out.weight, prepared.q.weight if separate else prepared.packed.weight))
    prepared.eval()
    module = convert_fx(prepared)
    linears = [row for row in explain(module).rows if row.op == "linear"]
    assert [row.int8 for row in linears] == ([True, False, False, False, True] if separate else [True] * 3)
    assert {row.code for row in linears if not row.int8} <= {"computed-bias"}
    with torch.no_grad():
        assert compute_sqnr(prepared(*example)[0], module(*example)[0]) > 24


def test_other_batches_and_lengths() -> None:
    model = Attention(CASES["padding"][0]).eval()
    module = flow(model, (randn(2, 5, 16), PADDING)).module
    with torch.no_grad():
        wanted, found = (m(randn(3, 7, 16), torch.zeros(3, 7, dtype=torch.bool)) for m in (model, module))
    assert all(compute_sqnr(w, f) >= 15 for w, f in zip(wanted, found, strict=True))
