"""Exports of converted and loaded modules: the same files as from what they were converted from, and what cannot be one."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from typer.testing import CliRunner

import qcompiler
from qcompiler.artifact.graph_note import GRAPH
from qcompiler.artifact.read_graph import graph_of
from qcompiler.cli import app
from qcompiler.errors import QCompilerWarning
from qcompiler.files.faults import StandInWarning
from qcompiler.ir.types import Stage
from qcompiler.stages.quantized import steps
from qcompiler.stages.verify import verify
from tests import native_nets, onnx_nets
from tests.native_nets import shaken
from tests.onnx_nets import randn
from tests.test_native_export import build, computed, flat

X = randn(2, 3, 8, 8)


class Net(nn.Module):
    """Names that are no identifiers, a clamp that is no range, a slice, a text among the results, an op that is float."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({"class": nn.Conv2d(3, 8, 3, padding=1), "a-b": nn.Conv2d(8, 4, 1), "b": nn.Conv2d(8, 4, 1)})
        self.head, self.table = nn.Linear(8, 5), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = torch.clamp(self.parts["class"](x), 0, 6)
        y = torch.cat([torch.relu(self.parts["a-b"](y)), self.parts["b"](y)], 1)
        rows = y.mean((2, 3))
        return {"logits": self.head(rows), "%text": [y[:, 1:5], (F.softmax(rows, 1) * self.table,)]}


@dataclasses.dataclass
class Answer:
    scores: Tensor
    seen: Tensor


class Answers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Answer:
        y = self.conv(x)
        return Answer(y.mean((2, 3)), y)


def pair(model: nn.Module, *args: Any, backend: str = "torch", **options: Any) -> tuple[Any, Any]:
    """The int8 module, and the graph that it computes."""
    prepared = qcompiler.prepare_fx(model.eval(), None, args, backend=backend, **options)
    with torch.no_grad():
        prepared(*args)
    return qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared)


def loaded(module: Any, folder: Path) -> Any:
    qcompiler.save(module, folder / "net.qc")
    return qcompiler.load(folder / "net.qc")


def onnx_of(module: Any, folder: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QCompilerWarning)
        return qcompiler.export_onnx(module, folder / "net.onnx", dynamic_shapes={}).read_bytes()


ORIGINS: dict[str, Callable[[Any, Path], Any]] = {
    "converted": lambda module, folder: module, "copied": lambda module, folder: copy.deepcopy(module),
    "pickled": lambda module, folder: pickle.loads(pickle.dumps(module)), "loaded": loaded,
    "loaded twice": lambda module, folder: loaded(loaded(module, folder), folder),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_the_same_file_wherever_the_module_comes_from(backend: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    module, graph = pair(Net(), X, backend=backend)
    expected, program = onnx_of(graph, tmp_path), qcompiler.export_program(graph, dynamic_shapes={})
    for name, made in ORIGINS.items():
        given = made(module, tmp_path)
        assert onnx_of(given, tmp_path) == expected, name
        assert qcompiler.scales(given).values == qcompiler.scales(module).values, name
    found = qcompiler.export_program(given, dynamic_shapes={})
    assert str(found.graph) == str(program.graph) and found.graph_signature == program.graph_signature


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    **{name: (make, (native_nets.example(shape),)) for name, (make, shape) in native_nets.NETS.items()},
    **{f"{name} of several": (make, args) for name, (make, args, _) in onnx_nets.NETS.items()},
}


FAST = ("bert of several", "yolo of several", "cat", "sequence", "volume")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NETS])
def test_the_graph_of_a_loaded_module(name: str, tmp_path: Path) -> None:
    """Node by node that of the stage QUANTIZED, with the tensors that the module itself holds."""
    torch.manual_seed(1)
    make, args = NETS[name]
    module, graph = pair(shaken(make()), *args)
    found = graph_of(loaded(module, tmp_path))
    assert [str(step) for step in steps(found)] == [str(step) for step in steps(graph)]
    verify(found, Stage.QUANTIZED)
    with torch.no_grad():
        assert all(map(torch.equal, pytree.tree_leaves(found(*args)), pytree.tree_leaves(graph(*args))))
    of_module = {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert {tensor.data_ptr() for tensor in graph_of(module).state_dict().values()} <= of_module


def test_results_of_the_users_classes(tmp_path: Path) -> None:
    """By the class that `modules=` gives; without it the graph cannot be made."""
    pytest.importorskip("onnx_ir")
    module, graph = pair(Answers(), X)
    assert onnx_of(module, tmp_path) == onnx_of(graph, tmp_path)
    qcompiler.save(module, tmp_path / "net.qc")
    (name,) = module._payload().takes
    assert onnx_of(qcompiler.load(tmp_path / "net.qc", modules={name: Answer}), tmp_path) == onnx_of(graph, tmp_path)
    with pytest.warns(StandInWarning):
        without = qcompiler.load(tmp_path / "net.qc")
    with pytest.raises(qcompiler.ConfigError, match=r"Answer, a function or class of yours(.|\n)*modules="):
        qcompiler.export_program(without)


def test_new_weights_are_exported_and_new_scales_are_not(tmp_path: Path) -> None:
    """The note holds the scales of values: once the module has others, it is no graph of the module."""
    pytest.importorskip("onnx_ir")
    module, _ = pair(Net(), X)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state["head.bias"] += 1
    module.load_state_dict(state)
    assert torch.equal(graph_of(module).state_dict()["head.bias"], state["head.bias"])
    state["activation_scales"] *= 2
    module.load_state_dict(state)
    for call in (lambda: qcompiler.export_onnx(module, tmp_path / "net.onnx"), lambda: qcompiler.export_program(module)):
        with pytest.raises(qcompiler.ConfigError, match=r"not those that it was converted with(.|\n)*prepare_fx"):
            call()


def test_a_module_without_a_graph(tmp_path: Path) -> None:
    module, _ = pair(Net(), X)
    del module.__dict__[GRAPH]
    with pytest.raises(qcompiler.ConfigError, match="older version"):
        qcompiler.export_program(loaded(module, tmp_path))


BREAKS: dict[str, Callable[[Any], Any]] = {
    "a name that is code": lambda note: note["nodes"][1].__setitem__(1, "x;import os"),
    "a path that is code": lambda note: next(n for n in note["nodes"] if n[0] == "held").__setitem__(2, "a.b();c"),
    "a path of no tensor": lambda note: next(n for n in note["nodes"] if n[0] == "held").__setitem__(2, "nothing"),
    "a call of anything": lambda note: next(n for n in note["nodes"] if n[0] == "call").__setitem__(2, "call:os.system"),
    "a call of a kernel": lambda note: next(n for n in note["nodes"] if n[0] == "call").__setitem__(2, "call:runtime.native_region"),
    "an op that is none": lambda note: next(n for n in note["nodes"] if n[0] == "call").__setitem__(2, "row:nothing"),
    "a function that is none": lambda note: next(n for n in note["nodes"] if n[0] == "call").__setitem__(2, "function:Sequence"),
    "a keyword that is code": lambda note: note["nodes"][-2].__setitem__(4, {"a=1, b": 2}),
    "an argument before it is made": lambda note: note["nodes"].reverse(),
    "one node twice": lambda note: note["nodes"].insert(1, note["nodes"][0]),
    "a place that is none": lambda note: note["nodes"][0].__setitem__(5, 10**6),
    "no nodes": lambda note: note.pop("nodes"),
    "names that are code": lambda note: note["names"].append(["x", "x;y"]),
    "values by code": lambda note: note["values"].update({"a.b;c": 1}) or note["nodes"].insert(0, ["held", "v", "a.b;c", [], None, 0, 0]),
    "a mode that is none": lambda note: note["nodes"][2].append([True, "NONE", False, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_note_that_no_compiler_wrote(name: str, tmp_path: Path) -> None:
    """A file may hold anything: names become code of torch.fx, and targets are called."""
    module, _ = pair(Net(), X)
    note = copy.deepcopy(module.__dict__[GRAPH])
    BREAKS[name](note)
    module.__dict__[GRAPH] = note
    with pytest.raises(qcompiler.ArtifactError, match="quantized graph"):
        graph_of(loaded(module, tmp_path))


def test_notes_of_another_shape_are_no_file(tmp_path: Path) -> None:
    module, _ = pair(Net(), X)
    for wrong in ([], {"version": "1"}, {}):
        module.__dict__[GRAPH] = wrong
        with pytest.raises(qcompiler.ArtifactError, match=GRAPH):
            loaded(module, tmp_path)
    module.__dict__[GRAPH] = {"version": 99}
    with pytest.raises(qcompiler.ConfigError, match="another version"):
        qcompiler.export_program(loaded(module, tmp_path))


class Loud(nn.Module):
    """Weights of which two products do not fit into 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        nn.init.constant_(self.conv.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def test_weights_that_other_cpus_cannot_add(tmp_path: Path) -> None:
    """A converted module's codes are what they are: where two products overflow 16 bits, that is said, with the line of the caller."""
    pytest.importorskip("onnx_ir")
    module, _ = pair(Loud(), X, backend="native")
    if bool((graph_of(module).state_dict()["conv.weight"].double().abs() <= 64).all()):
        pytest.skip("this CPU has no VNNI, so its weights have room")
    with pytest.warns(QCompilerWarning, match=r"1 of 1 weights(.|\n)*conv\.weight(.|\n)*prepare_fx") as caught:
        qcompiler.export_onnx(module, tmp_path / "net.onnx", dynamic_shapes={})
    assert caught[0].filename == __file__
    prepared = qcompiler.prepare_fx(Loud().eval(), None, (X,))
    qcompiler.calibrate(prepared, [X])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qcompiler.export_onnx(prepared, tmp_path / "net.onnx", dynamic_shapes={})


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.conv(x)
        return self.last(y if mask is None else y * mask)  # type: ignore[no-any-return]


def test_several_forms_of_the_call(tmp_path: Path) -> None:
    """Each form has its graph, in a file too."""
    prepared = qcompiler.prepare_fx(Masked().eval(), None, (X,), example_kwargs=[{}, {"mask": X[:, :1]}])  # type: ignore[arg-type]
    prepared(X)
    prepared(X, mask=X[:, :1])
    module, graph = loaded(qcompiler.convert_fx(prepared), tmp_path), qcompiler.convert_to_reference_fx(prepared)
    with pytest.raises(qcompiler.ConfigError, match=r"module\.call_forms\[0\]"):
        qcompiler.export_program(module)
    for form, expected in zip(module.call_forms, graph.call_forms, strict=True):
        made, wanted = (qcompiler.export_program(module, dynamic_shapes={}) for module in (form, expected))
        assert str(made.graph) == str(wanted.graph)


@pytest.mark.filterwarnings("ignore:.*may overflow 16 bits")
def test_the_command_line_takes_saved_files(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    module, graph = pair(Net(), X)
    qcompiler.save(module, tmp_path / "net.qc")
    call = lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])  # noqa: E731
    made = call("export-onnx", tmp_path / "net.qc", "--out", tmp_path / "net.onnx", "--fixed")
    assert made.exit_code == 0, made.output
    written = (tmp_path / "net.onnx").read_bytes()
    assert written == onnx_of(graph, tmp_path)
    made = call("export-program", tmp_path / "net.qc", "--out", tmp_path / "net.pt2", "--fixed")
    assert made.exit_code == 0, made.output
    with torch.no_grad():
        assert torch.equal(torch.export.load(tmp_path / "net.pt2").module()(X)["logits"], graph(X)["logits"])
    refused = call("export-onnx", tmp_path / "net.qc", "--out", tmp_path / "net.onnx", "--calibrate", tmp_path)
    assert refused.exit_code == 1 and "--calibrate" in refused.output
    refused = call("export-onnx", "torchvision:resnet18", "--out", tmp_path / "net.onnx")
    assert refused.exit_code == 1 and "--calibrate names the data" in refused.output


def test_c_of_a_module_of_the_torch_back_end(tmp_path: Path) -> None:
    """Its own integers, of weights and inputs that are exact in int8; sums may be a step off next to a tie, and so what reads them."""
    make, shape = native_nets.NETS["residual"]
    x = native_nets.example(shape)
    module, graph = pair(shaken(make()), x)
    folder = qcompiler.export_c(loaded(module, tmp_path), tmp_path / "c", name="net")
    _, got = computed(build(folder, "net"), "net", [x])
    with torch.no_grad():
        step = next(reversed(qcompiler.scales(module).values.values())).scale
        assert abs(got - flat(graph(x))).max() <= 2.01 * step


def test_what_of_a_module_has_no_c_form(tmp_path: Path) -> None:
    model = native_nets.Through(lambda m, x: m[1](m[0](x).logcumsumexp(2)), native_nets.conv(3, 8), native_nets.conv(8, 4, 1))
    module, _ = pair(model, native_nets.example((1, 3, 9, 9)))
    with pytest.raises(qcompiler.ConfigError, match=r"native as a whole(.|\n)*%logcumsumexp runs in torch: "):
        qcompiler.export_c(module, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_trained_module_keeps_its_ends(tmp_path: Path) -> None:
    """Training rounds to 7 bits where it was told to, and cuts there: so does every file of it."""
    pytest.importorskip("onnx_ir")
    prepared = qcompiler.prepare_qat_fx(Net().train(), None, (X,))
    prepared(X)
    module = qcompiler.convert_fx(prepared)
    assert module.__dict__[GRAPH]["trains"] is True
    assert onnx_of(loaded(module, tmp_path), tmp_path) == onnx_of(qcompiler.convert_to_reference_fx(prepared), tmp_path)
