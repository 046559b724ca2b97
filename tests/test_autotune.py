"""autotune: what it takes and leaves, what it keeps its hands off, how it stops and goes on. Small seeded networks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.config.corrections import Corrections
from qcompiler.observers import MinMaxObserver, default_weight_observer
from qcompiler.tune import autotune as room
from qcompiler.tune import candidates, islands, reconstruct, report
from qcompiler.tune.candidates import Candidate, chosen, worth_building
from qcompiler.tune.clock import Clock, OutOfTime
from qcompiler.tune.diagnose import Diagnosis
from qcompiler.tune.goal import Goal
from qcompiler.tune.held_out import Item, read, split
from qcompiler.tune.let_go import let_go
from qcompiler.tune.moves import MOVES, Move, State, Tell
from qcompiler.tune.result import Tuned
from qcompiler.tune.score import Judge, Score, refusal
from qcompiler.tune.search_log import Step
from qcompiler.tune.times import FLOAT, Moment, Times
from qcompiler.tune.trial import Trial


class Net(nn.Module):
    """Depthwise and pointwise: rounding of weights limits it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*[m for _ in range(2) for m in (nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(),
                                                                   nn.Conv2d(16, 16, 1), nn.ReLU6())])  # fmt: skip
        self.head = nn.Linear(16, 10)
        for weight in (self.stem.weight, *(m.weight for m in self.blocks if isinstance(m, nn.Conv2d))):
            weight.data *= torch.exp(torch.randn(weight.shape))  # large next to small: few steps for the small ones

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y


def data(count: int = 8, rows: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 3, 12, 12, generator=generator) for _ in range(count)]


def tuned(**given: Any) -> Tuned:
    return qcompiler.autotune(Net().eval(), given.pop("data", data()), **{"progress": False, "seconds": 600} | given)


def accuracy(outputs: object, batch: Any) -> Tensor:
    assert isinstance(outputs, Tensor)
    return (outputs.argmax(1) == batch[1]).float().mean()


@pytest.fixture(scope="module")
def result() -> Tuned:
    return tuned()


def test_it_gains_on_data_that_it_never_saw(result: Tuned) -> None:
    model, other = Net().eval(), data(20)[8:]
    with torch.inference_mode():
        expected = [model(x) for x in other]
        default, best = (
            qcompiler.debug.compute_sqnr(expected, [m(x) for x in other]) for m in (qcompiler.convert_fx(result.prepared), result.model)
        )
    assert best > default + 1
    assert [row.name for row in result.table] == ["float", "default", *(step.name for step in result.steps[1:])]
    assert sum(row.chosen for row in result.table) == 1


def test_the_figures_of_the_table_are_those_of_the_module(result: Tuned) -> None:
    """In real int8, on the held-out batches."""
    held = split(read(data(), False), 0.25, 0)[1]
    model, row = Net().eval(), next(row for row in result.table if row.chosen)
    with torch.inference_mode():
        sqnr = qcompiler.debug.compute_sqnr([model(*item.args) for item in held], [result.model(*item.args) for item in held])
    assert row.score is not None and row.score.sqnr == pytest.approx(sqnr)
    assert row.size == sum(t.numel() * t.element_size() for t in result.model.state_dict().values())


def test_the_corrections_build_the_same_module_anew(result: Tuned) -> None:
    again = qcompiler.convert_fx(result.prepared, corrections=result.corrections)
    assert torch.equal(again(data()[0]), result.model(data()[0]))


def test_a_seed_gives_the_same_result(result: Tuned) -> None:
    again = tuned()
    assert again.corrections == result.corrections and torch.equal(again.model(data()[0]), result.model(data()[0]))


def test_the_model_is_not_changed() -> None:
    model = Net().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    qcompiler.autotune(model, data(), progress=False, target=1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_print_and_report(result: Tuned, tmp_path: Path) -> None:
    text = str(result)
    assert "reconstruct" in text and "weights alone" in text and "MACs int8" in text and "ms, batch of 4" in text
    page = result.save_report(tmp_path / "made")
    assert page.name == "report.html" and 'href="graph.html"' in page.read_text() and "<polyline" in page.read_text()
    graph = (tmp_path / "made" / "graph.html").read_text()
    assert "<script" in graph
    assert result.save_report(tmp_path / "again").read_text() == page.read_text()


def test_names_that_a_mapping_knows_and_others(result: Tuned) -> None:
    """All of them can be pasted into convert_fx; those of modules into a mapping."""
    found = replace(result, keep_float=("mean", "head"))
    assert "(mean: no module, so for convert_fx alone" in str(found) and "(" not in replace(found, keep_float=("head",)).notes()[-1]
    kept = qcompiler.convert_fx(found.prepared, keep_float=found.keep_float)
    assert not {row.node for row in qcompiler.explain(kept).rows if row.int8} & {"mean", "head"}
    mapping = qcompiler.get_default_qconfig_mapping().set_module_name("head", None)
    assert "head" not in {row.node for row in qcompiler.explain(qcompiler.prepare_fx(Net().eval(), mapping, data()[:1])).rows if row.int8}


def test_a_module_that_is_not_as_its_graph_says_so() -> None:
    assert room._apart(Score(29.9, 0.0), Score(15.6, 0.0)).startswith("; 29.9 dB on the reference graph")
    assert not room._apart(Score(29.9, 0.0), Score(29.8, 0.0)) and not room._apart(None, Score(1.0, 0.0))


def test_the_page_shows_what_each_step_changed(result: Tuned) -> None:
    """New weights at what multiplies by them, new ranges at what rounds."""
    weights, ranges = reconstruct(result.prepared, data(2)), Corrections(ranges={"x": (-0.5, 0.5)})
    steps = [result.steps[0], *(Step(name, result.steps[0].score, 0.0, True, "", "", given)
                                for name, given in (("ranges", ranges), ("equalize", ranges | weights)))]  # fmt: skip
    found = report._overlays(replace(result, steps=tuple(steps)))
    assert list(found) == ["changed by ranges", "changed by equalize"]
    assert found["changed by ranges"] == {"x_q": 1.0} and all(0 < share <= 1 for share in found["changed by equalize"].values())


def test_a_target_that_the_default_reaches_ends_it() -> None:
    found = tuned(target="1dB")
    assert found.reached and [step.name for step in found.steps] == ["default"] and not found.corrections


def test_a_target_out_of_reach_is_told() -> None:
    found = tuned(target=200)
    assert not found.reached and "not reached" in str(found)


def test_metric_and_labels() -> None:
    model = Net().eval()
    labelled = [(x, model(x).argmax(1)) for x in data()]
    found = tuned(data=labelled, metric=accuracy, target=0.5)
    first = found.table[0]
    assert first.score is not None and first.score.metric == 1.0 and found.reached and "metric" in str(found)
    assert "exact" in str(found) and "120.0" not in str(found)
    by_dict = tuned(data=[((x,), y) for x, y in labelled], metric=accuracy, target=0.5)
    assert [step.score for step in by_dict.steps] == [step.score for step in found.steps]


def test_a_loader_of_inputs_and_labels() -> None:
    labels = torch.zeros(32)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(data()), labels), batch_size=4)
    assert tuned(data=loader, target=1).reached


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"seconds": 0}, qcompiler.ConfigError, "seconds"),
    ({"seconds": float("nan")}, qcompiler.ConfigError, "seconds"),
    ({"holdout": 1.0}, qcompiler.ConfigError, "holdout"),
    ({"holdout": True}, qcompiler.ConfigError, "holdout"),
    ({"seed": 1.5}, qcompiler.ConfigError, "seed"),
    ({"target": "25 miles"}, qcompiler.ConfigError, "target is a number"),
    ({"target": True}, qcompiler.ConfigError, "target"),
    ({"latency": 0}, qcompiler.ConfigError, "latency"),
    ({"latency": "fast"}, qcompiler.ConfigError, "latency"),
    ({"metric": 3}, qcompiler.ConfigError, "metric must be a function"),
    ({"metric": accuracy}, qcompiler.ConfigError, "pairs of inputs and labels"),
    ({"data": torch.randn(4, 3, 12, 12)}, qcompiler.CalibrationError, r"split\(8\)"),
    ({"data": []}, qcompiler.CalibrationError, "0 batches"),
    ({"data": 3}, qcompiler.ConfigError, "the data to tune on"),
    ({"backends": "torch"}, qcompiler.ConfigError, "there is no option backends"),
    ({"backend": "nothing"}, qcompiler.ConfigError, "nothing"),
]


@pytest.mark.parametrize(("given", "error", "text"), BAD)
def test_bad_arguments_before_any_work(given: dict[str, Any], error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(room, "calibrate", never)
    with pytest.raises(error, match=text):
        tuned(**given)


def test_a_metric_that_is_no_number() -> None:
    labelled = [(x, 0) for x in data()]
    for number, text in ((float("nan"), "nan"), (None, "None"), (torch.zeros(2), r"a tensor of \(2,\)")):
        with pytest.raises(qcompiler.InputError, match=f"the metric is {text}"):
            tuned(data=labelled, metric=lambda outputs, batch, number=number: number)


def moves(monkeypatch: pytest.MonkeyPatch, *made: tuple[str, Callable[[State, Tell, float], Corrections], float]) -> None:
    monkeypatch.setattr(room, "MOVES", tuple(Move(name, lambda state: None, make, least) for name, make, least in made))


def better(state: State, tell: Tell, effort: float) -> Corrections:
    """All in float but the last layer."""
    tell(1, 1)
    return state.corrections | Corrections(keep_float=frozenset({"stem", "blocks.*"}))


def worse(state: State, tell: Tell, effort: float) -> Corrections:
    return state.corrections | Corrections(biases={"head": 50.0 * torch.eye(10)[0]})


def test_a_step_that_hurts_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    moves(monkeypatch, ("worse", worse, 1.0), ("better", better, 1.0), ("none", lambda state, tell, effort: state.corrections, 1.0))
    found = tuned()
    assert [(step.name, step.accepted) for step in found.steps] == [
        ("default", True), ("worse", False), ("better", True), ("none", False)]  # fmt: skip
    assert found.keep_float == ("blocks.*", "stem") and "keep_float=['blocks.*', 'stem']" in str(found)
    assert "falls from" in found.steps[1].why and found.steps[3].why == "it changes nothing"


def test_an_interrupt_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(state: State, tell: Tell, effort: float) -> Corrections:
        raise KeyboardInterrupt

    moves(monkeypatch, ("better", better, 1.0), ("interrupted", interrupted, 1.0), ("worse", worse, 1.0))
    found = tuned()
    assert found.interrupted and [step.name for step in found.steps] == ["default", "better"]
    assert next(row.name for row in found.table if row.chosen) == "better" and "interrupted" in str(found)


def test_no_time_begins_no_step_and_gives_the_default() -> None:
    found = tuned(seconds=1e-3)
    assert next(row.name for row in found.table if row.chosen) == "default"
    assert {step.why for step in found.steps[1:] if step.score is None} >= {"not tried: the time is over"}
    assert all(step.score is None for step in found.steps[1:])


def test_a_step_that_would_end_late_is_done_on_less(monkeypatch: pytest.MonkeyPatch) -> None:
    efforts = []

    def slow(state: State, tell: Tell, effort: float) -> Corrections:
        efforts.append(effort)
        if effort == 1.0:
            raise OutOfTime(needed=1000.0, left=600.0)
        return better(state, tell, effort)

    moves(monkeypatch, ("slow", slow, 0.25), ("slower", slow, 0.9))
    found = tuned()
    assert efforts[0] == 1.0 and 0.25 < efforts[1] < 0.45 and len(efforts) == 3
    assert [step.accepted for step in found.steps] == [True, True, False] and "about 1000 s" in found.steps[2].why


def test_a_step_beyond_its_share_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def slow(state: State, tell: Tell, effort: float) -> Corrections:
        calls.append(effort)
        raise OutOfTime(needed=150.0, left=66.0)

    monkeypatch.setattr("qcompiler.tune.autotune.MOVES", (Move("slow", lambda state: None, slow, share=0.2),))
    assert "about 150 s" in tuned().steps[1].why and calls == [1.0]


def test_the_pace_of_a_step_tells_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = Clock(100.0), [0.0]
    monkeypatch.setattr("qcompiler.tune.clock.time.monotonic", lambda: clock.started + now[0])
    tell = clock.step("step")
    now[0] = 5.0
    tell(1, 100)  # too early to tell
    now[0] = 20.0
    tell(25, 100)
    now[0] = 40.0
    with pytest.raises(OutOfTime, match="about 133 s, and 100 s"):
        tell(30, 100)
    now[0] = 101.0
    tell(100, 100)  # it is over: what it found is there


def test_steps_in_front_of_the_one_that_gains_leave_it_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = Clock(100.0), [0.0]
    monkeypatch.setattr("qcompiler.tune.clock.time.monotonic", lambda: clock.started + now[0])
    tell = clock.step("step", share=0.2)
    now[0] = 3.0
    tell(2, 10)
    now[0] = 5.0
    with pytest.raises(OutOfTime, match="about 25 s, and 20 s"):
        tell(2, 10)
    shares = {move.name: move.share for move in MOVES}
    before = [shares[name] for name in list(shares)[: list(shares).index("reconstruct")]]
    assert math.prod(1 - share for share in before) > 0.5 and shares["reconstruct"] == 1.0


def test_a_step_that_multiplies_is_built_beside_the_one_without() -> None:
    """It may gain and cost time, so both are worth choosing from."""
    columns = Corrections(columns={"weight": torch.ones(4)})
    stages = [Step(name, None, 0.0, True, "", "", c) for name, c in (("default", Corrections()), ("one", Corrections()), ("two", columns))]
    assert [stage.name for stage in worth_building(stages)] == ["one", "two"]


def test_a_log_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, calls = tmp_path / "tune.jsonl", []

    def counted(state: State, tell: Tell, effort: float) -> Corrections:
        calls.append(1)
        return better(state, tell, effort)

    def interrupted(state: State, tell: Tell, effort: float) -> Corrections:
        raise KeyboardInterrupt

    moves(monkeypatch, ("better", counted, 1.0), ("worse", interrupted, 1.0))
    first = tuned(log=log)
    moves(monkeypatch, ("better", counted, 1.0), ("worse", worse, 1.0))
    second = tuned(log=log)
    assert len(calls) == 1 and not second.interrupted
    assert [step.name for step in second.steps] == ["default", "better", "worse"]
    assert second.corrections == first.corrections and second.steps[1].score == first.steps[1].score
    assert [json.loads(line).get("name") for line in log.read_text().splitlines()] == [None, "better", "worse"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"holdout": 0.5}, {"data": data(9)}])
def test_the_log_of_another_search(tmp_path: Path, change: dict[str, Any]) -> None:
    tuned(log=tmp_path / "log", target=1)
    with pytest.raises(qcompiler.ConfigError, match="another " + ("data" if "data" in change else next(iter(change)))):
        tuned(log=tmp_path / "log", target=1, **change)


KEY = """
import torch
from torch import nn
from qcompiler import QConfig, get_default_qconfig_mapping, prepare_fx
from qcompiler.observers import MinMaxObserver, default_weight_observer
from qcompiler.tune.held_out import read
from qcompiler.tune.search_key import search_key
torch.manual_seed(0)
model, data = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), [torch.ones(1, 4)]
own = QConfig(lambda: MinMaxObserver(quant_min=0, quant_max=100), default_weight_observer)
mapping = get_default_qconfig_mapping().set_module_name("0", own)
for name in ("zero", "one", "two"):
    mapping.set_object_type(name, None)
print(search_key(model, prepare_fx(model, mapping, (data[0],)), read(data, False), None, (0.25, 0)))
"""


def test_the_key_is_the_same_in_every_process() -> None:
    """Also with an observer that has no name, and whatever the order of sets is."""
    made = {subprocess.run([sys.executable, "-c", KEY], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
                           check=True).stdout for seed in ("1", "2")}  # fmt: skip
    assert len(made) == 1 and "quantization" in next(iter(made))


OTHERS: list[dict[str, Any]] = [
    {"qconfig_mapping": qcompiler.get_default_qconfig_mapping().set_module_name("head", None)},
    {"qconfig_mapping": qcompiler.QConfig(lambda: MinMaxObserver(quant_min=0, quant_max=100), default_weight_observer)},
]


@pytest.mark.parametrize("options", OTHERS)
def test_the_log_of_another_quantization(tmp_path: Path, options: dict[str, Any]) -> None:
    tuned(log=tmp_path / "log", target=1)
    with pytest.raises(qcompiler.ConfigError, match="another quantization"):
        tuned(log=tmp_path / "log", target=1, **options)


def test_a_step_of_the_log_on_top_of_others_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was no time for the first step, so the second stood alone; taken as it is, it would drop what the first gains now."""
    log = tmp_path / "tune.jsonl"

    def late(state: State, tell: Tell, effort: float) -> Corrections:
        raise OutOfTime(needed=1000.0, left=600.0)

    moves(monkeypatch, ("first", late, 1.0), ("second", better, 1.0))
    assert tuned(log=log).steps[2].accepted
    moves(monkeypatch, ("first", better, 1.0), ("second", better, 1.0))
    found = tuned(log=log)
    assert found.steps[1].accepted and found.steps[2].why == "it changes nothing"
    assert [json.loads(line).get("name") for line in log.read_text().splitlines()] == [None, "first", "second"]


@pytest.mark.parametrize("harm", ["gone", "damaged", "short"])
def test_a_log_whose_steps_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    log, beside = tmp_path / "log", tmp_path / "log.better.safetensors"
    moves(monkeypatch, ("better", better, 1.0))
    tuned(log=log)
    if harm == "gone":
        beside.unlink()
    elif harm == "damaged":
        beside.write_bytes(b"?")
    else:
        first = log.read_text().splitlines()[0]
        log.write_text(first + '\n{"name": "better", "taken": ["default"]}\n')
    with pytest.raises(qcompiler.ConfigError, match="step better cannot be read"):
        tuned(log=log)


@pytest.mark.parametrize("name", ["diagnose", "_judge_default"])
def test_an_interrupt_while_the_default_is_judged_gives_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, name, interrupted)
    found = tuned()
    assert found.interrupted and [(row.name, row.chosen) for row in found.table] == [("float", False), ("default", True)]
    assert found.table[1].score is not None


def test_an_interrupt_while_the_default_is_built_again_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = room.module_of, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return made(*args)

    monkeypatch.setattr(room, "module_of", interrupted)
    moves(monkeypatch, ("worse", worse, 1.0))
    found = tuned()
    assert found.interrupted and len(calls) == 2 and next(row.name for row in found.table if row.chosen) == "default"


def test_a_judged_graph_gives_its_memory_back_at_once() -> None:
    x = data()[0]
    prepared = qcompiler.prepare_fx(Net().eval(), None, (x,))
    qcompiler.calibrate(prepared, [x])
    made, before = qcompiler.convert_to_reference_fx(prepared), {name: t.clone() for name, t in prepared.state_dict().items()}
    held = [weakref.ref(tensor) for tensor in (*made.parameters(), *made.buffers())]
    let_go(prepared, made)
    assert held and all(one() is None for one in held)
    assert all(torch.equal(t, before[name]) for name, t in prepared.state_dict().items()) and prepared.state_dict().keys() == before.keys()


def test_a_file_that_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a line\n")
    with pytest.raises(qcompiler.ConfigError, match="no log"):
        tuned(log=tmp_path / "log")


def test_accepting() -> None:
    score = Score(20.0, 1.0, agreement=0.9, error=0.05)
    assert refusal(score, replace(score, sqnr=20.3)) is None
    assert "gains +0.20 dB" in str(refusal(score, replace(score, sqnr=20.2)))
    assert refusal(score, replace(score, sqnr=25.0, agreement=0.86)) is None
    assert "agreement falls" in str(refusal(score, replace(score, sqnr=25.0, agreement=0.84)))
    labelled = replace(score, metric=0.7)
    assert "the metric falls" in str(refusal(labelled, replace(labelled, sqnr=25.0, metric=0.6)))
    assert refusal(labelled, replace(labelled, metric=0.8)) is None


def test_one_answer_of_few_says_nothing() -> None:
    """All of eight agree: that the ninth would is not known, so one that changes refuses no gain; two do."""
    logits = torch.eye(8) * 10
    judge = Judge([Item((logits,), {}, logits)], [logits], None)
    changed = [logits.roll(1, 1).where(torch.arange(8)[:, None] < count, logits) for count in (1, 2)]
    before, one, two = (judge.score(lambda x, value=value: value) for value in (logits, *changed))  # type: ignore[arg-type, misc]
    assert before.agreement == 1 and one.agreement == 7 / 8 and two.agreement == 6 / 8
    assert refusal(replace(before, sqnr=20.0), replace(one, sqnr=26.0)) is None
    assert "agreement falls" in str(refusal(replace(before, sqnr=20.0), replace(two, sqnr=26.0)))


def limited(weights: float, values: float, taken: tuple[str, ...] = ()) -> State:
    """A search where weights and values alone leave so many dB."""
    scores = [Score(value, 0.0) for value in (min(weights, values), weights, values)]
    return State(nn.Identity(), (), 0, Corrections(), Diagnosis(*scores), scores[0], taken)


def test_less_effort_is_less_data(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr("qcompiler.tune.moves.reconstruct", lambda prepared, batches, **options: counts.append(len(batches)))
    state = replace(limited(25, 45), items=[Item((index,), {}, index) for index in range(12)])
    make = next(move.make for move in MOVES if move.name == "reconstruct")
    for effort in (1.0, 0.5, 0.25, 0.01):
        make(state, lambda done, total: None, effort)
    assert counts == [12, 6, 3, 1]
    monkeypatch.setattr("qcompiler.tune.moves.fit_ranges_worth", lambda prepared, batches, *options: counts.append(len(batches)))
    next(move.make for move in MOVES if move.name == "ranges")(state, lambda done, total: None, 0.5)
    assert counts[-1] == 6


def test_what_the_diagnosis_leaves_out() -> None:
    skips = {move.name: move.skips for move in MOVES if move.name != "dynamic"}
    for state in (limited(45, 25), limited(25, 45)):
        assert skips["reconstruct"](state) is None
    assert skips["equalize"](limited(32, 34)) is None and "values make 25%" in str(skips["equalize"](limited(25, 31)))
    assert skips["ranges"](limited(45, 25)) is None and "values make 1%" in str(skips["ranges"](limited(25, 45)))
    assert skips["ranges"](limited(32, 34)) is None and skips["ranges"](limited(25, 31)) is None
    hidden = next(move.hidden for move in MOVES if move.name == "ranges")
    assert [hidden(state) for state in (limited(45, 25), limited(25, 31), limited(25, 31, ("reconstruct",)))] == [False, True, False]
    assert skips["scale-inputs"](limited(25, 31)) is None
    late = skips["equalize-again"]
    assert late(limited(25, 31, ("reconstruct",))) is None and "values make 1%" in str(late(limited(25, 45, ("reconstruct",))))
    assert "before" in str(late(limited(45, 25, ("reconstruct",))))
    again = skips["ranges-again"]
    assert again(limited(45, 25, ("equalize", "reconstruct"))) is None
    judged = replace(limited(25, 31, ("reconstruct",)), judged=frozenset({"ranges"}))
    assert again(replace(judged, judged=frozenset())) is None and "with float weights" in str(again(judged))
    assert again(replace(limited(45, 25, ("reconstruct",)), judged=judged.judged)) is None
    assert "no codes are new" in str(again(limited(45, 25))) and "fitted already" in str(again(limited(45, 25, ("ranges", "reconstruct"))))


class Heavy(nn.Module):
    """A last layer that does little of the work and has nearly all of the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8 * 7 * 7, 32)
        with torch.no_grad():
            self.last.weight[:, 0] *= 100  # one column sets the steps of all

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.nn.functional.max_pool2d(self.first(x), 4).flatten(1))
        return y


def test_islands_that_gain_nothing_together_are_not_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3, 12, 12)
    prepared = qcompiler.prepare_fx(Net().eval(), None, (x,))
    qcompiler.calibrate(prepared, [x])
    tried: list[int] = []

    def sqnr(gain: float, trial: Trial, corrections: Corrections) -> float:
        tried.append(len(corrections.keep_float))
        return 20.0 + gain * len(corrections.keep_float)

    monkeypatch.setattr(islands, "SMALL", 1.0)
    for gain in (0.01, 1.0):
        tried.clear()
        monkeypatch.setattr(Trial, "sqnr", lambda trial, corrections, gain=gain: sqnr(gain, trial, corrections))
        kept = islands.islands(prepared, Item((x,), {}, x), Corrections(), lambda done, total: None)
        assert tried[0] == 0 and tried[1] > 1 and tried[2:] == ([] if gain < 0.3 else list(range(1, tried[1] + 1)))
        assert len(kept) == len(tried[2:])


def test_islands_are_a_small_part_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3, 30, 30)
    prepared = qcompiler.prepare_fx(Heavy().eval(), None, (x,))
    qcompiler.calibrate(prepared, [x])
    found = [islands.islands(prepared, Item((x,), {}, x), Corrections(), lambda done, total: None)]
    monkeypatch.setattr(islands, "SMALL", 1.0)
    found.append(islands.islands(prepared, Item((x,), {}, x), Corrections(), lambda done, total: None))
    assert "last" not in found[0] and "last" in found[1]


def test_the_native_back_end() -> None:
    """Candidates are built and timed there, and the result is its module."""
    found = tuned(backend="native", target="60dB", seconds=600)
    assert found.model._backend == "native" and found.corrections
    assert all(row.milliseconds for row in found.table if row.chosen or row.name in ("float", "default"))


def candidate(name: str, sqnr: float) -> Candidate:
    return Candidate(Step(name, None, 0, True, ""), Any, Score(sqnr, 0.0), 1.0, 0, name)  # type: ignore[arg-type]


FOUND = [candidate("default", 20), candidate("codes", 25), candidate("islands", 27)]


def times(goal: Goal) -> Times:
    """Of these candidates."""
    return Times(goal, [Moment({FLOAT: (10.0, 10.0), "default": (5.0, 5.0), "codes": (5.1, 5.1), "islands": (8.0, 8.0)})])


@pytest.mark.parametrize(("target", "latency", "name"), [
    (None, None, "islands"), (24, None, "codes"), (19, None, "default"), (26, 6, "codes"), (30, None, "islands"),
    (None, "0.6x", "codes"), (None, 1, "codes"),
])  # fmt: skip
def test_choosing(target: Any, latency: Any, name: str) -> None:
    assert chosen(FOUND, times(Goal.of(target, latency, False)))[0].step.name == name


def test_one_built_module_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """None while steps are taken, and of what was built the best one alone."""
    alive, made = [], list[weakref.ref[nn.Module]]()

    def built(*given: Any) -> Candidate:
        alive.append(sum(one() is not None for one in made))
        found = candidates.built(*given)
        assert found.module is not None
        made.append(weakref.ref(found.module))
        return found

    def keeps(name: str) -> Callable[[State, Tell, float], Corrections]:
        def make(state: State, tell: Tell, effort: float) -> Corrections:
            alive.append(sum(one() is not None for one in made))
            return state.corrections | Corrections(keep_float=frozenset({name}))

        return make

    monkeypatch.setattr(room, "built", built)
    monkeypatch.setattr("qcompiler.tune.search.refusal", lambda before, after: None)
    moves(monkeypatch, ("stem", keeps("stem"), 1.0), ("head", keeps("head"), 1.0))
    found = tuned()
    assert alive == [0, 0, 0, 0, 1] and found.model is next(m for m in (one() for one in made) if m is not None)
    assert [row.milliseconds is not None for row in found.table] == [True, True, True, True]


def test_a_default_that_is_the_best_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    moves(monkeypatch, ("worse", worse, 1.0))
    found, x = tuned(), data()[0]
    assert [row.name for row in found.table if row.chosen] == ["default"] and not found.corrections
    assert torch.equal(found.model(x), qcompiler.convert_fx(found.prepared)(x))


def test_none_is_below_the_default_in_real_int8() -> None:
    assert chosen([candidate("default", 20), candidate("codes", 19)], times(Goal()))[0].step.name == "default"


def test_with_a_metric_and_a_target_in_decibels() -> None:
    """The nearest to the target is told by dB, not by the metric."""
    scored = [replace(one, score=replace(one.score, metric=metric)) for one, metric in zip(FOUND, (0.9, 0.8, 0.7))]
    assert chosen(scored, times(Goal.of("30dB", None, True)))[0].step.name == "islands"
    assert chosen(scored, times(Goal.of(None, None, True)))[0].step.name == "default"


def test_a_bound_in_milliseconds() -> None:
    assert Goal.of(None, "12ms", False) == Goal.of(None, 12, False) == Goal.of(None, "12 ms", False) != Goal.of(None, "12x", False)


def test_of_equal_metrics_decibels_decide() -> None:
    scored = [replace(one, score=replace(one.score, metric=metric)) for one, metric in zip(FOUND, (1.0, 1.0, 0.9))]
    assert chosen(scored, times(Goal.of(None, None, True)))[0].step.name == "codes"


def judged(expected: Tensor, got: Tensor) -> Score:
    class Given(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return got

    return Judge([Item((expected,), {}, expected)], [expected], None).score(Given())


def test_what_a_mask_makes_infinite_has_no_decibels() -> None:
    inf = float("inf")
    plain, masked = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0, -inf]])
    wanted = judged(plain, plain + 0.1).sqnr
    assert judged(masked, masked + 0.1).sqnr == pytest.approx(wanted) and 20 < wanted < 30


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_place_of_a_number_is_all_noise(value: float) -> None:
    assert judged(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, value]])).sqnr == -120


def place(items: list[Item], item: Item) -> int:
    return next(i for i, one in enumerate(items) if one is item)


def test_holding_out() -> None:
    items = read(data(10), False)
    tuning, held = split(items, 0.3, 0)
    assert len(held) == 3 and len(tuning) == 7 and not {id(i) for i in tuning} & {id(i) for i in held}
    again, other = ([place(items, one) for one in split(items, 0.3, seed)[1]] for seed in (0, 1))
    assert again == [place(items, one) for one in held] != other
    assert [len(part) for part in split(items[:2], 0.9, 0)] == [1, 1]
