"""bench: all in one run, in turn; what is said beside the times. No test looks at how long anything took."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import qcompiler
from qcompiler.cli import app
from qcompiler.timing import Spread, in_turn
from qcompiler.timing.machine import busy_note
from tests.test_reports import made


def test_quantiles() -> None:
    assert Spread.of([0.001 * n for n in range(101)]) == Spread(50.0, pytest.approx(5.0), pytest.approx(95.0))
    assert Spread.of([0.002]) == Spread(2.0, 2.0, 2.0)


def test_calls_take_turns_and_none_is_always_first() -> None:
    seen: list[str] = []
    found = in_turn({name: lambda name=name: seen.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert [seen[i : i + 3] for i in range(0, 12, 3)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert list(found) == list("abc")


@pytest.mark.parametrize(("others", "said"), [(None, ""), (0.1, ""), (1.5, "1.5 of its 2 cores")])
def test_a_busy_machine_is_told(others: float | None, said: str) -> None:
    note = busy_note(others, 2)
    assert bool(note) == bool(said) and said in note


def test_a_float_model_is_timed_with_what_becomes_of_it() -> None:
    model, _, x = made("pooled", "torch")
    found = qcompiler.bench(model, [x], rounds=2, warmup=0, threads=1)
    assert list(found.times) == ["float", "torch", "native", "float, scripted", "torch, scripted"]
    assert list(found.left_out) == ["native, scripted"] and found.threads == 1 and found.inputs == "4x3x10x10"
    assert found.speedup("float") == 1 and "1 thread, medians of 2 in turn" in found.conditions
    data = json.loads(found.to_json())
    assert set(data["times"]["torch"]) == {"wall", "processor"} and set(data["times"]["torch"]["wall"]) == {"median", "p5", "p95"}


def test_a_converted_model_stands_for_itself() -> None:
    model, small, x = made("pooled", "torch")
    threads = torch.get_num_threads()
    found = qcompiler.bench(small, [x], modules={"float": model}, rounds=1, warmup=0, threads=1)
    assert list(found.times) == ["torch", "torch, scripted", "float"] and torch.get_num_threads() == threads


def test_what_cannot_be_scripted_is_left_out_with_the_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Any, *more: Any) -> Any:
            return self.conv(x)

    found = qcompiler.bench(Odd().eval(), [torch.randn(1, 3, 8, 8)], backends=["torch"], rounds=1, warmup=0)
    assert "float, scripted" in found.left_out and "not timed: float, scripted" in str(found)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"threads": 0}, {"backends": ["nothing"]}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    model, _, x = made("pooled", "torch")
    with pytest.raises(qcompiler.ConfigError):
        qcompiler.bench(model, [x], **{"rounds": 1, **wrong})


def test_the_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, small, x = made("pooled", "torch")
    qcompiler.save(small, tmp_path / "net.qc")
    torch.save(x, tmp_path / "x.pt")
    result = CliRunner().invoke(app, ["bench", str(tmp_path / "net.qc"), "--data", str(tmp_path / "x.pt"), "--rounds", "1", "--json"])
    assert list(json.loads(result.output)["times"]) == ["torch", "torch, scripted"]
