"""Crash reproducers of every flow: a fault planted in each, shown again by its repro.py in a process that knows nothing of the model."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompiler import QCompilerError, QConfigMapping, calibrate, convert_fx, convert_to_reference_fx, prepare_fx, prepare_qat_fx
from qcompiler.backends.torch.kernels import table as kernels
from qcompiler.config.custom_config import ConvertCustomConfig, PrepareCustomConfig
from qcompiler.config.qconfig import QConfig, default_dynamic_qconfig, default_qat_qconfig, default_qconfig
from qcompiler.debug.reproduce import main
from qcompiler.files.safetensors import read_safetensors
from qcompiler.ops.table import OPS
from tests import planted
from tests.children import WAITING
from tests.flow import randn, randomized
from tests.test_reproducer import RUN, names_of

X, MASK = randn(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
Expected = tuple[str, str, str | None]


def model(cls: type[nn.Module] = planted.Net) -> nn.Module:
    torch.manual_seed(0)
    return randomized(cls())


def mapping(activation: Any = default_qconfig.activation, weight: Any = default_qconfig.weight) -> QConfigMapping:
    return QConfigMapping().set_global(QConfig(activation, weight))


def calibrated(cls: type[nn.Module] = planted.Net, qconfigs: QConfigMapping | None = None, **options: Any) -> Any:
    prepared = prepare_fx(model(cls), qconfigs, (X,), **options)
    calibrate(prepared, [X])
    return prepared


def trained(qconfigs: QConfigMapping | None, cls: type[nn.Module] = planted.Net, **options: Any) -> Any:
    prepared = prepare_qat_fx(model(cls).train(), qconfigs, (X,), **options)
    for _ in range(2):
        prepared(X).sum().backward()
    return prepared


def custom(observed: type, quantized: type, debug: Any, *, trains: bool = False) -> None:
    config = PrepareCustomConfig().set_float_to_observed_mapping(planted.Gain, observed)
    begun = {"debug": debug} if observed is planted.UnobservedGain else {}
    make = trained if trains else lambda qconfigs, cls, **options: calibrated(cls, qconfigs, **options)
    prepared = make(None, planted.WithGain, prepare_custom_config=config, **begun)
    convert_fx(prepared, convert_custom_config=ConvertCustomConfig().set_observed_to_quantized_mapping(observed, quantized), debug=debug)


def call_forms(debug: Any) -> None:
    prepared = prepare_fx(model(planted.Masked), mapping(planted.BadObserver), (X,), example_kwargs=[{}, {"mask": MASK}])
    calibrate(prepared, [X, {"x": X, "mask": MASK}])
    convert_fx(prepared, debug=debug)


def own_kernel(debug: Any, backend: str, passes: Any) -> None:
    """A compile of an op that the user registered a kernel of torch's for."""
    table = OPS.copy()
    table.add(planted.SINC)
    kernels.register(planted.BAD_KERNEL)
    try:
        convert_fx(calibrated(table=table, backend=backend, passes=passes, debug=debug), debug=debug)
    finally:
        del kernels.TABLE["sinc"]


BAD_TRAINING = QConfigMapping().set_global(QConfig(planted.BadFakeQuantize.with_args(), default_qat_qconfig.weight))
BAD_WEIGHTS = QConfigMapping().set_global(QConfig(default_dynamic_qconfig.activation, planted.BadWeight.with_args(dtype=torch.qint8)))

# Flow -> what fails in it, the pass, and (type, code, type of the cause).
FAULTS: dict[str, tuple[Callable[[Any], Any], str, Expected]] = {
    "prepare": (
        lambda d: prepare_fx(model(), None, (X,), passes=(planted.Raises(),), debug=d),
        "raises", ("PassError", "pass-failed", "KeyError"),
    ),
    "prepare for training": (
        lambda d: prepare_qat_fx(model().train(), None, (X,), passes=(planted.Raises(),), debug=d),
        "raises", ("PassError", "pass-failed", "KeyError"),
    ),
    "prepare with custom modules": (
        lambda d: custom(planted.UnobservedGain, planted.QuantizedGain, d),
        "observe_custom_modules", ("PassError", "pass-failed", "EOFError"),
    ),
    "convert": (
        lambda d: convert_fx(calibrated(qconfigs=mapping(planted.BadObserver)), debug=d),
        "freeze_qparams", ("PassError", "pass-failed", "OverflowError"),
    ),
    "convert of weights": (
        lambda d: convert_fx(calibrated(qconfigs=mapping(weight=planted.BadWeight.with_args(dtype=torch.qint8))), debug=d),
        "insert_quantize_dequantize", ("PassError", "pass-failed", "FloatingPointError"),
    ),
    "convert of a trained model": (
        lambda d: convert_fx(trained(BAD_TRAINING), debug=d),
        "freeze_qparams", ("PassError", "pass-failed", "OverflowError"),
    ),
    "convert of custom modules": (
        lambda d: custom(planted.ObservedGain, planted.UnquantizedGain, d),
        "quantize_custom_modules", ("PassError", "pass-failed", "BlockingIOError"),
    ),
    "convert of trained custom modules": (
        lambda d: custom(planted.ObservedGain, planted.UnquantizedGain, d, trains=True),
        "quantize_custom_modules", ("PassError", "pass-failed", "BlockingIOError"),
    ),
    "reference": (
        lambda d: convert_to_reference_fx(calibrated(qconfigs=mapping(planted.BadObserver)), debug=d),
        "freeze_qparams", ("PassError", "pass-failed", "OverflowError"),
    ),
    "reference of a trained model": (
        lambda d: convert_to_reference_fx(trained(BAD_TRAINING), debug=d),
        "freeze_qparams", ("PassError", "pass-failed", "OverflowError"),
    ),
    "dynamic": (
        lambda d: convert_fx(calibrated(qconfigs=BAD_WEIGHTS), debug=d),
        "insert_quantize_dequantize", ("PassError", "pass-failed", "FloatingPointError"),
    ),
    "statements on data": (
        lambda d: convert_fx(calibrated(planted.Stating, mapping(planted.BadObserver)), debug=d),
        "freeze_qparams", ("PassError", "pass-failed", "OverflowError"),
    ),
    "training with statements on data": (
        lambda d: prepare_qat_fx(model(planted.Stating).train(), None, (X,), passes=(planted.Raises(),), debug=d),
        "raises", ("PassError", "pass-failed", "KeyError"),
    ),
    "native": (
        lambda d: convert_fx(calibrated(qconfigs=mapping(planted.BadObserver), backend="native"), debug=d),
        "freeze_qparams", ("PassError", "pass-failed", "OverflowError"),
    ),
    "native of a trained model": (
        lambda d: convert_fx(trained(BAD_TRAINING, backend="native"), debug=d),
        "freeze_qparams", ("PassError", "pass-failed", "OverflowError"),
    ),
    "call forms": (call_forms, "freeze_qparams", ("PassError", "pass-failed", "OverflowError")),
}  # fmt: skip


def crash(name: str, folder: Path) -> Path:
    with pytest.raises(QCompilerError) as caught:
        FAULTS[name][0](folder)
    assert caught.value.reproducer is not None
    return Path(caught.value.reproducer)


def test_a_fault_in_each_flow_happens_again(tmp_path: Path) -> None:
    scripts = [crash(name, tmp_path / name) for name in FAULTS]
    last = [names_of(script)["PIPELINE"].split(",")[-1] for script in scripts]
    assert last == [step for _, step, _ in FAULTS.values()]
    texts = {name: script.read_text() for name, script in zip(FAULTS, scripts, strict=True)}
    assert not any("Could not be written" in text for text in texts.values())
    held = {name for name, text in texts.items() if "qcompiler_reproduce.statement(tests.planted" in text}
    assert held == {name for name in FAULTS if "statements" in name}  # a statement's function is no data: the script has its text
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, scripts)], cwd=tmp_path, capture_output=True, text=True, timeout=WAITING)
    assert done.returncode == 0, done.stderr
    found = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert dict(zip(FAULTS, found, strict=True)) == {name: expected for name, (_, _, expected) in FAULTS.items()}


@pytest.mark.parametrize("name", ["prepare for training", "convert of a trained model", "convert of custom modules", "dynamic",
                                  "training with statements on data"])  # fmt: skip
def test_a_case_of_each_flow_is_reduced(name: str, tmp_path: Path) -> None:
    script = crash(name, tmp_path)
    space = names_of(script)
    main(str(script), space["PIPELINE"], space["NAMES"], ["--reduce"])
    reduced = script.parent / "reduced" / "repro.py"
    smaller = names_of(reduced)
    assert "," not in smaller["PIPELINE"]
    with pytest.raises(QCompilerError) as caught:
        main(str(reduced), smaller["PIPELINE"], smaller["NAMES"], [])
    assert type(caught.value.__cause__).__name__ == FAULTS[name][2][2]


@pytest.mark.parametrize("real", [False, True])
def test_inputs_are_in_a_reproducer_only_when_weights_are(real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_REPRO_WEIGHTS", str(int(real)))
    held = read_safetensors(crash("convert", tmp_path).parent / "repro.safetensors")
    assert any(torch.equal(value, X) for value in held.values()) is real
    assert sum(value.shape == X.shape for value in held.values()) == 1


@pytest.mark.parametrize(("backend", "written"), [("torch", 1), ("native", 1), ("reference", 0)])
def test_own_kernels_are_those_of_the_back_end(backend: str, written: int, tmp_path: Path) -> None:
    """What the user registered with torch's kernels is no part of a compile for another back end."""
    with pytest.raises(QCompilerError) as caught:
        own_kernel(tmp_path, backend, (planted.Raises(),))
    script = Path(str(caught.value.reproducer))
    assert len(json.loads((script.parent / "repro.json").read_text())["taught"]) == written
    assert any("BAD_KERNEL" in name or ("planted:" in name and "emit" in name) for name in names_of(script)["NAMES"]) is bool(written)


def test_a_module_that_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C compiler fails: no pass, and yet shown again."""
    monkeypatch.setenv("QCOMPILER_CC", "false")
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(QCompilerError) as caught:
        convert_fx(calibrated(backend="native"), debug=tmp_path / "dump")
    script = Path(str(caught.value.reproducer))
    assert names_of(script)["PIPELINE"].split(",")[-2:] == ["lower_native", "build"]
    done = subprocess.run([sys.executable, "-c", RUN, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=WAITING)
    assert ast.literal_eval(done.stdout)[:2] == (type(caught.value).__name__, caught.value.code), done.stderr


SCRIPT = """
import torch
from torch import nn
import qcompiler
from tests import planted

def twice(x):
    return x * 2

class Stating(planted.Net):
    def __init__(self):
        super().__init__()
        self.before = nn.Conv2d(3, 3, 1)

    def rounds(self, x, step):
        while x.abs().max() > 1e9:
            x = twice(x) + step
        return self.before(x)

    def forward(self, x):
        return super().forward(self.rounds(self.rounds(x, 1), torch.ones(1)))

if __name__ == "__main__":
    qcompiler.prepare_fx(Stating().eval(), None, (torch.randn(1, 3, 8, 8),), passes=(planted.Raises(),), debug="dump")
"""


def test_statements_of_a_script_are_reproduced_and_reduced(tmp_path: Path) -> None:
    """Its globals are the script's, whatever name that runs under; one line with arguments of two types is two functions."""
    (tmp_path / "user.py").write_text(SCRIPT)
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [Path(planted.__file__).parent.parent, *sys.path]))}

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=WAITING, env=path)
        return done.stdout + done.stderr

    assert "PassError: pass raises failed: KeyError" in run("user.py")
    (repro,) = (tmp_path / "dump").glob("*/repro.py")
    assert repro.read_text().count("qcompiler_reproduce.statement(qcompiler_reproduce.script(") == 2
    assert "Could not be written" not in repro.read_text()
    assert "PassError: pass raises failed: KeyError" in run(str(repro))
    assert "nodes" in run(str(repro), "--reduce")
    assert "PassError: pass raises failed: KeyError" in run(str(repro.parent / "reduced" / "repro.py"))
