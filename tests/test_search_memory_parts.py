"""What the parts of a search hold in memory: candidates, moments of rows, comparisons, results that are waited for."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends import register
from qcompiler.backends.native.plan.embedding import Embed
from qcompiler.backends.native.regions import regions_of
from qcompiler.debug import tally, walk
from qcompiler.debug.compare import Tallies
from qcompiler.debug.match import match
from qcompiler.debug.walk import Walk
from qcompiler.executable.steps import Weight, steps_of_graph
from qcompiler.ir.attributes import attribute
from qcompiler.ops import reference
from qcompiler.ops.reference import dequantize_weight, quantize, quantize_weight
from qcompiler.tune import Corrections, shelf
from qcompiler.tune.autotune import _unchanged
from qcompiler.tune.candidates import Candidate
from qcompiler.tune.held_out import read
from qcompiler.tune.islands import _errors
from qcompiler.tune.rounding import Grid, Moments, reconstructed, sequential
from qcompiler.tune.sampled_rows import sample
from qcompiler.tune.score import Score
from qcompiler.tune.search import graph_of
from qcompiler.tune.search_log import Step
from qcompiler.tune.shelf import Written, pieces
from qcompiler.tune.sites import sites
from qcompiler.workflow.twins import twins
from tests.test_search_memory import Deep, batches, live
from tests.toy_backend import BACKEND as TOY


class Wide(nn.Module):
    """Weights of 4 MB on values of 8 KB."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def wide(backend: str = "reference") -> tuple[Wide, Any, list[Tensor]]:
    model, data = Wide().eval(), [torch.randn(4, 512, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    prepared = qcompiler.prepare_fx(model, None, (data[0],), backend=backend)
    qcompiler.calibrate(prepared, data)
    return model, prepared, data


def test_candidates_do_not_copy_float_weights() -> None:
    """Their integers take a quarter; what a user is given is a copy."""
    _, prepared, _ = wide()
    whole = sum(t.nbytes for t in prepared.parameters())
    for make in (lambda: graph_of(prepared, Corrections(keep_float=frozenset(["body.2"]))), lambda: twins(prepared)):
        make()
        assert live(make)[0] < 0.7 * whole
    own = {p.data_ptr() for p in prepared.parameters()}
    assert own & {p.data_ptr() for p in graph_of(prepared, Corrections(keep_float=frozenset(["body.2"]))).parameters()}
    assert not own & {p.data_ptr() for p in qcompiler.convert_to_reference_fx(prepared, keep_float=["body.2"]).parameters()}


@pytest.mark.parametrize(("backend", "on_the_way"), [("torch", 8), ("native", 4)])
def test_a_module_holds_its_integers_twice(backend: str, on_the_way: int) -> None:
    """As tensors and packed: the graph that stays with it reads the module's own tensors. Making it copies no float weight."""
    _, prepared, data = wide(backend)
    codes = sum(t.numel() for t in prepared.parameters())
    module = qcompiler.convert_fx(prepared)
    most, left = live(lambda: qcompiler.convert_fx(prepared))
    assert left < 2.2 * codes and most < on_the_way * codes
    own = {t.data_ptr() for t in module.state_dict().values()}
    assert {t.data_ptr() for t in module.lowered.state_dict().values()} <= own  # type: ignore[union-attr]
    assert torch.equal(module.lowered(data[0]), module(data[0]))  # type: ignore[operator]


@pytest.mark.parametrize("backend", ["torch", "native", "toy"])
def test_what_a_user_is_given_shares_nothing(backend: str) -> None:
    """Neither with the prepared module, whose floats may be trained or loaded anew, nor with corrections."""
    register("toy", TOY)
    _, prepared, _ = wide(backend)
    floats = {name: tensor.clone() for name, tensor in prepared.named_parameters()}
    codes = {"body.2.weight": attribute(qcompiler.convert_to_reference_fx(prepared), "body.2.weight").clone()}
    given = Corrections(weights={"body.0.weight": floats["body.0.weight"].detach()}, codes=codes)
    before = {tensor.data_ptr() for tensor in (*prepared.parameters(), *given.weights.values(), *given.codes.values())}
    for made in (qcompiler.convert_fx(prepared, corrections=given), qcompiler.convert_to_reference_fx(prepared, corrections=given),
                 qcompiler.convert_fx(prepared, keep_float=["body.2"])):  # fmt: skip
        assert not before & {tensor.data_ptr() for tensor in made.state_dict().values()}
        graph = getattr(made, "lowered", None)
        assert graph is None or not before & {tensor.data_ptr() for tensor in graph.state_dict().values()}


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_module_that_is_gone_leaves_nothing(backend: str) -> None:
    """No class, function or graph that refers to itself has its packs and tensors up to the next garbage collection."""
    _, prepared, data = wide(backend)
    gc.collect()
    gc.disable()
    try:
        module = qcompiler.convert_fx(prepared)
        module(data[0])
        held = [weakref.ref(thing) for thing in (module, *module.buffers(), *regions_of(module))]
        one = Candidate(Step("one", None, 0.0, True, ""), module, Score(1.0, 0.0), 1.0, 0)
        del module
        one = one.without_module(prepared)
        assert one.module is None and all(reference() is None for reference in held)
        assert all(tensor.numel() for tensor in prepared.parameters())
    finally:
        gc.enable()


def test_a_plan_has_no_table_of_its_own() -> None:
    """A native module of an embedding whose integers are signed, as the kernel does not take them."""
    model, x = nn.Sequential(nn.Embedding(3000, 64), nn.Linear(64, 8)).eval(), torch.arange(6)[None]
    prepared = qcompiler.prepare_fx(model, None, (x,), backend="native")
    qcompiler.calibrate(prepared, [x])
    module = qcompiler.convert_fx(prepared)
    own = {t.untyped_storage().data_ptr() for t in module.state_dict().values()}
    tables = [layer.table for region in regions_of(module) for layer in region.network.layers if isinstance(layer, Embed)]
    assert tables and all(table.values.untyped_storage().data_ptr() in own for table in tables)


def test_what_a_graph_keeps_between_calls_is_its_own() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.register_buffer("sum", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.sum += x.mean(0)
            y: Tensor = self.first(x + self.sum)
            return y

    x = torch.randn(3, 4)
    prepared = qcompiler.prepare_fx(Counts().eval(), None, (x,), backend="reference")
    qcompiler.calibrate(prepared, [x])
    made = graph_of(prepared, Corrections())
    before = {name: t.clone() for name, t in prepared.state_dict().items()}
    first = made(x)
    assert not torch.equal(made(x), first)
    assert torch.equal(graph_of(prepared, Corrections())(x), first)
    assert all(torch.equal(t, before[name]) for name, t in prepared.state_dict().items())


def test_a_wide_weight_is_rounded_in_three_times_its_moments() -> None:
    products = 768
    rows, weight = torch.randn(1, 2000, products), torch.randn(1, 4, products).double()
    h = (rows.mT @ rows).double() / 2000
    moments, scale = Moments(h, weight @ h), weight.abs().amax(-1, keepdim=True) / 127
    grid = Grid(scale, torch.zeros_like(scale), -127, 127)
    assert live(lambda: sequential(weight, moments, grid, 1.0))[0] < 2.3 * h.nbytes  # beside the moments
    many = torch.randn(1, 1000, 100).double()  # a weight far larger than its moments
    rows, scale = torch.randn(1, 500, 100), many.abs().amax(-1, keepdim=True) / 127
    moments, grid = Moments((rows.mT @ rows).double(), many @ (rows.mT @ rows).double()), Grid(scale, torch.zeros_like(scale), -127, 127)
    start = grid.nearest(many).to(torch.int8)
    assert live(lambda: reconstructed(many, start, moments, grid, 1.0))[0] < 4.5 * many.nbytes


def test_rows_of_images_are_drawn_one_image_at_a_time() -> None:
    model, x = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1)).eval(), torch.randn(8, 16, 20, 20)
    prepared = qcompiler.prepare_fx(model, None, (x,), backend="reference")
    qcompiler.calibrate(prepared, [x])
    site, generator = next(iter(sites(twins(prepared)[0]))), torch.Generator().manual_seed(0)
    of_rows = 8 * 400 * 16 * 9 * 4
    most, left = live(lambda: sample(site, x, x, 10000, generator))
    assert 2 * of_rows <= left and most < 2.5 * of_rows


def test_a_weight_is_converted_some_rows_at_a_time() -> None:
    codes = torch.randint(-128, 128, (1024, 1024), dtype=torch.int8)
    scale, zero_point = torch.rand(1024).double() + 0.5, torch.zeros(1024, dtype=torch.int32)
    for axis, s in ((0, scale[:, None]), (1, scale)):
        real = dequantize_weight(codes, scale, zero_point, axis)
        assert torch.equal(real, (codes.double() * s).float())
        assert torch.equal(quantize_weight(real, scale, zero_point, axis, -128, 127), codes)
    assert live(lambda: dequantize_weight(codes, scale, zero_point, 0))[0] < 2.2 * real.nbytes
    assert live(lambda: quantize_weight(real, scale, zero_point, 0, -128, 127))[0] < real.nbytes


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_large_value_is_rounded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same integers, in the layout of the value; where somebody records what is done it is done at once."""
    x, grid = torch.randn(4, 8, 60, 50) * 3, (0.02, 7, 0, 255, torch.uint8)
    whole = quantize(x, *grid)
    recorded = torch.jit.trace(lambda y: quantize(y, *grid), x)  # type: ignore[no-untyped-call]
    monkeypatch.setattr(reference, "PIECE", 1000)
    for given in (x, x.to(memory_format=torch.channels_last), x[:, ::2], x.requires_grad_()):
        found = quantize(given, *grid)
        assert torch.equal(found, whole[:, ::2] if given.shape[1] == 4 else whole)
        assert given.shape[1] == 4 or found.stride() == given.stride()
    again = torch.jit.trace(lambda y: quantize(y, *grid), x.detach())  # type: ignore[no-untyped-call]
    assert str(again.graph) == str(recorded.graph)
    assert torch.equal(torch.func.functionalize(lambda y: quantize(y, *grid))(x.detach()), whole)  # type: ignore[attr-defined]
    monkeypatch.undo()
    large = torch.randn(1024, 1024)
    assert live(lambda: quantize(large, *grid))[0] < 0.6 * large.nbytes


def test_a_histogram_of_a_weight_counts_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "COUNTED", 1000)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (30, 41, 3), dtype=torch.int8, generator=generator)
    for axis, count in ((0, 30), (1, 41), (None, 1)):
        scale, zero = torch.rand(count, generator=generator).double() + 0.5, torch.zeros(count, dtype=torch.int64)
        whole, weight = tally.Counter(), Weight(codes, scale, zero, axis)
        whole.add(codes.double() * (scale if axis is None else scale.reshape([-1 if d == axis else 1 for d in range(3)])))
        monkeypatch.setattr(tally, "PIECE", 500)
        found, wanted = tally.weight_histogram(weight), whole.histogram()
        assert found is not None and wanted is not None
        assert (found.low, found.high, found.counts) == (wanted.low, wanted.high, wanted.counts)
    monkeypatch.undo()
    wide = Weight(torch.ones(1024, 1024, dtype=torch.int8), torch.ones(1024), torch.zeros(1024), 0)
    assert live(lambda: tally.weight_histogram(wide))[0] < 6 * wide.values.nbytes


def test_a_comparison_of_own_errors_holds_few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "PIECE", 2**12)
    monkeypatch.setattr(walk, "PIECE", 2**12)
    model, data = Deep(8).eval(), batches(1)
    prepared = qcompiler.prepare_fx(model, None, (data[0],), backend="reference")
    qcompiler.calibrate(prepared, data)
    one, twin = 4 * 8 * 64 * 64 * 4, twins(prepared)[0]
    item = read(data, False)[0]
    found = _errors(twin.floats, twin.quantized, item)
    assert live(lambda: _errors(twin.floats, twin.quantized, item))[0] < 5.6 * one
    monkeypatch.undo()
    one_by_one, other = steps_of_graph(twin.floats), steps_of_graph(twin.quantized)
    with_totals = Tallies(Walk(one_by_one, other, match(one_by_one, other)), "")
    with torch.inference_mode():
        with_totals.add(0, item.args, {})
    whole = {row.name: (row.own, row.own_channel) for row in with_totals.comparison()}
    assert {row.name: (row.own, row.own_channel) for row in found} == {name: pytest.approx(both) for name, both in whole.items()}


def test_what_lies_in_a_file_is_read_by_pieces() -> None:
    kept, value = shelf.NamelessFile(), torch.randn(300, 400)
    for given in (value, value.T, value.to(torch.float64)):
        found = list(pieces(kept.put(given), 7000))
        assert torch.equal(torch.cat(found), given.reshape(-1)) and [len(part) for part in found] == [7000] * 17 + [1000]
    made = kept.put(value)
    assert live(lambda: [part.sum() for part in pieces(made, 1000)])[0] < value.nbytes / 20


def test_results_that_are_waited_for_lie_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "ROOM", 0)
    held = [{"a": torch.randn(300, 400) + i, "b": (torch.ones(2), 7)} for i in range(3)]
    found = shelf.Results(held)
    assert len(found) == 3 and isinstance(found._kept[1]["a"], Written)  # type: ignore[index]
    for one, wanted in zip(found, held, strict=True):
        assert torch.equal(one["a"], wanted["a"]) and torch.equal(one["b"][0], wanted["b"][0]) and one["b"][1] == 7  # type: ignore[index]


def test_a_model_that_changes_its_parameters_is_left_as_it_was() -> None:
    class Halves(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data.mul_(0.5)
            return super().forward(x)

    model = nn.Sequential(Halves(4, 4), nn.Linear(4, 2)).eval()
    called, x = copy.deepcopy(model), torch.randn(2, 4)
    assert set(_unchanged(model, called)) == {id(p) for p in model.parameters()}
    called(x)
    assert set(_unchanged(model, called)) == {id(p) for name, p in model.named_parameters() if name != "0.weight"}
