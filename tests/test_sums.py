"""Sums over rows against what they are of the rows themselves, and rows that are taken in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler import calibrate, convert_to_reference_fx, prepare_fx
from qcompiler.tune import reconstruct, sums
from qcompiler.tune.sampled_rows import Sample
from qcompiler.tune.sums import Sums, from_blocks, in_blocks
from tests.test_reconstruct import FEW_STEPS, data_for, sqnr


def drawn(groups: int = 2, n: int = 40, channels: int = 3, products: int = 6) -> tuple[list[Sample], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, groups, n, products, generator=generator)
    weight, bias = torch.randn(groups, channels, products, generator=generator), torch.randn(groups, channels, 1, generator=generator)
    return [Sample(x + 0.1, x) for x in rows], weight, bias


@pytest.mark.parametrize("bounds", [(None, None), (0.0, None), (-0.5, 1.5), (None, 0.3)])
@pytest.mark.parametrize("most", [4096, 4])
def test_they_are_the_sums(bounds: tuple[float | None, float | None], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rows; and the mean error of the active results of a channel, for another weight."""
    monkeypatch.setattr(sums, "MOST_PRODUCTS", most)
    samples, weight, bias = drawn()
    found = Sums(weight, bias, bounds)
    for part in samples:
        found.add(part)
    rounded, floats = (torch.cat([getattr(part, name) for part in samples], 1).double() for name in ("rounded", "floats"))
    moments, blocks = found.moments(), in_blocks(rounded)
    torch.testing.assert_close(moments.h, blocks.mT @ blocks / 80, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.c, (in_blocks(floats) @ in_blocks(weight.double()).mT).mT @ blocks / 80, rtol=1e-5, atol=1e-5)
    other = weight.double() + 0.1
    results = floats @ weight.double().mT
    low, high = (end if end is not None else sign * 1e9 for end, sign in zip(bounds, (-1, 1), strict=True))
    active = ((results + bias.mT > low) & (results + bias.mT < high)).double()
    error, count = ((results - rounded @ other.mT) * active).sum(1), active.sum(1)
    torch.testing.assert_close(found.mean_error(other, 16), torch.where(count >= 16, error / count.clamp(min=1), 0.0), rtol=1e-4, atol=1e-4)
    assert not found.mean_error(other, 81).any()


@pytest.mark.parametrize("products", [4, 5, 12, 13])
def test_blocks_of_rows(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "MOST_PRODUCTS", 4)
    rows, weight = torch.randn(2, 7, products), torch.randn(2, 3, products)
    blocks, parts = in_blocks(rows), in_blocks(weight)
    assert blocks.shape[2] <= 4 and torch.equal(from_blocks(blocks, products), rows)
    torch.testing.assert_close((blocks @ parts.mT).reshape(2, -1, 7, 3).sum(1), rows @ weight.mT)


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_rows_in_blocks_help_as_whole_ones_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = (nn.Sequential(nn.Linear(48, 7)) if name == "linear" else nn.Sequential(nn.Conv2d(6, 8, 3, groups=2))).eval()
    shape = (48,) if name == "linear" else (6, 9, 9)
    x, other = data_for(shape, count=256), data_for(shape, seed=2, count=64)
    prepared = prepare_fx(model, FEW_STEPS, (x[:2],), backend="reference")
    calibrate(prepared, [x])
    monkeypatch.setattr(sums, "MOST_PRODUCTS", 20)
    plain, made = (convert_to_reference_fx(prepared, corrections=c) for c in (None, reconstruct(prepared, [x])))
    assert sqnr(model(other), made(other)) > sqnr(model(other), plain(other)) + 1.5
