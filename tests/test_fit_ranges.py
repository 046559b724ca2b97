"""Ranges that cost the results least: few large numbers that count little are cut off, those that count are not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, convert_to_reference_fx, prepare_fx
from qcompiler.errors import CalibrationError, ConfigError, InputError
from qcompiler.tune import Corrections, equalize, fit_ranges, reconstruct
from qcompiler.tune.groups import named_ranges
from qcompiler.tune.ranges import _measured, _Weighed
from qcompiler.workflow.twins import twins
from tests.test_equalize import MODELS, prepared_model

FEW = 0.002  # share of large numbers


class Outliers(nn.Module):
    """Values with a few numbers ten times as large as all others, in a channel that counts `counts` times as much as the others."""

    def __init__(self, counts: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4).reshape(4, 4, 1, 1))
            self.first.bias.zero_()  # type: ignore[union-attr]
            self.last.weight[:, 0] *= counts

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x))
        return y


def images(count: int = 3, rows: int = 4) -> list[Tensor]:
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(count):
        x = torch.randn(rows, 4, 16, 16, generator=generator)
        x[:, 0] *= torch.where(torch.rand(x[:, 0].shape, generator=generator) < FEW, 10.0, 1.0)
        found.append(x)
    return found


def calibrated(model: nn.Module, data: list[Tensor], backend: str = "native", **given: object) -> fx.GraphModule:
    prepared = prepare_fx(model.eval(), None, (data[0],), backend=backend, **given)
    calibrate(prepared, data)
    return prepared


def width(ends: tuple[float, float]) -> float:
    return ends[1] - ends[0]


def ranges_of(prepared: fx.GraphModule) -> dict[str, tuple[float, float]]:
    from qcompiler.ir.types import quant_of

    gm = convert_to_reference_fx(prepared)
    return {node.name: quant.qparams.range for node in gm.graph.nodes if (quant := quant_of(node)).qparams is not None}


def noise(wanted: Tensor, made: Tensor) -> float:
    return float((wanted - made).detach().square().mean())


def test_what_counts_little_is_cut_and_what_counts_is_not() -> None:
    data = images()
    for counts, cut in ((0.01, True), (1.0, False)):
        prepared = calibrated(Outliers(counts), data)
        found, before = fit_ranges(prepared, data).ranges, ranges_of(prepared)
        narrow = "first" in found and width(found["first"]) < 0.8 * width(before["first"])
        assert narrow == cut, (counts, found, before)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_other_data_gains_on_each_back_end(backend: str) -> None:
    model, data = Outliers(0.01), images()
    prepared, other = calibrated(model, data, backend), images(5)[-1]
    found = fit_ranges(prepared, data)
    plain, fitted = (noise(model(other), convert_fx(prepared, corrections=c)(other)) for c in (None, found))
    assert fitted < 0.6 * plain


def test_it_builds_on_other_corrections_and_stands_under_them() -> None:
    data = images()
    prepared = calibrated(Outliers(0.01), data)
    first = equalize(prepared, data, alpha=0.5)
    second = fit_ranges(prepared, data, corrections=first)
    assert second.weights.keys() == first.weights.keys() and second.ranges.keys() >= first.ranges.keys()
    third = reconstruct(prepared, data, corrections=second)
    assert third.ranges == second.ranges and third.codes


@pytest.mark.parametrize("name", MODELS)
def test_each_order_of_steps_is_one_overlay(name: str) -> None:
    """Values that share steps keep one range, under whichever of their names it stands."""
    _, prepared, x = prepared_model(name)
    found = None
    for step in (fit_ranges, equalize, fit_ranges, equalize):
        found = step(prepared, [x[:4], x[4:]], corrections=found)
        convert_to_reference_fx(prepared, corrections=found)(x)


def test_a_batch_that_does_not_fit_is_named() -> None:
    data = images()
    prepared = calibrated(Outliers(), data)
    with pytest.raises(InputError, match="batch 1"):
        fit_ranges(prepared, [data[0], torch.ones(4, 3, 16, 16)])


def test_a_seed_gives_the_same_and_nothing_is_changed() -> None:
    model, data = Outliers(0.01), images()
    prepared = calibrated(model, data)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    assert fit_ranges(prepared, data) == fit_ranges(prepared, iter(data))
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Fixed(nn.Module):
    """A sigmoid's range is its own, and a cat's inputs share steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([torch.sigmoid(self.a(x)), x], 1)).relu()


class Keeps(nn.Module):
    """Keeps a state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)
        self.register_buffer("last", torch.zeros(4, 4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x + self.last)
        return self.last


class Looks(nn.Module):
    """Indices have no gradients, what they look up has."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a = nn.Embedding(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.table((x.flatten(1)[:, :5] > 0).long())))


@pytest.mark.parametrize("make", [Fixed, Keeps, Looks])
def test_models_whose_ranges_are_not_all_free(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    data = images()
    prepared = calibrated(make(), data)
    found = fit_ranges(prepared, data)
    convert_fx(prepared, corrections=found)
    (twin,) = twins(prepared)
    assert not any("sigmoid" in name for name in found.ranges) and twin.measured


def test_under_inference_mode_and_without_gradients() -> None:
    data = images()
    prepared = calibrated(Outliers(0.01), data)
    wanted = fit_ranges(prepared, data)
    with torch.inference_mode():
        made = [x.clone() for x in data]
        assert fit_ranges(prepared, made) == wanted
    with torch.no_grad():
        assert fit_ranges(prepared, made) == wanted


class NoGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).argmax(1).float()


def test_results_without_gradients_change_nothing() -> None:
    data = images()
    assert not fit_ranges(calibrated(NoGradients(), data), data)


def test_it_tells_and_what_it_refuses() -> None:
    data, told = images(), list[tuple[int, int]]()
    prepared = calibrated(Outliers(), data)
    fit_ranges(prepared, data, tell=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(CalibrationError, match="0 batches"):
        fit_ranges(prepared, [])
    with pytest.raises(ConfigError, match="seed"):
        fit_ranges(prepared, data, seed=0.5)  # type: ignore[arg-type]


def test_nothing_of_a_batch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks that hold what holds them would keep all values of all batches, and no garbage collection sees it."""
    taken: list[weakref.ref[Tensor]] = []

    def take(one: _Weighed, value: Tensor, weights: Tensor) -> None:
        taken.extend((weakref.ref(value), weakref.ref(weights)))

    monkeypatch.setattr(_Weighed, "add", take)
    fit_ranges(calibrated(Outliers(), images()), images())
    gc.collect()
    assert len(taken) >= 2 * 3 * 2 and all(tensor() is None for tensor in taken)


class Parts(nn.Module):
    """A result whose parts are of unlike range, so that each has a scale of its own: a product takes the place of the small one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.both, self.last = nn.Conv2d(4, 16, 1), nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            self.both.weight[:8] *= 20

    def forward(self, x: Tensor) -> Tensor:
        large, small = self.both(x).chunk(2, 1)
        y: Tensor = self.last(small) + torch.tanh(large)
        return y


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_ranges_of_parts_have_the_names_of_the_parts(backend: str) -> None:
    data = images()
    prepared = calibrated(Parts().eval(), data, backend)
    twin = twins(prepared)[0]
    assert any(name.name.endswith("_part") for name in twin.quantized.graph.nodes)
    names = named_ranges(twin, dict.fromkeys((one.group for one in _measured(twin)), (-0.5, 0.5)), Corrections())
    assert set(names) <= {node.name for node in prepared.graph.nodes} and "getitem_1" in names
    found = fit_ranges(prepared, data) | fit_ranges(prepared, data, corrections=Corrections(ranges=names))
    assert found.ranges and convert_fx(prepared, corrections=found)(data[0]).isfinite().all()
