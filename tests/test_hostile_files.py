"""Files that somebody wrote by hand, with all hashes right: no code of theirs runs, no process ends, and each error is one of ours."""

from __future__ import annotations

import copy
import gc
import linecache
import os
import runpy
import stat
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx import graph_module

import qcompiler
from qcompiler import artifact
from qcompiler.artifact.notes import ROW
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.assemble import compile_graph
from qcompiler.backends.torch.program.export import export_source
from qcompiler.backends.torch.program.quote import comment, docstring, literal
from qcompiler.backends.torch.runtime.once_arguments import CHECKS, ArgumentError, check_once
from qcompiler.debug.explain import Row
from qcompiler.errors import ArtifactError, ArtifactUnsafeError, ArtifactWriteError, ConfigError, InputError, QCompilerError
from qcompiler.files.atomic import atomic_write
from tests import fuzz_artifacts
from tests.children import WAITING
from tests.lowered_net import ENGINES, INPUT, lowered
from tests.saved_files import changed
from tests.test_artifact import attempt

INJECTIONS = ('x"""; import os; """', "x'''", "a\nimport os", "\\", 'x"', "a b", "class", "", "x\\", "\u2028", "1x")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "net.qc"
    artifact.save(compile_graph(lowered(), name="Net", engine=ENGINES[0]), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def converted() -> Any:
    return qcompiler.quantize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), [torch.ones(3, 4)], progress=False)


# ---- text that enters generated source


@pytest.mark.parametrize("text", INJECTIONS)
def test_quoted_text_is_one_literal(text: str) -> None:
    names: dict[str, Any] = {}
    exec(f"# {comment(text)}\n{docstring(text)}\nfound = {literal(text)}", names)
    assert names["found"] == text and "os" not in names


@pytest.mark.parametrize("where", ["name", "isa"])
@pytest.mark.parametrize("text", INJECTIONS[:-1])
def test_names_are_names_and_instruction_sets_known(where: str, text: str, saved: bytes, tmp_path: Path) -> None:
    if (where, text) == ("isa", ""):
        return  # nobody said: files of the first releases
    with pytest.raises(ArtifactError, match="corrupt at program"):
        attempt(tmp_path, changed(saved, lambda h: h["program"].__setitem__(where, text)))


@pytest.mark.parametrize("name", ["torch", "Tensor", "load", "hashlib", "print", "Model", "float", "Модель", "prepack_conv2d", "relu"])
def test_a_model_of_any_name_is_exported(name: str, tmp_path: Path) -> None:
    module = compile_graph(lowered(), name=name, engine=ENGINES[0])
    made = runpy.run_path(str(export_source(module, tmp_path)))["load"]()
    assert torch.equal(made(INPUT)[0], module(INPUT)[0])


def test_comments_and_origins_of_a_file_stay_comments(saved: bytes, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        for call in header["program"]["calls"]:
            call["comment"], call["origin"] = 'x\n"""; raise SystemExit', ['x"""']

    module = attempt(tmp_path, changed(saved, change))
    assert torch.equal(runpy.run_path(str(export_source(module, tmp_path / "source")))["load"]()(INPUT)[0], module(INPUT)[0])


@pytest.mark.parametrize("name", ["resize_", "set_", "numpy", "apply_", "_make_subclass", "__class__", "data_ptr", "tolist"])
@pytest.mark.parametrize("more", [[], [None]])
def test_a_refused_method_cannot_be_read_as_an_attribute(name: str, more: list[Any], saved: bytes, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["program"]["calls"].append({"out": "evil", "op": "builtins.getattr", "args": [{"ref": "x"}, name, *more]})

    with pytest.raises(ArtifactUnsafeError, match="reading attribute"):
        attempt(tmp_path, changed(saved, change))


# ---- what runs when a module is built


def once_functions() -> dict[str, Any]:
    return {name: f for name, f in registry.table().items() if registry.is_once(name)}


def test_every_function_that_runs_at_load_has_a_check() -> None:
    assert sorted(CHECKS) == sorted(f.__name__ for f in once_functions().values())


INT = torch.randint(-60, 60, (8, 2, 3, 3), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
SCALE, ZERO, ONE, NONE = torch.full((8,), 0.01), torch.zeros(8, dtype=torch.int64), torch.ones(1), torch.zeros(1, dtype=torch.int64)
ROWS = {"scale": SCALE, "zero_point": ZERO}
CONV = {"scale": SCALE, "zero_point": ZERO, "axis": 0, "tag": ""}
GOOD: dict[str, dict[str, Any]] = {
    "prepack_conv1d": CONV | {"weight": INT[..., 0], "bias": None, "stride": [1], "padding": [0], "dilation": [1], "groups": 4},
    "prepack_conv2d": CONV | {"weight": INT, "bias": torch.zeros(8), "stride": [1, 2], "padding": [0, 1], "dilation": [1, 1], "groups": 2},
    "prepack_conv3d": CONV
    | {"weight": INT[..., None], "scale": ONE, "zero_point": NONE, "axis": -1, "bias": None, "stride": [1, 1, 1], "padding": [0, 0, 0]}
    | {"dilation": [1, 1, 1], "groups": 1},
    "prepack_linear": CONV | {"weight": INT[:, :, 0, 0], "bias": None},
    "prepack_linear_as_conv2d": CONV | {"weight": INT[:, :, 0, 0], "bias": None},
    "prepack_linear_half": {"weight": INT[:, :, 0, 0].half(), "bias": torch.zeros(8)},
    "float_weight": ROWS | {"weight": INT, "axis": 0},
    "widened": {"weight": INT.half()},
    "split_phases": {"weight": INT, "zero_point": NONE, "stride": [2, 2], "groups": 2},
    "repeat_channels": {"x": torch.zeros(8), "groups": 2, "count": 4},
    "merge_groups": {"weight": INT, "zero_point": ZERO, "groups": 4, "size": 2},
    "larger_window": {"weight": INT, "zero_point": ZERO, "outputs": 8, "window": 5},
    "more_channels": {"x": torch.zeros(8), "count": 16, "value": 1.0},
    "quantize_constant": {"x": torch.zeros(3), "scale": 0.1, "zero_point": 4},
    "rows_8bit": ROWS | {"weight": INT[:, :, 0, 0]},
    "rows_4bit": ROWS | {"packed": INT[:, :, 0, 0].to(torch.uint8)},
    "unpacked_4bit": ROWS | {"packed": INT[:, :, 0, 0].to(torch.uint8), "columns": 3},
    "prepack_cell": {"w_ih": INT[:, :, 0, 0], "scale_ih": SCALE, "zero_point_ih": ZERO, "b_ih": None, "per_channel": True}
    | {"w_hh": INT[:, :, 1, 1], "scale_hh": SCALE, "zero_point_hh": ZERO, "b_hh": None, "reduce_range": False},
    "prepack_cell_half": {"w_ih": INT[:, :, 0, 0].half(), "w_hh": INT[:, :, 1, 1].half(), "b_ih": None, "b_hh": None},
}
BAD_INTS = (0, -1, 2**32 + 1, 2**62, True, 1.0, "1", None)


def wrong(function: str, name: str, value: Any) -> list[Any]:
    """Values of an argument that must not reach torch."""
    if isinstance(value, torch.Tensor):
        bad = [3, value.to(torch.complex64), torch.zeros(value.shape, device="meta")]
        bad += [None] if name != "bias" else []
        bad += [value * float("nan"), -value, value * 0] if name.startswith("scale") else []
        bad += [value + 1000] if name.startswith("zero_point") and function not in ("split_phases", "merge_groups", "larger_window") else []
        return bad + ([value.flatten()[:0]] if function not in ("widened", "quantize_constant") else [])
    if isinstance(value, list):
        return [[b] * len(value) for b in BAD_INTS if name != "padding" or b != 0] + [[1] * 9, None]
    if name == "axis":
        return [-2, 7, 2**62, None]
    if name == "columns":
        return [-1, 2**62, None]
    if isinstance(value, (bool, float)) or name == "zero_point":
        return [None, "x", -1]
    return list(BAD_INTS) if isinstance(value, int) else []


def breaches() -> list[tuple[str, str, Any]]:
    """(function, argument, value) for each argument of each function."""
    given = [(function, name, value) for function, good in GOOD.items() for name, value in good.items()]
    return [(function, name, bad) for function, name, value in given for bad in wrong(function, name, value)]


@pytest.mark.parametrize("function", GOOD)
def test_good_arguments_pass_and_run(function: str) -> None:
    called = next(f for f in once_functions().values() if f.__name__ == function)
    check_once(called, (), GOOD[function])
    called(**GOOD[function])


def test_no_bad_argument_reaches_torch() -> None:
    functions = {f.__name__: f for f in once_functions().values()}
    passed = []
    for function, name, value in breaches():
        try:
            check_once(functions[function], (), GOOD[function] | {name: value})
            passed.append((function, name, value))
        except ArgumentError as error:
            assert str(error).startswith(function)
    assert not passed, passed
    with pytest.raises(ArgumentError, match="missing"):
        check_once(functions["widened"], (), {})


def test_results_are_bounded_by_their_tensors(saved: bytes, tmp_path: Path) -> None:
    functions = {f.__name__: f for f in once_functions().values()}
    cases = (("repeat_channels", "count", 2**26), ("split_phases", "stride", [2**20, 1]), ("merge_groups", "size", 2**26))
    for function, name, value in cases:
        with pytest.raises(ArgumentError):
            check_once(functions[function], (), GOOD[function] | {name: value})
    with pytest.raises(ArtifactError, match="groups is 0"):
        attempt(tmp_path, changed(saved, lambda h: h["program"]["once"][0]["args"].__setitem__(7, 0)))


# ---- numbers and notes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, 1e-60])
def test_no_scale_that_no_tensor_has(value: float, converted: Any, tmp_path: Path) -> None:
    """Through the three doors: a file, a state_dict, a tensor changed in place."""
    state = converted.state_dict()
    with pytest.raises(QCompilerError, match="scale"):
        copy.deepcopy(converted).load_state_dict(state | {"activation_scales": torch.full_like(state["activation_scales"], value)})
    copied = qcompiler.load(_saved(converted, tmp_path))
    copied.activation_scales[0] = value
    with pytest.raises(ConfigError, match="scale"):
        copied.rebuild()
    artifact.save(copied, tmp_path / "bad.qc")
    with pytest.raises(ArtifactError, match="scale"):
        artifact.load(tmp_path / "bad.qc")


def _saved(module: Any, folder: Path) -> Path:
    artifact.save(module, folder / "good.qc")
    return folder / "good.qc"


def test_the_schema_of_rows_is_that_of_explain() -> None:
    assert {f.name: f.type for f in fields(Row)} == {name: kind.__name__ for name, kind in ROW.items()}


NOTES = {
    "a row without a field": {"_qcompiler_rows": [{"node": "x"}]},
    "a row with another field": {"_qcompiler_rows": [dict.fromkeys(ROW, "x")]},
    "rows that are none": {"_qcompiler_rows": 3},
    "remarks of numbers": {"_qcompiler_remarks": [{"pass": 1, "code": "a", "text": "b"}]},
    "a remark with more": {"_qcompiler_remarks": [{"pass": "a", "code": "a", "text": "b", "evil": "c"}]},
    "checksums of numbers": {"_qcompiler_weights": {"w": 3}},
    "another mark": {"_qcompiler_stage": "prepared"},
    "an unknown note": {"_qcompiler_secret": 1},
}


@pytest.mark.parametrize("case", NOTES)
def test_notes_are_what_the_compiler_writes(case: str, converted: Any, tmp_path: Path) -> None:
    from qcompiler.backends.torch.program.values import to_json

    def change(header: Any) -> None:
        header["attributes"] |= {name: to_json(value) for name, value in NOTES[case].items()}

    with pytest.raises(ArtifactError, match="corrupt at notes"):
        attempt(tmp_path, changed(_saved(converted, tmp_path).read_bytes(), change))


def test_a_statement_that_makes_no_sense_is_an_error_of_ours(saved: bytes, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["program"]["calls"][-1] = {"out": header["program"]["calls"][-1]["out"], "op": "method.relu", "args": [3]}

    module = attempt(tmp_path, changed(saved, change))
    with pytest.raises(InputError, match="AttributeError") as caught:
        module(INPUT)
    assert "relu" in str(caught.value.where)


def test_mutations_are_refused_or_run(tmp_path: Path) -> None:
    """A hundred here; `python -m tests.fuzz_artifacts --count 20000` for more."""
    found = fuzz_artifacts.run(100, 0, fuzz_artifacts.originals(tmp_path))
    assert not found.bad and found.outcomes.total() == 100 and found.outcomes["ran"] > 5


# ---- exported sources and their weights


def test_the_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    one, other = compile_graph(lowered(), name="Net", engine=ENGINES[0]), compile_graph(lowered(seed=1), name="Net", engine=ENGINES[0])
    source = export_source(one, tmp_path / "one")
    export_source(other, tmp_path / "other")
    (tmp_path / "one" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="not the weights"):
        runpy.run_path(str(source))["load"]()
    source.write_text(source.read_text().replace("\nWEIGHTS_SHA256 = ", "\nWEIGHTS_SHA256 = None and "))
    assert torch.equal(runpy.run_path(str(source))["load"]()(INPUT)[0], other(INPUT)[0])


# ---- paths


def test_a_fifo_is_refused_at_once(saved: bytes, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.qc")
    with pytest.raises(ArtifactError, match="not a regular file"):
        artifact.load(tmp_path / "pipe.qc")
    os.mkfifo(tmp_path / ".a.qc.0123456789abcdef.qcsave")
    worker = threading.Thread(target=atomic_write, args=(tmp_path / "a.qc", [b"new"]), daemon=True)
    worker.start()
    worker.join(WAITING)
    assert not worker.is_alive() and (tmp_path / "a.qc").read_bytes() == b"new"


def test_a_private_file_is_never_readable_to_others(tmp_path: Path) -> None:
    target = tmp_path / "a.qc"
    target.write_bytes(b"old")
    target.chmod(0o600)

    def chunks() -> Any:
        yield b"secret"
        (temporary,) = tmp_path.glob(".*.qcsave")
        seen.append(stat.S_IMODE(temporary.stat().st_mode))

    seen: list[int] = []
    atomic_write(target, chunks())
    assert seen == [0o600] and stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["x" * 243, "x" * 255, "é" * 120])
def test_names_as_long_as_the_file_system_takes(name: str, saved: bytes, tmp_path: Path) -> None:
    atomic_write(tmp_path / name, [saved])
    assert artifact.load(tmp_path / name)(INPUT) is not None and os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("path", ["a\0b", "a/\0", "\0"])
def test_a_nul_in_a_path(path: str, converted: Any) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.load(path)
    with pytest.raises(ArtifactWriteError, match="cannot write"):
        artifact.save(converted, path)


@pytest.mark.parametrize("path", [None, 3, 3.5, b"x\0", ["a"]])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(ConfigError, match="a text or a path"):
        artifact.load(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.load("x\0")


# ---- what a compile leaves behind


@pytest.mark.parametrize("what", ["calibrates", "trains", "corrects"])
def test_a_compile_leaves_no_source_behind(what: str) -> None:
    def compiled() -> None:
        net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.ones(2, 3, 8, 8)
        if what == "corrects":
            prepared = qcompiler.prepare_fx(net.eval(), None, (x,))
            qcompiler.calibrate(prepared, [x])
            qcompiler.convert_fx(prepared, corrections=qcompiler.tune.correct_bias(prepared, [x]))
        elif what == "trains":
            prepared = qcompiler.prepare_qat_fx(net.train(), None, (x,))
            prepared(x).sum().backward()
            qcompiler.convert_fx(prepared)(x)
        else:
            qcompiler.quantize(net.eval(), [x], progress=False)(x)

    def held() -> set[str]:
        gc.collect()
        loader: Any = graph_module._loader
        return {name for name in (*linecache.cache, *loader.eval_cache) if name.startswith(("<eval_with_key>", "<qcompiler"))}

    compiled()
    before = held()
    compiled()
    assert held() <= before


def test_a_graph_that_lives_keeps_its_source() -> None:
    from qcompiler.ir.graph_module import OwnGraphModule

    module = OwnGraphModule(nn.Module(), fx.symbolic_trace(nn.ReLU()).graph)
    name = type(module).forward.__code__.co_filename  # type: ignore[attr-defined]
    gc.collect()
    assert "def forward" in "".join(linecache.getlines(name))
