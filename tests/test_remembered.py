"""Functions that remember their results (functools.lru_cache): a trace leaves nothing in them, and holds no size because of them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import QConfigMapping, convert_fx, prepare_fx
from tests.flow import randn

FACTOR = torch.full((1,), 2.0)
tables = types.ModuleType("tests_tables")


@functools.cache
def table(n: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(n, dtype=dtype)


@functools.lru_cache
def scaled(weight: Tensor, factor: float) -> Tensor:
    return weight * factor


@functools.cache
def of_globals() -> Tensor:
    return FACTOR * 3


def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As transformers wraps the position embeddings of DETR."""
    cached = functools.lru_cache(maxsize=1)(function)

    @functools.wraps(function)
    def call(*args: Any) -> Tensor:
        return cached(*args)

    return call


tables.table = table  # type: ignore[attr-defined]


class Model(nn.Module):
    def __init__(self, of: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.of = nn.Linear(4, 8), of
        self.own = functools.lru_cache(maxsize=None)(self._made)

    def _made(self, n: int) -> Tensor:
        return torch.arange(n) * self.l.bias[0]

    @functools.cache  # noqa: B019
    def method(self, shape: Any) -> Tensor:
        return torch.arange(shape[1]) + torch.zeros(shape[:2])

    @staticmethod
    @functools.lru_cache
    def static(n: int) -> Tensor:
        return torch.ones(n).cumsum(0)

    @decorated
    def in_closure(self, shape: Any) -> Tensor:
        return torch.arange(shape[1]).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) + self.of(self, x)[..., None]


CACHES = {table, scaled, of_globals, Model.method, Model.static, Model.in_closure.__closure__[0].cell_contents}  # type: ignore[attr-defined]
WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "function": lambda m, x: table(x.shape[1], dtype=torch.float64).float(),
    "constant": lambda m, x: table(3)[:1],
    "module": lambda m, x: tables.table(x.size(1)),
    "tensor": lambda m, x: scaled(m.l.weight, 2.0)[:1, 0] * x.shape[1],
    "globals": lambda m, x: of_globals(),
    "method": lambda m, x: m.method(x.shape),
    "static": lambda m, x: m.static(x.shape[-2]),
    "closure": lambda m, x: m.in_closure(x.shape),
    "attribute": lambda m, x: m.own(x.shape[1]),
}


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_trace_leaves_nothing_in_caches(way: str) -> None:
    model, x = Model(WAYS[way]).eval(), randn(2, 5, 4)
    modules = [convert_fx(prepare_fx(model, QConfigMapping().set_global(None), (x,))) for _ in range(2)]
    for other in (x, randn(3, 7, 4), randn(1, 2, 4)):
        expected = model(other)
        assert type(expected) is Tensor
        for module in modules:
            torch.testing.assert_close(module(other), expected)
    again = convert_fx(prepare_fx(model, QConfigMapping().set_global(None), (x,)))  # with what the float model left
    torch.testing.assert_close(again(randn(2, 9, 4)), model(randn(2, 9, 4)))
    assert vars(Model)["method"] in CACHES and globals()["table"] in CACHES and type(model.own) is type(table)


def test_what_a_cache_holds_is_not_lost() -> None:
    before = table(11)
    model = Model(WAYS["function"]).eval()
    prepare_fx(model, None, (randn(2, 11, 4),))
    assert table(11) is before
