"""Assignments to slices are cats: the same numbers at every size, and what is not as simple stays an assignment."""

from __future__ import annotations

import operator
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc

from .data_models import sqnr

X = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
OTHERS = [
    torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((2, 4, 7, 6), (5, 4, 3, 6), (3, 4, 5, 2), (1, 4, 2, 6))
]


class Assigns(nn.Module):
    def __init__(self, assign: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.assign = assign

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        found = self.assign(y)
        return (y if found is None else found).relu() + 1


def whole(y: Tensor) -> None:
    y[:, 1:] = y[:, 1:].sigmoid()


def front(y: Tensor) -> None:
    y[..., :2] *= 3


def middle(y: Tensor) -> None:
    y[:, :, 1:3] += 0.5


def last(y: Tensor) -> None:
    y[..., -2:] = y[..., -2:].tanh()


def from_the_end(y: Tensor) -> None:
    y[:, -3:-1] = y[:, -3:-1].exp()


def corner(y: Tensor) -> None:
    y[:, :, 1:, 1:] += y[:, :, 1:, :-1].sigmoid()


def block(y: Tensor) -> None:
    y[:, 1:3, ..., -2:] = -y[:, 1:3, ..., :2]


def rows(y: Tensor) -> None:
    y[:2] = y[:2].abs()


def twice(y: Tensor) -> None:
    y[..., 0:2] = (y[..., 0:2] * 2 - 0.5) * 8
    y[..., 2:4] = (y[..., 2:4] * 2) ** 2


def one_row(y: Tensor) -> None:
    y[:, :1] = y[:, 1:2].sigmoid()
    y[..., -1:] = y[..., :1].exp()


def for_one_image(y: Tensor) -> None:
    z = y[:1].relu()
    z[:, :, 1:] = z[:, :, 1:].sigmoid()
    y[:1, :, :2] = z[:, :, :2]


def all_of_it(y: Tensor) -> None:
    y[:] = y.sigmoid()


def all_from_the_first(y: Tensor) -> None:
    """As models do that leave out a class token where they have one."""
    y[:, :, 0:, 0:] = y[:, :, 0:, 0:].sigmoid()


def seen_by_a_view(y: Tensor) -> Tensor:
    z = y[:, :2]
    y[:, 1:] = y[:, 1:].sigmoid()
    return z


EVERYTHING = (all_of_it, all_from_the_first)
JOINED = (whole, front, middle, last, from_the_end, corner, block, rows, twice, one_row, for_one_image, seen_by_a_view, *EVERYTHING)


def steps(y: Tensor) -> None:
    y[..., ::2] = y[..., ::2].sigmoid()


def one(y: Tensor) -> None:
    y[:, 1] = y[:, 2].sigmoid()


def chosen(y: Tensor) -> None:
    y[:, [0, 2]] = y[:, [1, 3]].sigmoid()


def repeated(y: Tensor) -> None:
    y[:, 1:] = y[:, :1].sigmoid()


def a_number(y: Tensor) -> None:
    y[:, 1:] = 0.5


def from_both_ends(y: Tensor) -> None:
    y[:, 1:-1] = y[:, 1:-1].sigmoid()


def of_doubles(y: Tensor) -> None:
    y[:, 1:] = y[:, 1:].double()


STAYS = (steps, one, chosen, repeated, a_number, from_both_ends, of_doubles)


def fused(assign: Callable[[Tensor], Any]) -> tuple[Any, int]:
    model = qc.fuse_fx(Assigns(assign).eval(), (X,))
    return model, sum(node.target is operator.setitem for node in model.graph.nodes)


@pytest.mark.parametrize("assign", JOINED, ids=lambda f: f.__name__)
def test_slices(assign: Callable[[Tensor], Any]) -> None:
    model, left = fused(assign)
    assert left == 0
    for x in (X, *OTHERS):
        try:
            expected = Assigns(assign)(x.clone())
        except RuntimeError:  # the user's own slices do not fit there
            with pytest.raises((RuntimeError, qc.InputError)):
                model(x)
            continue
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_of_one(batch: int) -> None:
    """Where the example has one element along an axis, the value may be one that is repeated."""

    class Adds(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = x * 2
            z[:, 1:] = y[:, 1:] + 1
            return z.relu()

    model = qc.fuse_fx(Adds().eval(), (X[:1], X[:1]))
    assert not any(node.target is operator.setitem for node in model.graph.nodes)
    for y in (X[:batch], X[:1]):
        assert torch.equal(model(X[:batch], y), Adds()(X[:batch], y))


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_sizes_that_do_not_fit_are_refused(length: int) -> None:
    """A value of another length than its place is repeated or an error, as in an assignment; a cat would take it."""

    class Puts(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = x * 2
            z[:, 1:] = y + 1
            return z.relu()

    model, y = qc.fuse_fx(Puts().eval(), (X, X[:, 1:])), torch.cat([X, X], 1)[:, :length]
    assert not any(node.target is operator.setitem for node in model.graph.nodes)
    if length in (1, 3):
        assert torch.equal(model(X, y), Puts()(X, y))
    else:
        with pytest.raises((RuntimeError, qc.InputError)):
            model(X, y)


@pytest.mark.parametrize("assign", STAYS, ids=lambda f: f.__name__)
def test_near_misses(assign: Callable[[Tensor], Any]) -> None:
    model, left = fused(assign)
    assert left == 1
    assert torch.equal(model(X), Assigns(assign)(X.clone()))


class Attention(nn.Module):
    """With positions added to all but the class token's row and column, as in MViT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.rel, self.last = nn.Linear(16, 48), nn.Linear(8, 5), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * 0.35
        scores[:, :, 1:, 1:] += self.rel(q)[:, :, 1:]
        return self.last((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", [None, "native"])
def test_attention_with_relative_positions(backend: str | None) -> None:
    if backend == "native" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    model, x = Attention().eval(), torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    made = qc.quantize(model, [x], progress=False, **({} if backend is None else {"backend": backend}))
    assert sqnr(model(x), made(x)) > 30
    if backend == "native":
        assert str(qc.native_plan(made)).count("native region:") == 1
