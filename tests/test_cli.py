"""The command line from end to end on a small model, and what it says about mistakes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from qcompiler.cli import app
from qcompiler.cli.data import Preprocess, find_batches, read_input
from qcompiler.cli.models import load_model
from qcompiler.errors import CalibrationError, ConfigError, InputError, QCompilerError
from tests.toy_backend import registered

Image = pytest.importorskip("PIL.Image")

SOURCE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def wrong():
    return 3

def fails():
    raise ValueError("no such checkpoint")
"""


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model's module, and photos to calibrate on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tiny_model.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(random.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    yield tmp_path
    sys.modules.pop("tiny_model", None)


COMMANDS = ("quantize", "tune", "inspect", "run", "viz", "compare", "bisect")


@pytest.mark.parametrize("arguments", [("--help",), *((command, "--help") for command in COMMANDS)])
def test_help_shows_how_to_begin(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    assert "qcompiler" in result.output
    if "inspect" not in arguments:
        assert ".qc" in result.output or "torchvision:" in result.output


def test_tune(workplace: Path) -> None:
    arguments = ("tune", "tiny_model:build", "--data", "photos", "--size", 16, "--batch", 1)
    made = call(*arguments, "--target", "1dB", "--out", "tiny.qc", "--log", "tune.jsonl", "--report", "made")
    assert made.exit_code == 0 and "it reaches the target" in made.output
    assert call("inspect", "tiny.qc").exit_code == 0 and (workplace / "made" / "report.html").is_file()
    assert (workplace / "tune.jsonl").read_text().startswith('{"search"')
    short = call(*arguments, "--target", "300dB", "--seconds", "0.01")
    assert short.exit_code == 2 and "not reached" in short.output


def test_quantize_inspect_run(workplace: Path) -> None:
    files = ("--calibrate", "photos", "--out", "tiny.qc", "--source", "program")
    made = call("quantize", "tiny_model:build", *files, "--size", 32, "--batch", 2)
    assert made.exit_code == 0, made.output
    assert "100.0%" in made.output
    assert (workplace / "tiny.qc").stat().st_size > 0
    assert list((workplace / "program").glob("*.py"))

    shown = call("inspect", "tiny.qc")
    assert shown.exit_code == 0, shown.output
    assert "int8" in shown.output

    ran = call("run", "tiny.qc", "photos/0.png", "--size", 32, "--top", 3, "--out", "scores.npy")
    assert ran.exit_code == 0, ran.output
    scores = np.load("scores.npy")
    assert scores.shape == (1, 10)
    assert str(scores[0].argmax()) in ran.output


def test_a_folder_instead_of_a_file(workplace: Path) -> None:
    torch.save([torch.randn(2, 3, 16, 16) for _ in range(2)], "batches.pt")
    made = call("quantize", "tiny_model:build", "--calibrate", "batches.pt", "--out", "tiny/")
    assert made.exit_code == 0, made.output
    assert {path.name for path in (workplace / "tiny").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    for command in (
        ("inspect", "tiny"), ("run", "tiny/", "photos/0.png", "--size", 16), ("viz", "tiny"), ("viz", "tiny/model.safetensors"),
        ("compare", "tiny_model:build", "tiny", "--data", "batches.pt"),
    ):  # fmt: skip
        result = call(*command)
        assert result.exit_code == 0, result.output
    assert "photos holds no dumps" in call("viz", "photos").output
    (workplace / "file").write_text("")
    refused = call("quantize", "tiny_model:build", "--calibrate", "batches.pt", "--out", "file/")
    assert refused.exit_code == 1 and "there is a file of this name" in refused.output


def test_the_answer_is_close_to_the_float_model(workplace: Path) -> None:
    torch.save([torch.randn(4, 3, 16, 16) for _ in range(3)], "batches.pt")
    sample = torch.randn(2, 3, 16, 16)
    torch.save(sample, "sample.pt")
    assert call("quantize", "tiny_model:build", "--calibrate", "batches.pt", "--out", "tiny.qc").exit_code == 0
    assert call("run", "tiny.qc", "sample.pt", "--out", "scores.pt").exit_code == 0
    expected = load_model("tiny_model:build")(sample)
    got = torch.load("scores.pt", weights_only=True)
    # Two int8 layers: their steps are below 1 % of the range, which the outputs fill.
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_part_can_stay_float(workplace: Path) -> None:
    made = call("quantize", "tiny_model:build", "--calibrate", "photos", "--size", 32, "--out", "tiny.qc", "--keep-float", "5")
    assert made.exit_code == 0, made.output
    assert "float" in call("inspect", "tiny.qc").output


def test_compare(workplace: Path) -> None:
    torch.save([torch.randn(4, 3, 16, 16) for _ in range(2)], "batches.pt")
    assert call("quantize", "tiny_model:build", "--calibrate", "batches.pt", "--out", "tiny.qc").exit_code == 0
    shown = call("compare", "tiny_model:build", "tiny.qc", "--data", "batches.pt", "--profile")
    assert shown.exit_code == 0, shown.output
    assert "worst own error first" in shown.output and "not compared" not in shown.output
    data = json.loads(call("compare", "tiny_model:build", "tiny.qc", "--data", "batches.pt", "--json").output)
    assert data["batches"] == 2 and {n["module_path"] for n in data["nodes"]} >= {"0", "5"} and data["unmatched"] == []
    assert "Conv2d, BatchNorm2d, ReLU" in {n["computes"] for n in data["nodes"]}


def test_bisect(workplace: Path) -> None:
    found = call("bisect", "tiny_model:build", "--data", "photos", "--size", 32)
    assert found.exit_code == 0 and "no pass is over tolerance" in found.output
    data = json.loads(call("bisect", "tiny_model:build", "--data", "photos", "--size", 32, "--tol-db", 90, "--json").output)
    assert data["pass_name"] == "freeze_qparams" and data["runs"] <= 7


def test_a_model_in_a_file(workplace: Path) -> None:
    sample = torch.randn(2, 3, 16, 16)
    expected = load_model("tiny_model:build")(sample)
    (workplace / "deep").mkdir()
    (workplace / "deep" / "model_of_a_file.py").write_text((workplace / "tiny_model.py").read_text())
    assert torch.equal(load_model("deep/model_of_a_file.py:build")(sample), expected)
    (workplace / "deep" / "json.py").write_text("")
    with pytest.raises(ConfigError, match="name of another module"):
        load_model("deep/json.py:build")


MISTAKES = {
    "no file": (("quantize", "absent.py:build", "--calibrate", "photos", "--out", "x.qc"), "no file absent.py"),
    "no colon": (("quantize", "tiny_model", "--calibrate", "photos", "--out", "x.qc"), "model-reference"),
    "no module": (("quantize", "absent_module:build", "--calibrate", "photos", "--out", "x.qc"), "model-reference"),
    "no factory": (("quantize", "tiny_model:absent", "--calibrate", "photos", "--out", "x.qc"), "model-reference"),
    "no model": (("quantize", "tiny_model:wrong", "--calibrate", "photos", "--out", "x.qc"), "model-reference"),
    "factory fails": (("quantize", "tiny_model:fails", "--calibrate", "photos", "--out", "x.qc"), "no such checkpoint"),
    "no weights": (("quantize", "tiny_model:build", "--weights", "w.pt", "--calibrate", "photos", "--out", "x.qc"), "weights"),
    "no torchvision name": (("quantize", "torchvision:resnet1", "--calibrate", "photos", "--out", "x.qc"), "resnet18"),
    "no target": (("tune", "tiny_model:build", "--data", "photos", "--target", "much"), "(tune-target)"),
    "report is a file": (("tune", "tiny_model:build", "--data", "photos", "--report", "tiny_model.py"), "it is a file"),
    "no data": (("quantize", "tiny_model:build", "--calibrate", "absent", "--out", "x.qc"), "no-calibration-data"),
    "nothing usable": (("quantize", "tiny_model:build", "--calibrate", "tiny_model.py", "--out", "x.qc"), "no-calibration-data"),
    "bad mean": (("quantize", "tiny_model:build", "--calibrate", "photos", "--out", "x.qc", "--mean", "a"), "preprocess"),
    "no artifact": (("inspect", "absent.qc"), "absent.qc"),
    "no artifact to inspect": (("inspect", "tiny_model.py"), "tiny_model.py"),
    "no input": (("run", "absent.qc", "absent.png"), "no-input"),
    "nothing to compare": (("compare", "tiny_model:build", "absent.qc", "--data", "photos"), "absent.qc"),
    "not quantized": (("compare", "tiny_model:build", "tiny_model:build", "--data", "photos"), "not-quantized"),
    "instruction set": (("quantize", "tiny_model:build", "--calibrate", "photos", "--out", "x.qc", "--isa", "avx"), "(isa)"),
    "nothing to bisect on": (("bisect", "tiny_model:build", "--data", "absent"), "no-calibration-data"),
    "module option": (("inspect", "tiny_model.py", "--module", "x"), "module-option"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_message(name: str, workplace: Path) -> None:
    arguments, expected = MISTAKES[name]
    result = call(*arguments)
    assert result.exit_code == 1
    assert "error" in result.output and expected in result.output
    assert "Traceback" not in result.output
    assert not (workplace / "x.qc").exists()


def test_another_back_end(workplace: Path) -> None:
    arguments = ("quantize", "tiny_model:build", "--calibrate", "photos", "--size", "16", "--out", "toy.qc", "--backend", "toy")
    unknown = call(*arguments)
    assert unknown.exit_code == 1 and "unknown backend 'toy'" in unknown.output
    with registered():
        assert call(*arguments).exit_code == 0
        assert "linear" in call("inspect", "toy.qc").output
        wrong = call(*arguments, "--engine", "x86")
        assert wrong.exit_code == 1 and "a toy has no engine" in wrong.output


def test_an_unknown_engine_is_a_usage_error(workplace: Path) -> None:
    assert call("quantize", "tiny_model:build", "--calibrate", "photos", "--out", "x.qc", "--engine", "abacus").exit_code == 2


def test_images_are_preprocessed_as_classifiers_expect() -> None:
    white = Image.new("RGB", (300, 200), "white")
    out = Preprocess(size=64)(white)
    assert out.shape == (3, 64, 64)
    torch.testing.assert_close(out[:, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))


def test_batches_are_sorted_limited_and_repeatable(workplace: Path) -> None:
    batches = find_batches(Path("photos"), Preprocess(size=32), batch=2, limit=3)
    assert [file.name for file in batches.files] == ["0.png", "1.png", "2.png"]
    first, second = list(batches), list(batches)
    assert [tuple(b.shape) for b in first] == [(2, 3, 32, 32), (1, 3, 32, 32)] and len(batches) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_array_file_is_a_batch_as_it_stands(workplace: Path) -> None:
    np.save("a.npy", np.ones((2, 3), dtype=np.float32))
    (batch,) = find_batches(Path("a.npy"), Preprocess())
    assert torch.equal(batch, torch.ones(2, 3))


def test_a_pickle_is_not_executed(workplace: Path) -> None:
    torch.save(Preprocess(), "object.pt")
    with pytest.raises(InputError, match=r"object\.pt"):
        read_input(Path("object.pt"), Preprocess())


def test_a_damaged_image_is_named(workplace: Path) -> None:
    Path("broken.jpg").write_bytes(b"not a photo")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        read_input(Path("broken.jpg"), Preprocess())


def test_an_empty_folder_is_no_calibration_data(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError):
        find_batches(tmp_path, Preprocess())


def test_weights_that_do_not_fit_are_refused(workplace: Path) -> None:
    torch.save({"other": torch.zeros(1)}, "w.pt")
    with pytest.raises(ConfigError, match=r"w\.pt"):
        load_model("tiny_model:build", "w.pt")
    assert issubclass(ConfigError, QCompilerError)


@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_that_cannot_be_listed_is_a_message(tmp_path: Path, inner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It vanishes on the way, or is somebody else's."""
    (tmp_path / "more").mkdir()
    np.save(tmp_path / "a.npy", np.zeros(3, np.float32))
    gone, listed = str(tmp_path / "more" if inner else tmp_path), os.scandir

    def scandir(path: str) -> Any:
        if str(path) == gone:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(CalibrationError, match=f"cannot list {gone}: No such file") as caught:
        find_batches(tmp_path, Preprocess())
    assert caught.value.hint


def test_a_file_that_vanishes_is_a_message(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, np.zeros(3, np.float32))
    batches = iter(find_batches(tmp_path, Preprocess()))
    (tmp_path / "b.npy").unlink()
    assert next(batches).shape == (3,)
    with pytest.raises(InputError, match="cannot read"):
        next(batches)
