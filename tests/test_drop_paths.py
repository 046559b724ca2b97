"""What drops values in training alone, behind a branch on `self.training`: it follows the mode, and is gone in the int8 model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import QConfigMapping, convert_fx, prepare_qat_fx, remarks
from qcompiler.trace.drop_paths import dropped_share
from tests.flow import randn


class DropPath(nn.Module):
    """As timm and transformers write it."""

    def __init__(self, share: float, **how: Any) -> None:
        super().__init__()
        self.drop_prob, self.scaled, self.whole, self.noisy = (
            share,
            how.get("scaled", True),
            how.get("whole", True),
            how.get("noisy", False),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x + 1 if self.noisy else x
        kept = 1 - self.drop_prob
        shape = (x.shape[0],) + (1,) * (x.ndim - 1) if self.whole else x.shape
        mask = x.new_empty(shape).bernoulli_(kept)
        return x * (mask.div_(kept) if self.scaled else mask)


class Rounded(nn.Module):
    """As transformers' SegformerDropPath."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = 1 - self.p
        return x.div(kept) * (kept + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype)).floor_()


class Net(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.drop, self.b = nn.Linear(8, 8), drop, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.drop(self.a(x)))


class Attention(nn.Module):
    share = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.share if self.training else 0.0)


class ByPosition(Attention):
    def forward(self, x: Tensor) -> Tensor:
        share = 0.0 if not self.training else self.share
        return F.scaled_dot_product_attention(x, x, x, None, share)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = F.dropout(x, 0.5)
        return x


KINDS = {"drop path": lambda: DropPath(0.5), "rare": lambda: DropPath(0.05), "rounded": lambda: Rounded(0.4), "attention": Attention,
         "by position": ByPosition, "branch": Branch}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_is_dropped_in_training_follows_the_mode(kind: str) -> None:
    model, x = Net(KINDS[kind]()).train(), randn(64, 5, 8)
    prepared = prepare_qat_fx(model, QConfigMapping().set_global(None), (x,))
    assert not torch.equal(prepared(x), prepared(x))
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    if "path" in kind:  # the same numbers are drawn
        torch.testing.assert_close(prepared(x), expected)
    torch.testing.assert_close(prepared.eval()(x), model.eval()(x))
    torch.testing.assert_close(convert_fx(prepared)(x), model.eval()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_int8_model_drops_nothing(kind: str) -> None:
    model, x = Net(KINDS[kind]()).train(), randn(64, 5, 8)
    prepared = prepare_qat_fx(model, None, (x,))
    for seed in range(3):
        prepared(randn(64, 5, 8, seed=seed)).square().mean().backward()
    module = convert_fx(prepared)
    expected, found = model.eval()(x), module(x)
    assert torch.equal(found, module(x)) and ((expected - found).square().sum() < expected.square().sum() / 100).item()


OTHERS = {
    "unscaled": DropPath(0.5, scaled=False),
    "single values": DropPath(0.5, whole=False),
    "more in eval mode": DropPath(0.5, noisy=True),
    "nothing": DropPath(0.0),
    "layers": nn.Sequential(nn.Dropout(0.5)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_modules_that_do_something_else_are_followed(kind: str) -> None:
    assert dropped_share(OTHERS[kind].train()) is None and OTHERS[kind].training
    if kind in ("unscaled", "single values"):
        prepared = prepare_qat_fx(Net(OTHERS[kind]).train(), None, (randn(4, 8),))
        assert [r for r in remarks(prepared) if r.code == "training-branch"]
