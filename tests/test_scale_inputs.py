"""Inputs of linears with channels of unlike range: float results stay, int8 ones come nearer; what cannot be is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import calibrate, convert_fx, convert_to_reference_fx, explain, prepare_fx
from qcompiler.debug import compute_sqnr
from qcompiler.errors import ConfigError
from qcompiler.tune import Corrections, equalize, fit_ranges, reconstruct, scale_inputs
from qcompiler.workflow.twins import twins


class Block(nn.Module):
    """Behind the norm two channels are some 30 times as large as the others, and it is added as well, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.last, self.end = nn.LayerNorm(16), nn.Linear(16, 4)
        with torch.no_grad():
            self.norm.weight[3] *= 30
            self.norm.bias[7] += 60

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.end(self.last(0.02 * x + self.one(x) * torch.sigmoid(self.two(x))))


def batches(count: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 5, 16, generator=generator) for _ in range(count)]


def prepared_of(backend: str = "torch", model: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = (Block() if model is None else model).eval()
    prepared = prepare_fx(model, None, (batches()[0],), backend=backend)
    calibrate(prepared, batches())
    return model, prepared


def decibels(model: nn.Module, module: nn.Module) -> float:
    x = torch.cat(batches(seed=1))
    return float(compute_sqnr(model(x), module(x)))


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_int8_results_come_nearer(backend: str) -> None:
    model, prepared = prepared_of(backend)
    found = scale_inputs(prepared, batches(), alpha=None)
    assert set(found.columns) >= {"one.weight", "two.weight"} and "norm_scaled" in found.ranges
    before = decibels(model, convert_fx(prepared))
    assert decibels(model, convert_fx(prepared, corrections=found)) > before + 3


def test_float_results_stay() -> None:
    model, prepared = prepared_of()
    for found in (
        scale_inputs(prepared, batches(), alpha=0.5),
        equalize(prepared, batches(), alpha=0.5, corrections=scale_inputs(prepared, batches(), alpha=0.5)),
    ):
        assert found.columns
        torch.testing.assert_close(twins(prepared, found)[0].floats(batches()[0]), model(batches()[0]), rtol=1e-4, atol=1e-5)


def test_both_orders_of_equalize_are_one() -> None:
    model, prepared = prepared_of(model=nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)))
    one = equalize(prepared, batches(), alpha=0.5, corrections=scale_inputs(prepared, batches(), alpha=0.5))
    two = scale_inputs(prepared, batches(), alpha=0.5, corrections=equalize(prepared, batches(), alpha=0.5))
    for found in (one, two):
        torch.testing.assert_close(twins(prepared, found)[0].floats(batches()[0]), model(batches()[0]), rtol=1e-4, atol=1e-5)


def test_the_other_corrections_build_on_it(tmp_path: Path) -> None:
    model, prepared = prepared_of()
    found = scale_inputs(prepared, batches(), alpha=0.5)
    fitted = fit_ranges(prepared, batches(), corrections=found)
    assert fitted.ranges.keys() >= found.ranges.keys()
    rounded = reconstruct(prepared, batches(), corrections=found)
    assert rounded.codes.keys() >= found.columns.keys() and rounded.columns.keys() == found.columns.keys()
    rounded.save(tmp_path / "found")
    assert Corrections.load(tmp_path / "found") == rounded and hash(rounded) == hash(Corrections.load(tmp_path / "found"))
    assert decibels(model, convert_to_reference_fx(prepared, corrections=rounded)) > decibels(model, convert_to_reference_fx(prepared)) + 3
    assert not (rounded | found).codes.keys() & found.columns.keys()  # codes of other columns


def test_nothing_but_the_linears_reads_the_product() -> None:
    _, prepared = prepared_of()
    rows = {row.node: row for row in explain(convert_fx(prepared, corrections=scale_inputs(prepared, batches(), alpha=0.5))).rows}
    assert rows["one"].corrected == rows["two"].corrected == "scaled input" and rows["one"].int8
    assert "linears read" in rows["norm_scaled"].reason and not rows["norm_scaled"].int8
    gm = convert_to_reference_fx(prepared, corrections=scale_inputs(prepared, batches(), alpha=0.5))
    (norm,) = (node for node in gm.graph.nodes if node.name == "norm")
    assert {user.name for user in norm.users} == {"norm_scaled", "mul"}


def test_dynamic_linears_read_it_too() -> None:
    model, prepared = prepared_of()
    dynamic = Corrections(dynamic=frozenset({"one", "two"}))
    found = scale_inputs(prepared, batches(), alpha=0.5)
    before = decibels(model, convert_to_reference_fx(prepared, corrections=dynamic))
    assert decibels(model, convert_to_reference_fx(prepared, corrections=found | dynamic)) > before + 2


def test_what_stays_float_has_a_remark() -> None:
    _, prepared = prepared_of()
    found = scale_inputs(prepared, batches(), alpha=0.5)
    made = convert_to_reference_fx(prepared, keep_float=["one", "two"], corrections=found)
    assert "norm_scaled" not in {node.name for node in made.graph.nodes}


ONES = torch.ones(16)
RANGE = {"norm_scaled": (-1.0, 1.0)}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.one(x) * torch.softmax(self.two(x), -1)


@pytest.mark.parametrize(("given", "part"), [
    (Corrections(columns={"one.weight": ONES}), "give no range of %norm_scaled"),
    (Corrections(columns={"one.weight": ONES, "two.weight": 2 * ONES}, ranges=RANGE), "unlike factors"),
    (Corrections(columns={"one.weight": ONES[:4]}, ranges=RANGE), "not torch.float32[16] above 0"),
    (Corrections(columns={"one.weight": ONES.double()}, ranges=RANGE), "not torch.float32[16] above 0"),
    (Corrections(columns={"one.weight": -ONES}, ranges=RANGE), "above 0"),
    (Corrections(columns={"three.weight": ONES}), "columns of corrections name nothing"),
    (Corrections(columns={"norm.weight": ONES}, ranges=RANGE), "is no linear"),
    (Corrections(ranges=RANGE), "name nothing"),
])  # fmt: skip
def test_what_is_refused(given: Corrections, part: str) -> None:
    _, prepared = prepared_of()
    with pytest.raises(ConfigError) as raised:
        convert_fx(prepared, corrections=given)
    assert part in str(raised.value) and raised.value.code == "correction"


def test_tied_weights_are_left_alone_unless_asked_for() -> None:
    model, prepared = prepared_of(model=Tied())
    assert not scale_inputs(prepared, batches(), alpha=0.5)
    found = Corrections(columns={"one.weight": torch.linspace(1, 3, 16)}, ranges={"norm_scaled": (-4.0, 4.0)})
    torch.testing.assert_close(twins(prepared, found)[0].floats(batches()[0]), model(batches()[0]), rtol=1e-4, atol=1e-5)


def test_values_that_int8_ops_make_are_left_alone() -> None:
    _, prepared = prepared_of(model=nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)))
    assert "2.weight" not in scale_inputs(prepared, batches(), alpha=0.5).columns
    with pytest.raises(ConfigError, match="rounded already"):
        convert_to_reference_fx(prepared, corrections=Corrections(columns={"2.weight": ONES}))


def test_a_search_takes_it() -> None:
    model, _ = prepared_of()
    found = qcompiler.autotune(model, batches(16), backend="native", progress=False)
    assert found.corrections.columns and "scale-inputs" in [step.name for step in found.steps if step.accepted]
    assert decibels(model, found.model) > decibels(model, convert_fx(found.prepared)) + 3
