"""Shares of a softmax are judged by what is in front of them, where that is sure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.tune.held_out import Item
from qcompiler.tune.score import Judge, sqnr_of
from qcompiler.tune.shares import Shares


class Net(nn.Module):
    def __init__(self, end: Callable[[Tensor], object], classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.end = nn.Conv2d(3, 8, 3), nn.Conv2d(8, classes, 6), end

    def forward(self, x: Tensor) -> object:
        return self.end(8 * self.b(F.relu(self.a(x))).flatten(1))


def data(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(count)]


def shares(end: Callable[[Tensor], object], classes: int = 5) -> Shares:
    return Shares.of(qcompiler.prepare_fx(Net(end, classes).eval(), None, (data(1)[0],)))


def soft(x: Tensor) -> Tensor:
    return x.softmax(1)


SURE: list[tuple[Callable[[Tensor], object], int, tuple[str, ...]]] = [
    (soft, 5, ("softmax",)),
    (lambda x: F.softmax(x, dim=-1), 5, ("softmax",)),
    (nn.Softmax(1), 5, ("softmax",)),
    (lambda x: x.flatten(1).softmax(-1).reshape(x.shape), 5, ("softmax",)),
    (lambda x: {"shares": x.softmax(1), "class": x.argmax(1)}, 5, ("softmax",)),
    (lambda x: (x[:, :2].softmax(1), x[:, 2:].softmax(1)), 5, ("softmax", "softmax")),
    (torch.sigmoid, 1, ("sigmoid",)),
]


@pytest.mark.parametrize(("end", "classes", "names"), SURE)
def test_where_it_is_sure(end: Callable[[Tensor], object], classes: int, names: tuple[str, ...]) -> None:
    assert shares(end, classes).functions == names


UNSURE: list[Callable[[Tensor], object]] = [
    lambda x: x,
    lambda x: x.log_softmax(1),
    lambda x: x.softmax(0),  # over the rows
    torch.sigmoid,  # of several numbers: a map, or labels of their own
    lambda x: (x.softmax(1), x),  # what a share weighs against another number is not told
    lambda x: x.softmax(1) * 2,
    lambda x: x.softmax(1).T,
    lambda x: x.view(4, 5, 1).softmax(1),  # several places a row
    lambda x: x.softmax(1)[:, :2],
]


@pytest.mark.parametrize("end", UNSURE)
def test_where_it_is_not(end: Callable[[Tensor], object]) -> None:
    assert shares(end) == Shares()


def test_dB_are_those_of_the_values_but_for_their_mean() -> None:
    torch.manual_seed(0)
    x = 4 * torch.randn(64, 10)
    y, found = x + 0.1 * torch.randn(x.shape), Shares(("softmax",))
    values = [[t - t.mean(1, keepdim=True)] for t in (x, y)]
    assert sqnr_of([x.softmax(1)], [y.softmax(1)], found) == pytest.approx(sqnr_of(*values, Shares()), abs=0.01)
    x, y, found = x[:, :1], y[:, :1], Shares(("sigmoid",))
    assert sqnr_of([x.sigmoid()], [y.sigmoid()], found) == pytest.approx(sqnr_of([x], [y], Shares()), abs=0.01)


def test_one_row_that_is_decided_otherwise_is_one_of_many() -> None:
    """Fifteen sure rows, and one on the edge: shares are all about that one."""
    x = torch.cat([torch.tensor([[12.0, -12.0]]).repeat(15, 1), torch.tensor([[0.4, -0.4]])])
    y = x + torch.tensor([[-0.6, 0.6]])
    own, undone = (sqnr_of([x.softmax(1)], [y.softmax(1)], found) for found in (Shares(), Shares(("softmax",))))
    assert own < 22 and undone > 25


@pytest.mark.parametrize(("name", "value"), [("softmax", 0.0), ("softmax", 1.0), ("sigmoid", 0.0), ("sigmoid", 1.0)])
def test_shares_of_0_and_1_are_numbers(name: str, value: float) -> None:
    """What a mask takes out, or float32 rounds to 0 and 1."""
    a = torch.full((2, 1), value) if name == "sigmoid" else torch.tensor([[value, 1 - value, 0.5], [0.2, 0.3, 0.5]])
    assert sqnr_of([a], [a], Shares((name,))) == 120
    other = (a * 0.9 + 0.01).requires_grad_()
    assert -120 < sqnr_of([a], [other.detach()], Shares((name,))) < 120
    (made,) = Shares((name,)).values([other])
    (gradient,) = torch.autograd.grad(made.sum(), other)
    assert made.isfinite().all() and gradient.isfinite().all()


def test_a_share_that_is_no_number_is_all_noise() -> None:
    a = torch.tensor([[0.25, 0.75]])
    assert sqnr_of([a], [torch.tensor([[float("nan"), 0.75]])], Shares(("softmax",))) == -120


def tuned(end: Callable[[Tensor], object], **given: Any) -> qcompiler.tune.Tuned:
    return qcompiler.autotune(Net(end).eval(), data(), progress=False, seconds=600, **given)


def test_a_search_judges_a_softmax_as_the_network_without_it() -> None:
    """And says what its dB are of."""
    bare, found = (tuned(end, target=1) for end in (lambda x: x - x.mean(1, keepdim=True), soft))
    one, other = (result.steps[0].score for result in (bare, found))
    assert one is not None and other is not None and one.sqnr == pytest.approx(other.sqnr, abs=0.5)
    assert "dB are those of the values in front of the softmax" in str(found) and "in front" not in str(bare)
    assert any("in front of the softmax" in name for name in found.measured)


def test_judge() -> None:
    x = torch.tensor([[0.9, 0.1]])

    class Given(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1)

    own, undone = (Judge([Item((x,), {}, x)], [x], None, found).score(Given()) for found in (Shares(), Shares(("softmax",))))
    assert own.agreement == undone.agreement == 0.0 and undone.sqnr == pytest.approx(-6.02, abs=0.01)
