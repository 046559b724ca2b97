"""The largest number of a row counts as an answer where rows are scores of classes, and not where they are embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.tune.classes import are_classes
from tests.flow import randomized


class Net(nn.Module):
    """Tokens through two linears and a norm; what it gives is `end`'s."""

    def __init__(self, end: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.first, self.second, self.norm, self.head, self.end = nn.Linear(6, 16), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 5), end

    def forward(self, x: Tensor) -> object:
        return self.end(self, self.second(torch.relu(self.first(x))))


EMBEDDINGS: dict[str, Callable[[Any, Tensor], object]] = {
    "normalized": lambda m, y: F.normalize(y.mean(1), dim=1),
    "in two steps": lambda m, y: F.normalize(y.mean(1).unsqueeze(1), dim=2).squeeze(1),
    "by its length": lambda m, y: y[:, 0] / y[:, 0].norm(dim=1, keepdim=True).clamp(min=1e-6),
    "by its squares": lambda m, y: (z := y.sum(1)) * torch.rsqrt(z.pow(2).sum(1, keepdim=True)),
    "hidden states": lambda m, y: m.norm(y),
    "their mean": lambda m, y: {"pooled": m.norm(y).sum(1) / y.shape[1]},
    "one of them": lambda m, y: (m.norm(y)[:, 0], m.head(y)),
}
CLASSES: dict[str, Callable[[Any, Tensor], object]] = {
    "a head": lambda m, y: m.head(m.norm(y)[:, 0]),
    "a pooled head": lambda m, y: m.head(m.norm(y)).mean(1) * 3.0,
    "shares": lambda m, y: m.head(y.mean(1)).softmax(1),
    "logs": lambda m, y: m.head(y).log_softmax(-1).transpose(1, 2),
    "nearest of a norm": lambda m, y: F.normalize(y.mean(1)) @ F.normalize(m.head.weight).T,
    "places first": lambda m, y: (y.argmax(1), m.head(y)),
}


def prepared(end: Callable[[Any, Tensor], object]) -> nn.Module:
    torch.manual_seed(0)
    return qcompiler.prepare_fx(randomized(Net(end)), None, (torch.randn(4, 3, 6),))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings(name: str) -> None:
    assert not are_classes(prepared(EMBEDDINGS[name]))


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str) -> None:
    assert are_classes(prepared(CLASSES[name]))


def test_a_search_on_embeddings_has_no_agreement() -> None:
    torch.manual_seed(0)
    data = [torch.randn(8, 3, 6) for _ in range(8)]
    found = qcompiler.autotune(randomized(Net(EMBEDDINGS["normalized"])), data, seconds=20, progress=False)
    assert found.steps and all(step.score is None or step.score.agreement is None for step in found.steps)
