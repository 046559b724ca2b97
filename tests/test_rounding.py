"""Rounding with error feedback against round-to-nearest, exhaustive search, and a definition in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from qcompiler.tune.damping import TRIED, chosen_damping, moved
from qcompiler.tune.rounding import Grid, Moments, descended, reconstructed, sequential


def drawn(seed: int, groups: int = 2, channels: int = 3, products: int = 6, rows: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated rows, a weight, and the results of a weight nearby, on slightly other rows."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, products, products, generator=generator)
    rows_of_float = torch.randn(groups, rows, products, generator=generator) @ mix + torch.randn(groups, 1, products, generator=generator)
    weight = torch.randn(groups, channels, products, generator=generator)
    rounded = rows_of_float + 0.05 * torch.randn(groups, rows, products, generator=generator)
    return rounded, weight, rows_of_float @ weight.mT


def moments_of(rows: Tensor, results: Tensor) -> Moments:
    n = rows.shape[1]
    return Moments((rows.mT @ rows).double() / n, (results.mT @ rows).double() / n)


def grid_for(weight: Tensor, low: int = -8, high: int = 7) -> Grid:
    scale = weight.abs().amax(-1, keepdim=True).double() / high
    return Grid(scale, torch.zeros_like(scale), low, high)


def error(codes: Tensor, grid: Grid, rows: Tensor, results: Tensor) -> Tensor:
    """By definition: the squared error of the results by channel."""
    return (results.double() - rows.double() @ grid.real(codes.double()).mT).square().mean(1)


@pytest.mark.parametrize("seed", range(6))
def test_never_worse_than_the_start(seed: int) -> None:
    rows, weight, results = drawn(seed)
    grid = grid_for(weight)
    start = grid.nearest(weight.double())
    found = reconstructed(weight.double(), start, moments_of(rows, results), grid, 0.01)
    before, after = error(start, grid, rows, results), error(found, grid, rows, results)
    assert bool((after <= before * (1 + 1e-5)).all()) and after.sum() < before.sum()
    assert bool((found == found.round()).all()) and grid.low <= float(found.min()) <= float(found.max()) <= grid.high


def test_near_to_the_best_of_all() -> None:
    """4 products of 5 codes: all 625 can be tried. Most of 20 channels are the best, the mean error is within a fifth of the least."""
    ratios = []
    for seed in range(10):
        rows, weight, results = drawn(seed, groups=1, channels=2, products=4)
        grid = grid_for(weight, -2, 2)
        found = reconstructed(weight.double(), grid.nearest(weight.double()), moments_of(rows, results), grid, 0.01)
        tried = torch.tensor(list(itertools.product(range(-2, 3), repeat=4))).double()
        least = torch.stack([error(code.expand(1, 2, 4), grid, rows, results) for code in tried]).amin(0)
        ratios.append(error(found, grid, rows, results) / least)
    ratio = torch.stack(ratios)
    assert float(ratio.min()) >= 1 - 1e-9 and float(ratio.mean()) < 1.2 and float((ratio < 1 + 1e-9).double().mean()) > 0.5


def test_the_error_is_what_the_definition_says() -> None:
    rows, weight, results = drawn(3)
    moments, grid = moments_of(rows.double(), results.double()), grid_for(weight)
    one, two = grid.nearest(weight.double()), grid.nearest(weight.double() * 0.9)
    wanted = error(one, grid, rows, results) - error(two, grid, rows, results)
    torch.testing.assert_close(moments.error(grid.real(one)) - moments.error(grid.real(two)), wanted)


def test_feedback_without_correlation_is_rounding() -> None:
    weight = torch.randn(1, 3, 300, generator=torch.Generator().manual_seed(0)).double()
    grid = grid_for(weight)
    moments = Moments(torch.eye(300).double()[None], weight)
    assert torch.equal(sequential(weight, moments, grid, 0.01), grid.nearest(weight))


def test_the_best_real_weight_is_what_is_rounded() -> None:
    """W0 = W + (C - W H)(H + d)^-1: steps so small that nothing is lost show it."""
    rows, weight, results = drawn(4)
    grid = Grid(torch.full((2, 3, 1), 2.0**-16).double(), torch.zeros(2, 3, 1).double(), -(2**22), 2**22)
    moments = moments_of(rows, results)
    wanted = weight.double() + torch.linalg.solve(moments.damped(0.1), moments.c - weight.double() @ moments.h, left=False)
    torch.testing.assert_close(grid.real(sequential(weight.double(), moments, grid, 0.1)), wanted, rtol=1e-3, atol=1e-4)


def test_codes_stay_within_what_the_sums_hold() -> None:
    """As a kernel that holds channels of up to 9 steps in all."""
    rows, weight, results = drawn(1)
    grid = grid_for(weight)
    start = torch.zeros_like(weight).double()

    def holds(codes: Tensor) -> Tensor:
        return codes.abs().sum(-1) <= 9

    found = reconstructed(weight.double(), start, moments_of(rows, results), grid, 0.01, holds)
    assert bool(holds(found).all()) and bool((error(found, grid, rows, results) < error(start, grid, rows, results)).all())


def test_products_that_are_always_zero_cost_nothing() -> None:
    rows, weight, results = drawn(2)
    rows[..., 1] = 0
    grid = grid_for(weight)
    found = reconstructed(weight.double(), grid.nearest(weight.double()), moments_of(rows, results), grid, 0.01)
    assert bool(torch.isfinite(found).all())


def test_descent_ends_where_no_single_code_can_move() -> None:
    rows, weight, results = drawn(5, groups=1, channels=1)
    moments, grid = moments_of(rows, results), grid_for(weight)
    codes = descended(grid.nearest(weight.double()), moments.h, moments.c, grid, sweeps=50)
    least = error(codes, grid, rows, results)
    for at, step in itertools.product(range(codes.shape[-1]), (-1, 1)):
        other = codes.clone()
        other[..., at] = (other[..., at] + step).clamp(grid.low, grid.high)
        assert bool((error(other, grid, rows, results) >= least * (1 - 1e-5)).all())


def lacking(seed: int, rows: int, agreed: float, own: float) -> tuple[Tensor, tuple[Moments, Moments]]:
    """A weight, and moments of two halves of the data: what the rounded rows lack is `agreed` in both, and `own` in each."""
    generator = torch.Generator().manual_seed(seed)
    weight, common, *apart = (torch.randn(2, 3, 8, generator=generator).double() for _ in range(4))
    made = list[Moments]()
    for half in apart:
        x = torch.randn(2, rows, 8, generator=generator).double()
        results = x @ (weight + agreed * common + own * half).mT + torch.randn(2, rows, 3, generator=generator)
        made.append(Moments(x.mT @ x, results.mT @ x))
    return weight, (made[0], made[1])


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_goes_as_far_as_halves_of_the_data_agree(seed: int) -> None:
    """Far where they lack the same and rows are many, less far where rows are few, and nowhere where each lacks something else."""
    sure = chosen_damping(*lacking(seed, 400, 0.5, 0.0), 1.0)
    few = chosen_damping(*lacking(seed, 12, 0.5, 0.0), 1.0)
    assert sure == TRIED[0] and (few is None or few > sure)
    assert chosen_damping(*lacking(seed, 400, 0.0, 0.5), 1.0) is None


@pytest.mark.parametrize("usual", [1.0, 4.0])
def test_the_chosen_damping_is_that_with_the_least_error_on_the_other_half(usual: float) -> None:
    """By definition, of those that are tried: of few rows, for which more than 1 is usual, none that is less."""
    weight, halves = lacking(1, 30, 0.3, 0.2)
    found = dict[float, float]()
    for damping in [usual * part for part in TRIED if part >= 1 or usual == 1]:
        best = [weight + torch.linalg.solve(one.damped(damping), one.c - weight @ one.h, left=False) for one in halves]
        torch.testing.assert_close(moved(weight, halves[0], damping), best[0])
        errors = [other.error(made) - other.error(weight) for made, other in zip(best, halves[::-1])]
        found[damping] = float(sum(error.sum() for error in errors))
    wanted = min(found, key=found.__getitem__)
    assert found[wanted] < 0 and chosen_damping(weight, halves, usual) == wanted
