"""Embedding bags as C: sums, means and largest of rows, of floats and of codes; and float functions that tables once were alone in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.regions import regions_of
from qcompiler.debug import compute_sqnr
from qcompiler.errors import InputError


class Bags(nn.Module):
    def __init__(self, weighted: bool, **settings: Any) -> None:
        super().__init__()
        self.bag, self.linear, self.weighted = nn.EmbeddingBag(30, 16, **settings), nn.Linear(16, 4), weighted

    def forward(self, words: Tensor, factors: Tensor) -> Tensor:
        made = self.bag(words, per_sample_weights=factors) if self.weighted else self.bag(words)
        return self.linear(made)  # type: ignore[no-any-return]


def words(rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 30, (rows, length), generator=g), torch.rand(rows, length, generator=g)


BAGS: dict[str, tuple[bool, dict[str, Any]]] = {
    "mean": (False, {"mode": "mean"}), "sum": (False, {"mode": "sum"}), "max": (False, {"mode": "max"}),
    "padding": (False, {"mode": "sum", "padding_idx": 4}), "the last row as padding": (False, {"mode": "sum", "padding_idx": -1}),
    "factors": (True, {"mode": "sum"}), "factors and padding": (True, {"mode": "sum", "padding_idx": 0}),
}  # fmt: skip


def built(name: str, monkeypatch: pytest.MonkeyPatch, cap: str = "") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    weighted, settings = BAGS[name]
    model = Bags(weighted, **settings).eval()
    monkeypatch.setenv("QCOMPILER_ISA", cap)
    return model, qcompiler.quantize(model, [words(5, 7), words(30, 1, 1), words(9, 3, 2)], backend="native", progress=False)


@pytest.mark.parametrize("name", BAGS)
def test_bags_are_part_of_the_region(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the float model, with the same bits in portable C, whatever the length of the bags."""
    model, module = built(name, monkeypatch)
    assert len(regions_of(module)) == 1 and not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    portable = built(name, monkeypatch, "scalar")[1]
    for given in (words(5, 7), words(2, 1, 9), words(9, 3, 8)):
        with torch.no_grad():
            expected = model(*given)
        assert compute_sqnr(expected, module(*given)) > 25
        assert torch.equal(module(*given), portable(*given))
    with pytest.raises(InputError, match="30 rows"):
        module(words(2, 3)[0] + 30, words(2, 3)[1])


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_bags_without_rows_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="bags without rows"):
        built(name, monkeypatch)[1](torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 0))


def test_bags_that_begin_at_offsets_run_in_torch() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.linear = nn.EmbeddingBag(30, 16), nn.Linear(16, 4)

        def forward(self, flat: Tensor, offsets: Tensor) -> Tensor:
            return self.linear(self.bag(flat, offsets))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    given = torch.randint(0, 30, (9,)), torch.tensor([0, 4, 5])
    module = qcompiler.quantize(model := Flat().eval(), [given], backend="native", progress=False)
    assert compute_sqnr(model(*given), module(*given)) > 25
    assert "begin at offsets" in next(r.text for r in qcompiler.remarks(module) if r.code == "native-torch")


FUNCTIONS = {
    "sin": torch.sin, "cos": torch.cos, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc, "round": torch.round,
    "frac": torch.frac, "sign": torch.sign, "expm1": torch.expm1, "log1p": lambda y: y.abs().log1p(), "log2": lambda y: y.exp().log2(),
    "log10": lambda y: (y.exp() + 1).log10(), "cube": lambda y: y**3, "power": lambda y: (y.abs() + 1) ** -5, "selu": F.selu,
    "softsign": F.softsign, "logsigmoid": F.logsigmoid, "elu": lambda y: F.elu(y, 0.5),
}  # fmt: skip


class Between(nn.Module):
    """A function of floats, a sum over rows, between two linears."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.last, self.name = nn.Linear(12, 16), nn.Linear(16, 4), name

    def forward(self, x: Tensor) -> Tensor:
        return self.last(FUNCTIONS[self.name](self.first(x).softmax(-1) * 5 - 1))  # type: ignore[no-any-return, operator]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_floats_are_part_of_the_region(name: str) -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 12, generator=g)
    prepared = qcompiler.prepare_fx(model := Between(name).eval(), None, (x,), backend="native")
    qcompiler.calibrate(prepared, [x])
    module, graph = qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared)
    assert len(regions_of(module)) == 1 and not [r for r in qcompiler.remarks(module) if r.code == "native-torch"]
    for given in (x, torch.randn(7, 12, generator=g)):
        with torch.no_grad():
            assert compute_sqnr(graph(given), module(given)) > 30 and model(given).shape == module(given).shape
