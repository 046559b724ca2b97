"""Crash reproducers: ten planted failures, each shown again by its repro.py in a process that knows nothing of the model."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import QCompilerError, QConfigMapping, calibrate, convert_fx, prepare_fx
from qcompiler.backends.torch.kernels import table as kernels
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.config.qconfig import QConfig, default_qconfig
from qcompiler.debug import Dump
from qcompiler.debug.reproduce import main
from qcompiler.errors import ArtifactError
from qcompiler.files.safetensors import read_safetensors, safetensors
from qcompiler.ops.table import OPS
from tests import planted
from tests.children import WAITING
from tests.flow import randn, randomized

X = randn(1, 3, 8, 8)
ROOT = Path(__file__).resolve().parent.parent


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(planted.Net())


def prepare(debug: Any, **options: Any) -> None:
    prepare_fx(net(), options.pop("mapping", None), (X,), debug=debug, **options)


def convert(debug: Any, data: Tensor | None = X, **options: Any) -> None:
    prepared = prepare_fx(net(), options.pop("mapping", None), (X,), **options)
    if data is not None:
        calibrate(prepared, [data])
    convert_fx(prepared, debug=debug)


def table(row: Any) -> Any:
    made = OPS.copy()
    made.add(row)
    return made


def bad_kernel(debug: Any) -> None:
    kernels.register(planted.BAD_KERNEL)
    try:
        convert(debug, table=table(planted.SINC))
    finally:
        del kernels.TABLE["sinc"]


OBSERVER = QConfigMapping().set_global(QConfig(planted.BadObserver, default_qconfig.weight))

# Name -> what fails, and (type, code, type of the cause).
CRASHES: dict[str, tuple[Callable[[Any], None], tuple[str, str, str | None]]] = {
    "pass raises": (lambda d: prepare(d, passes=(planted.Raises(),)), ("PassError", "pass-failed", "KeyError")),
    "pass reverses": (lambda d: prepare(d, passes=(planted.Reverses(),)), ("PassError", "invalid-ir", None)),
    "pass dangles": (lambda d: prepare(d, passes=(planted.Dangles("gone.weight"),)), ("PassError", "invalid-ir", None)),
    "pass refuses": (lambda d: prepare(d, passes=(planted.Refuses(2.5),)), ("NumericsError", "planted", None)),
    "rule raises": (lambda d: prepare(d, rules=(planted.DIVIDES,)), ("PassError", "pass-failed", "ZeroDivisionError")),
    "rule never ends": (lambda d: prepare(d, rules=(planted.ENDLESS,)), ("PassError", "rewrite-limit", None)),
    "row raises": (lambda d: prepare(d, table=table(planted.BAD_ROW)), ("PassError", "pass-failed", "LookupError")),
    "observer raises": (lambda d: convert(d, mapping=OBSERVER), ("PassError", "pass-failed", "OverflowError")),
    "not calibrated": (lambda d: convert(d, data=None), ("CalibrationError", "not-calibrated", None)),
    "kernel raises": (bad_kernel, ("PassError", "pass-failed", "IndexError")),
}

RUN = """
import runpy, sys, warnings
warnings.filterwarnings("ignore")
for path in sys.argv[1:]:
    sys.argv = [path]
    try:
        runpy.run_path(path, run_name="__main__")
        found = None
    except Exception as error:
        cause = error.__cause__
        found = (type(error).__name__, error.code, cause and type(cause).__name__)
    print(repr(found))
"""


def crash(name: str, folder: Path) -> tuple[Path, QCompilerError]:
    with pytest.raises(QCompilerError) as caught:
        CRASHES[name][0](folder)
    assert caught.value.reproducer is not None
    assert f"reproducer: {caught.value.reproducer}" in str(caught.value)
    return Path(caught.value.reproducer), caught.value


def test_ten_planted_crashes_happen_again(tmp_path: Path) -> None:
    paths = [crash(name, tmp_path / name)[0] for name in CRASHES]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, paths)], cwd=elsewhere, capture_output=True, text=True, timeout=WAITING)
    assert done.returncode == 0, done.stderr
    found = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert dict(zip(CRASHES, found, strict=True)) == {name: expected for name, (_, expected) in CRASHES.items()}


def names_of(script: Path) -> dict[str, Any]:
    """What repro.py hands to the loader, and its pipeline."""
    import runpy

    return runpy.run_path(str(script), run_name="loaded")


@pytest.mark.parametrize("name", ["pass raises", "rule raises", "row raises", "observer raises"])
def test_reduce_leaves_the_smallest_case(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, error = crash(name, tmp_path)
    space = names_of(script)
    main(str(script), space["PIPELINE"], space["NAMES"], ["--reduce"])
    assert "reduced" in capsys.readouterr().out
    reduced = script.parent / "reduced" / "repro.py"
    smaller = names_of(reduced)
    assert "," not in smaller["PIPELINE"]
    nodes = json.loads((reduced.parent / "repro.json").read_text())["nodes"]
    assert sum(n["op"].startswith("call_") for n in nodes) <= 2
    with pytest.raises(type(error)) as caught:
        main(str(reduced), smaller["PIPELINE"], smaller["NAMES"], [])
    assert type(caught.value.__cause__) is type(error.__cause__) and caught.value.reproducer == str(reduced)


def test_a_case_that_does_not_fail_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, _ = crash("pass raises", tmp_path)
    space = names_of(script)
    with pytest.raises(SystemExit) as caught:
        main(str(script), "canonicalize,fuse", space["NAMES"], [])
    assert caught.value.code == 3 and "not reproduced" in capsys.readouterr().err
    with pytest.raises(QCompilerError, match="does not fail"):
        main(str(script), "canonicalize,fuse", space["NAMES"], ["--reduce"])


def weights(script: Path) -> dict[str, Tensor]:
    return read_safetensors(script.parent / "repro.safetensors")


def test_weights_are_random_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = net().state_dict()
    monkeypatch.delenv("QCOMPILER_REPRO_WEIGHTS", raising=False)
    script, _ = crash("pass raises", tmp_path / "random")
    made = weights(script)
    for name, value in made.items():
        assert value.shape == real[name].shape
        assert not value.is_floating_point() or not torch.equal(value, real[name]), name
    assert "neither weights nor activations" in json.loads((script.parent / "run.json").read_text())["privacy"]
    monkeypatch.setenv("QCOMPILER_REPRO_WEIGHTS", "1")
    script, _ = crash("pass raises", tmp_path / "real")
    kept = weights(script)
    assert set(kept) == set(made) and all(torch.equal(value, real[name]) for name, value in kept.items())
    assert "QCOMPILER_REPRO_WEIGHTS" in json.loads((script.parent / "run.json").read_text())["privacy"]


def test_a_failure_in_the_weights_needs_the_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative variance is refused by a pass; random weights cannot show that."""
    model = net()
    monkeypatch.setattr("qcompiler.choices.check_model", lambda model: None)
    model.bn.running_var.fill_(-1)  # type: ignore[union-attr, operator]
    for real in ("0", "1"):
        monkeypatch.setenv("QCOMPILER_REPRO_WEIGHTS", real)
        with pytest.raises(QCompilerError) as caught:
            prepare_fx(model, None, (X,), debug=tmp_path / real)
        script = Path(str(caught.value.reproducer))
        space = names_of(script)
        with pytest.raises(QCompilerError if real == "1" else SystemExit):
            main(str(script), space["PIPELINE"], space["NAMES"], [])


def test_without_a_dump_the_message_says_how_to_get_one() -> None:
    with pytest.raises(QCompilerError, match="set QCOMPILER_DEBUG=folder"):
        prepare(None, passes=(planted.Raises(),))
    with pytest.raises(QCompilerError) as caught:
        convert(None, data=None)
    assert "QCOMPILER_DEBUG" not in str(caught.value)  # the user's own mistake: calibrate


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    class Local(planted.Raises):
        pass

    with pytest.raises(QCompilerError) as caught:
        prepare(tmp_path, passes=(Local(),))
    assert "Could not be written" in Path(str(caught.value.reproducer)).read_text()


def test_a_leaf_module_is_kept_by_name_alone(tmp_path: Path) -> None:
    class Leaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Leaf(), nn.Hardswish()).eval()
    custom = PrepareCustomConfig().set_non_traceable_module_classes([Leaf])
    with pytest.raises(QCompilerError) as caught:
        prepare_fx(model, None, (X,), custom, passes=(planted.Raises(),), debug=tmp_path)
    script = Path(str(caught.value.reproducer))
    space = names_of(script)
    assert not any("Leaf" in name for name in space["NAMES"])
    with pytest.raises(QCompilerError, match="KeyError"):
        main(str(script), space["PIPELINE"], space["NAMES"], [])


def test_a_statement_of_the_model_is_missing_and_no_pass_needs_it(tmp_path: Path) -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.sum()) < 0 else x

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Doubles(), nn.Hardswish()).eval()
    with pytest.raises(QCompilerError) as caught:
        prepare_fx(model, None, (X,), passes=(planted.Raises(),), debug=tmp_path)
    script = Path(str(caught.value.reproducer))
    space = names_of(script)
    with pytest.raises(QCompilerError, match="KeyError"):
        main(str(script), space["PIPELINE"], space["NAMES"], [])


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """Names of classes and passes, and messages, are the user's: none can leave its string."""
    hostile = '"""\nraise SystemExit(9)\n"""\\'
    model = net()
    model.__class__ = type(hostile, (planted.Net,), {})
    with pytest.raises(QCompilerError) as caught:
        prepare_fx(model, None, (X,), passes=(planted.Refuses(hostile, name=hostile),), debug=tmp_path)  # type: ignore[arg-type]
    script = Path(str(caught.value.reproducer))
    space = names_of(script)
    assert hostile in space["PIPELINE"] and "raise SystemExit" in str(space["__doc__"])
    with pytest.raises(QCompilerError, match="above"):
        main(str(script), space["PIPELINE"], space["NAMES"], [])


@pytest.fixture
def tensors(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"".join(safetensors({"a": torch.arange(6).reshape(2, 3), "b.c": torch.rand(3), "e": torch.empty(0, 2)})))
    yield path


def test_safetensors_are_read_back(tensors: Path) -> None:
    found = read_safetensors(tensors)
    assert torch.equal(found["a"], torch.arange(6).reshape(2, 3)) and found["e"].shape == (0, 2)
    for cut in (4, 40, len(tensors.read_bytes()) - 1):
        tensors.write_bytes(tensors.read_bytes()[:cut])
        with pytest.raises(ArtifactError):
            read_safetensors(tensors)


def test_a_dump_object_works_as_well(tmp_path: Path) -> None:
    dump = Dump(tmp_path, level="index")
    _, _ = crash_with(dump)
    assert (dump.paths[0] / "repro.py").is_file() and (dump.paths[0] / "index.md").read_text().count("FAILED") == 1


def crash_with(debug: Any) -> tuple[Any, Any]:
    with pytest.raises(QCompilerError) as caught:
        prepare(debug, passes=(planted.Raises(),))
    return caught.value, caught.value.reproducer
