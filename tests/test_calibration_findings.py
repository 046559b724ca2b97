"""What calibration tells of its data: whether it was enough, what stands out in it, what does not belong to it."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler import QConfig
from qcompiler.compile.journal import Remark
from qcompiler.inputs.fingerprint import number_of_call
from qcompiler.observers import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, default_per_channel_weight_observer
from qcompiler.observers.watch import Watch
from qcompiler.prepared.calibration import Seen, _width_of

Data = list[Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    return nn.Sequential(*layers).eval()


def randn(count: int = 16, size: int = 8) -> Data:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(count)]


def told(data: Data, example: Tensor | None = None, model: nn.Module | None = None, mapping: QConfig | None = None) -> list[Remark]:
    """The remarks of calibration."""
    prepared = qcompiler.prepare_fx(model or net(), mapping, (data[0] if example is None else example,))
    qcompiler.calibrate(prepared, data)
    return of_calibration(prepared)


def of_calibration(module: object) -> list[Remark]:
    return [remark for remark in qcompiler.remarks(module) if remark.pass_name == "calibrate"]


def codes(remarks: list[Remark]) -> list[str]:
    return [remark.code for remark in remarks]


def scaled(data: Data, factors: dict[int, float]) -> Data:
    return [x * factors.get(i, 1.0) for i, x in enumerate(data)]


QUIET = {
    "random": randn(),
    "a dark batch": scaled(randn(), {3: 0.0}),
    "one of one image": [torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(64)],
}


@pytest.mark.parametrize("name", QUIET)
def test_nothing_is_wrong_with_usual_data(name: str) -> None:
    assert set(codes(told(QUIET[name]))) <= {"calibration-enough"}


def test_enough_says_by_how_much_the_ranges_moved() -> None:
    (remark,) = told(scaled(randn(6), {0: 2.0}))
    assert remark.text.startswith("6 batches: over the last 3 of them the ranges grew by 0.0% on average, by 0.0% at most (%")
    assert remark.text.endswith("): 6 were enough")


@pytest.mark.parametrize(("count", "words"), [
    (1, ("1 batch: fewer than 4", "3 more would, or this one in parts: data.split(rows)")),
    (2, ("2 batches that differ: fewer than 4", "2 more would")),
    (3, ("3 batches that differ: fewer than 4", "1 more would")),
])  # fmt: skip
def test_few_batches_cannot_be_judged(count: int, words: tuple[str, str]) -> None:
    (remark,) = told(randn(count))
    assert remark.code == "calibration-few" and remark.text.startswith(words[0]) and remark.text.endswith(words[1])


def test_the_same_data_again_counts_once() -> None:
    """The same object and an equal one; a second epoch."""
    (x,) = randn(1)
    again, few = told([x, x, x.clone(), x.flip(0).flip(0), x, x, x, x])
    assert again.code == "calibration-repeated" and again.text.startswith("7 of 8 batches are the same data as one before them")
    assert "(1 as 0, 2 as 0," in again.text and few.code == "calibration-few" and few.text.startswith("1 batch:")
    again, few = told([*randn(3), *randn(3)])
    assert "3 of 6 batches" in again.text and "(3 as 0, 4 as 1, 5 as 2)" in again.text and few.text.startswith("3 batches that differ")
    again, *rest = told([*randn(16), *randn(16)])
    assert "(16 as 0, " in again.text and ", 23 as 7 and 8 more)" in again.text and rest[-1].text.startswith("16 batches:")


def test_ranges_that_all_data_fills_are_no_sign_of_the_same_data() -> None:
    """Black and white images, in front of a layer that hands out floats, and of one that is cut at its upper end."""
    images = [torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), x.sigmoid()]) for x in randn(6)]
    cut = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    nn.init.constant_(next(cut.parameters()), 2.5)
    for model in (cut, nn.Sequential(nn.Flatten(), nn.Linear(192, 4))):
        (remark,) = told(images, model=model.eval())
        assert remark.code == "calibration-enough" and "grew by 0.0%" in remark.text
        again, few = told(images[:1] * 8, model=model.eval())
        assert again.code == "calibration-repeated" and few.code == "calibration-few"


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.state.copy_(self.state + F.relu(self.a(x)).mean(0))
        y: Tensor = self.b(self.state + x)
        return y


def test_calls_in_turn_are_no_repetition() -> None:
    """Of a model that keeps state the same input is another batch."""
    torch.manual_seed(0)
    assert "calibration-repeated" not in codes(told([torch.ones(2, 4)] * 6, model=Counting().eval()))


def test_the_number_of_data() -> None:
    x, ids = torch.randn(2, 3), torch.arange(3)
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = [
        ((x,), {}), ((x.T,), {}), ((x, ids), {}), ((x,), {"ids": ids}), ((x, 1), {}), ((x, 2), {}), ((x.double(),), {}), (([x],), {}),
    ]  # fmt: skip
    assert len({number_of_call(*call) for call in calls}) == len(calls)
    assert number_of_call((x.clone(), [ids]), {}) == number_of_call((x, [ids]), {})
    assert math.isnan(number_of_call((x, object()), {})) and math.isnan(number_of_call((x.to_sparse(),), {}))


@pytest.mark.parametrize("number", [0.0, 1.0, -3.0])
def test_an_input_of_one_number(number: float) -> None:
    """What stands for data where none is at hand."""
    first = told([torch.full((2, 3, 8, 8), number)] * 6, torch.randn(1, 3, 8, 8))[0]
    assert (first.code, first.node) == ("calibration-constant", "input_1") and f"it is {number:.4g} everywhere" in first.text


def test_images_as_files_have_them() -> None:
    images = [(x * 60 + 128).clamp(0, 255).round() for x in randn()]
    first = told(images)[0]
    assert (first.code, first.node) == ("calibration-pixels", "input_1") and "0 .. 255" in first.text
    for other in ([x / 255 for x in images], [x - 128 for x in images]):
        assert codes(told(other)) == ["calibration-enough"]


def test_too_few_batches_say_how_many_more() -> None:
    growing = scaled(randn(), {i: 1 + i / 8 for i in range(16)})
    (remark,) = told(growing)
    assert remark.code == "calibration-short" and "more would settle them" in remark.text


def test_data_in_an_order_says_that_it_should_be_shuffled() -> None:
    """Nothing is missing from a random half: only the first half lacks what the second has."""
    in_order = scaled(randn(), dict.fromkeys(range(8, 16), 1.3))
    (remark,) = told(in_order)
    assert remark.code == "calibration-short" and "shuffle the data" in remark.text


@pytest.mark.parametrize("place", [0, 5, 15])
def test_a_batch_that_stands_out_is_named(place: int) -> None:
    """And it is left out of what is said of the others."""
    batch, rest = told(scaled(randn(), {place: 10.0}))
    assert batch.code == "calibration-batch" and batch.text.startswith(f"batch {place} of")
    assert rest.code == "calibration-enough" and rest.text.startswith("15 batches")


class Skewed(nn.Module):
    """One of its values is far larger for inputs above 4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.rare = nn.Conv2d(3, 4, 1)
        nn.init.constant_(self.rare.weight, 0.0)
        self.rare.weight.data[:, 0] = 1000.0
        nn.init.constant_(self.rare.bias, -4500.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.c(self.b(self.a(x))), F.relu(self.rare(x))


def test_a_value_of_one_batch_is_named() -> None:
    data = [x.clamp(-2, 2) for x in randn()]
    data = [torch.cat([x[:-1], torch.full_like(x[-1:], 2.0)]) for x in data]
    data = [torch.where(x == 2.0, 4.501, x) if i != 7 else torch.where(x == 2.0, 4.6, x) for i, x in enumerate(data)]
    found = [r for r in told(data, model=Skewed().eval()) if r.code == "calibration-value"]
    assert [(r.node, r.where.module_path) for r in found] == [("rare", "rare")] and "batch 7 alone" in found[0].text


@pytest.mark.parametrize(("data", "example"), [
    ([(x * 60 + 128).clamp(0, 255) for x in randn()], torch.randn(1, 3, 8, 8)),
    (randn(), torch.full((1, 3, 8, 8), 255.0)),
    (randn(1), torch.rand(1, 3, 8, 8) * 255),
])  # fmt: skip
def test_data_unlike_the_example(data: Data, example: Tensor) -> None:
    first = told(data, example)[0]
    assert (first.code, first.node) == ("calibration-unlike-example", "input_1") and "normalized" in first.text


@pytest.mark.parametrize("example", [torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.rand(1, 3, 8, 8) * 2 - 1])
def test_examples_that_data_belongs_to(example: Tensor) -> None:
    assert codes(told(randn(), example)) == ["calibration-enough"]


class Dropping(nn.Module):
    def __init__(self, **given: bool) -> None:
        super().__init__()
        self.a, self.b, self.given = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), given

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.dropout(self.a(x), 0.5, **self.given))
        return y


def test_a_dropout_that_is_left_on() -> None:
    remark, few = told(randn(1), model=Dropping().eval())
    assert (
        few.code == "calibration-few"
        and (remark.code, remark.node) == ("train-mode", "dropout")
        and "training=self.training" in remark.text
    )
    assert codes(told(randn(1), model=Dropping(training=False).eval())) == ["calibration-few"]


def norm(x: Tensor, **given: bool) -> Tensor:
    return F.batch_norm(x, torch.zeros(4), torch.ones(4), **given)


AS_IN_TRAINING: dict[str, Callable[[Tensor], Tensor]] = {
    "F.batch_norm": lambda x: norm(x, training=True),
    "F.batch_norm by position": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), None, None, True),
    "F.batch_norm without statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "torch.batch_norm": lambda x: torch.batch_norm(x, None, None, torch.zeros(4), torch.ones(4), True, 0.1, 1e-5, False),
    "torch.native_batch_norm": lambda x: torch.native_batch_norm(x, None, None, torch.zeros(4), torch.ones(4), True, 0.1, 1e-5)[0],
    "F.rrelu": lambda x: F.rrelu(x, training=True),
    "torch.rrelu": lambda x: torch.rrelu(x, 0.1, 0.3, True),
    "torch.native_dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "torch.feature_dropout": lambda x: torch.feature_dropout(x, 0.5, True),
    "dropout of attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "nn.BatchNorm2d": nn.BatchNorm2d(4, track_running_stats=False).eval(),
}
AS_IN_USE: dict[str, Callable[[Tensor], Tensor]] = {
    "F.batch_norm": norm,
    "F.rrelu": F.rrelu,
    "F.instance_norm": F.instance_norm,  # its statistics are of one row
    "torch.native_dropout": lambda x: torch.native_dropout(x, 0.5, False)[0],
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.0),
    "nn.BatchNorm2d": nn.BatchNorm2d(4).eval(),
}


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.function(self.a(x)))
        return y


@pytest.mark.parametrize("name", AS_IN_TRAINING)
def test_what_computes_as_in_training(name: str) -> None:
    remark, *few = told(randn(1), model=Between(AS_IN_TRAINING[name]).eval())
    assert codes(few) == ["calibration-few"] and remark.code == "train-mode" and remark.node not in ("a", "b", "x")


@pytest.mark.parametrize("name", AS_IN_USE)
def test_what_computes_as_in_use(name: str) -> None:
    assert codes(told(randn(1), model=Between(AS_IN_USE[name]).eval())) == ["calibration-few"]


@pytest.mark.parametrize("observer", [MinMaxObserver, HistogramObserver, MovingAverageMinMaxObserver])
def test_every_observer_of_a_range_tells(observer: type[nn.Module]) -> None:
    mapping = QConfig(observer, default_per_channel_weight_observer)
    assert codes(told(scaled(randn(), {5: 10.0}), mapping=mapping))[0] == "calibration-batch"


class Quiet(MinMaxObserver):
    def forward(self, x: Tensor) -> Tensor:
        self._widen(*torch.aminmax(x))
        return x


def test_an_observer_that_tells_nothing() -> None:
    assert not told(scaled(randn(), {5: 10.0}), mapping=QConfig(Quiet, default_per_channel_weight_observer))


def test_calls_add_up_and_failed_batches_leave_nothing() -> None:
    prepared = qcompiler.prepare_fx(net(), None, (randn(1)[0],))
    data = randn()
    qcompiler.calibrate(prepared, data[:5])
    with pytest.raises(qcompiler.CalibrationError, match="batch 0"):
        qcompiler.calibrate(prepared, [data[5] * torch.nan])
    twin = copy.deepcopy(prepared)
    qcompiler.calibrate(prepared, [data[5] * 10, *data[6:]])
    assert any(remark.text.startswith("batch 5 of") for remark in qcompiler.remarks(prepared))
    assert not any(remark.code == "calibration-batch" for remark in qcompiler.remarks(twin))
    loaded = pickle.loads(pickle.dumps(prepared))
    assert list(map(Remark.to_data, qcompiler.remarks(loaded))) == list(map(Remark.to_data, qcompiler.remarks(prepared)))
    watches = [module for module in prepared.modules() if isinstance(module, Watch)]
    assert watches and not any("latest" in vars(watch.observer) for watch in watches)


def test_remarks_survive_decisions_that_are_taken_again() -> None:
    prepared = qcompiler.prepare_fx(net(), None, (randn(1)[0],))
    qcompiler.calibrate(prepared, scaled(randn(), {5: 10.0}))
    for kept in ((), ["0"]):
        made = qcompiler.convert_fx(prepared, keep_float=kept)
        assert codes(of_calibration(made)) == ["calibration-batch", "calibration-enough"]


def test_forms_of_the_call_have_batches_of_their_own() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.a(x) if mask is None else self.a(x * mask)

    torch.manual_seed(0)
    (x, *others), mask = torch.randn(5, 8, 4), torch.ones(8, 4)
    prepared = qcompiler.prepare_fx(Masked().eval(), None, (x,), example_kwargs=[{}, {"mask": mask}])
    qcompiler.calibrate(prepared, [call for y in others for call in ((y,), (y, mask))] + [(x * 10,)])
    made = qcompiler.convert_fx(prepared)
    texts = [r.text for r in qcompiler.remarks(made) if r.pass_name == "calibrate"]
    assert [text.partition(":")[0].partition(" of the")[0] for text in texts] == ["batch 8", "4 batches", "4 batches"]


def test_the_width_of_some_of_the_batches() -> None:
    """Against all subsets."""
    high = torch.rand(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = Seen([], list(range(6)), [], -high / 2, high)
    for count in range(1, 7):
        chosen = [1.5 * max(some) for some in combinations(high[0].tolist(), count)]
        assert _width_of(seen, count).item() == pytest.approx(sum(chosen) / len(chosen))
