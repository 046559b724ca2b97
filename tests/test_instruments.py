"""Instruments of the pass manager, and bisecting by count: what they may decide, and that they decide nothing else."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, fuse_fx, prepare_fx, quantize, remarks
from qcompiler.backends.torch.passes import LOWERING
from qcompiler.compile.pass_manager import Context, Pass
from qcompiler.debug import Gate, PassInstrument, PassRecord, compute_sqnr, gated
from qcompiler.errors import QCompilerError
from qcompiler.ir.text import format_graph
from qcompiler.ir.types import Stage
from qcompiler.passes import FUSE, OBSERVE, QUANTIZE
from tests.flow import randn, randomized, targets
from tests.planted import Raises

X = randn(2, 3, 8, 8)
ALL = (*FUSE, *OBSERVE, *QUANTIZE, *LOWERING)


class Net(nn.Module):
    """Something for every optional rewrite: BatchNorm, clamp, dropout, padding, a residual before a norm, a cat, a last linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()) for _ in range(2))
        self.pad, self.c = nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3)
        self.norm, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        y = self.c(self.pad(torch.cat([y, F.max_pool2d(y, 3, 1, 1)], 1)))
        y = F.relu6(self.norm(y + y * 0.5))
        result: Tensor = self.head((y + z).mean((2, 3)))
        return result


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


def compiled(**options: Any) -> nn.Module:
    return quantize(net(), [X], progress=False, **options)


@dataclass
class Log(PassInstrument):
    """Writes down every event."""

    events: list[tuple[str, ...]] = field(default_factory=list)
    records: list[PassRecord] = field(default_factory=list)

    def start(self, phase: str, model: str, context: Context) -> Any:
        self.events.append(("start", phase, model))
        return self

    def should_run(self, step: Pass, gm: fx.GraphModule, context: Context) -> bool:
        self.events.append(("should_run", step.name))
        return True

    def before(self, step: Pass, gm: fx.GraphModule, context: Context) -> None:
        self.events.append(("before", step.name))

    def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
        self.events.append(("after", step.name))
        self.records.append(record)

    def on_error(self, step: Pass, gm: fx.GraphModule, context: Context, error: Exception) -> None:
        self.events.append(("on_error", step.name, type(error).__name__))

    def finish(self, context: Context) -> None:
        self.events.append(("finish",))


def test_every_pass_says_whether_it_is_required() -> None:
    assert all(isinstance(step.required, bool) for step in ALL)
    optional = {"remove_identities", "fuse", "keep_float", "fuse_sums", "hand_out_floats", "keep_sums", "join_qparams",
                "centre_depthwise", "join_assignments", "note_affine", "read_numbers", "keep_codes"}  # fmt: skip
    assert {s.name for s in ALL if not s.required} == optional


def test_events_come_in_order() -> None:
    log = Log()
    compiled(debug=log)
    for phase, steps in (("prepare", (*FUSE, *OBSERVE)), ("convert", (*QUANTIZE, *LOWERING))):
        wanted: list[tuple[str, ...]] = [("start", phase, "Net")]
        for step in steps:
            wanted += [*([] if step.required else [("should_run", step.name)]), ("before", step.name), ("after", step.name)]
        wanted += [("before", "build")] if phase == "convert" else []
        assert log.events[: len(wanted) + 1] == [*wanted, ("finish",)]
        del log.events[: len(wanted) + 1]
    assert not log.events
    assert all(0 <= record.verify_ms <= record.milliseconds for record in log.records)
    assert next(r for r in log.records if r.name == "fuse").matches == 5


def test_an_error_is_told_and_the_compile_finished() -> None:
    log = Log()
    with pytest.raises(QCompilerError, match="hardswish"):
        prepare_fx(nn.Hardswish().eval(), None, (X,), passes=(Raises(),), debug=log)
    assert log.events[-3:] == [("before", "raises"), ("on_error", "raises", "PassError"), ("finish",)]


@pytest.mark.parametrize("event", ["start", "should_run", "before", "after", "finish"])
def test_an_exception_in_an_instrument_changes_nothing(event: str) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("broken instrument")

    wanted = compiled()
    instrument = type("Broken", (PassInstrument,), {event: fail})()
    result = compiled(debug=instrument)
    assert torch.equal(result(X), wanted(X)) and result.code == wanted.code
    noted = [r for r in remarks(result) if r.code == "instrument-failed"]
    if event not in ("finish",):  # the last event has no later remark to read
        assert noted and f"Broken.{event}: RuntimeError: broken instrument" in noted[0].text


def test_an_error_survives_a_broken_on_error() -> None:
    class Broken(PassInstrument):
        def on_error(self, *args: Any) -> None:
            raise RuntimeError("broken instrument")

    with pytest.raises(QCompilerError, match="hardswish"):
        prepare_fx(nn.Hardswish().eval(), None, (X,), passes=(Raises(),), debug=Broken())


class Skip(PassInstrument):
    """Says no to passes of some names, or to all."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def should_run(self, step: Pass, gm: fx.GraphModule, context: Context) -> bool:
        return bool(self.names) and step.name not in self.names


@pytest.mark.parametrize("names", [(), ("fuse",), ("remove_identities",), ("hand_out_floats", "keep_float")])
def test_only_optional_passes_can_be_skipped(names: tuple[str, ...]) -> None:
    log = Log()
    result = compiled(debug=[Skip(*names), log])
    skipped = {r.name for r in log.records if r.skipped}
    assert skipped == (set(names) or {s.name for s in ALL if not s.required})
    with torch.no_grad():
        assert compute_sqnr(net()(X), result(X)) > 25
    assert {r.pass_name for r in remarks(result) if r.code == "pass-skipped"} == skipped


def test_any_object_with_such_methods_will_do() -> None:
    class Plain:
        seen = 0

        def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
            self.seen += 1

    plain = Plain()
    compiled(debug=[plain])
    assert plain.seen == len(ALL)


# ---- bisecting by count

LINE = re.compile(r"BISECT: (running|NOT running) \((\d+)\) (.*)")


def bisected(limit: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[nn.Module, list[Any]]:
    monkeypatch.setenv("QCOMPILER_BISECT", str(limit))
    result = compiled()
    monkeypatch.delenv("QCOMPILER_BISECT")
    return result, LINE.findall(capsys.readouterr().err)


def test_bisect_prints_a_numbered_line_for_each_rewrite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole, lines = bisected(-1, monkeypatch, capsys)
    assert whole.code == compiled().code
    assert [int(number) for _, number, _ in lines] == list(range(1, len(lines) + 1)) and len(lines) >= 10
    assert {text.split(":")[0] for _, _, text in lines} >= {
        "fuse",
        "remove_identities",
        "hand_out_floats",
        "join_qparams",
    }
    assert len({text for _, _, text in lines}) == len(lines)
    for limit in (0, 3, len(lines) - 1):
        part, found = bisected(limit, monkeypatch, capsys)
        # The first lines are the same whatever the limit is.
        assert [text for _, _, text in found[: limit + 1]] == [text for _, _, text in lines[: limit + 1]]
        assert [state for state, _, _ in found] == ["running"] * limit + ["NOT running"] * (len(found) - limit)
        with torch.no_grad():
            assert compute_sqnr(net()(X), part(X)) > 20
    assert compiled().code == whole.code  # nothing is left over


def test_each_limit_runs_one_rewrite_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for limit in range(6):
        gate = Gate(limit)
        with gated(gate):
            texts.append(format_graph(fuse_fx(net(), (X,)).graph))
        assert gate.total >= limit
    assert len(set(texts)) == len(texts)


def test_a_gate_as_an_argument_counts_through_convert() -> None:
    gate = Gate()
    prepared = prepare_fx(net(), None, (X,), debug=gate)
    calibrate(prepared, [X])
    asked = gate.total
    first = convert_fx(prepared, debug=gate)
    assert gate.total > asked and any("join" in text for text in gate.seen[asked:])
    held = prepare_fx(net(), None, (X,), debug=Gate(0))
    assert {"batch_norm", "dropout"} <= set(targets(held.graph))
    assert {r.code for r in remarks(held)} >= {"held-back"}
    assert first.code == compiled().code


def test_what_is_held_back_has_a_remark() -> None:
    gate = Gate(0)
    with gated(gate):
        held = remarks(compiled())
    noted = [r for r in held if r.code == "held-back"]
    assert len(noted) >= sum("float_result" not in text and "keep_float" not in text for text in gate.seen)


def test_a_users_pass_is_one_rewrite() -> None:
    @dataclass(frozen=True)
    class Mine:
        name: str = "mine"
        stage: Stage = Stage.FUSED

        def run(self, gm: fx.GraphModule, context: Context) -> bool:
            context.remark(self.name, "ran", "it ran")
            return False

    gate = Gate()
    assert "ran" in {r.code for r in remarks(prepare_fx(net(), None, (X,), passes=(Mine(),), debug=gate))}
    number = gate.seen.index("mine") + 1
    late = prepare_fx(net(), None, (X,), passes=(Mine(),), debug=Gate(number - 1))
    assert {"pass-skipped"} == {r.code for r in remarks(late) if r.pass_name == "mine"}
    required = dataclasses.make_dataclass("Required", [("required", bool, True)], bases=(Mine,), frozen=True)()
    assert "ran" in {r.code for r in remarks(prepare_fx(net(), None, (X,), passes=(required,), debug=[Gate(0), Skip()]))}
