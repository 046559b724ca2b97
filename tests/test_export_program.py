"""export_program: the bits of the reference graph in plain torch, sizes that stay open, files that torch alone reads, and what is told."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from typer.testing import CliRunner

import qcompiler
from qcompiler.cli import app
from qcompiler.debug import compute_sqnr
from qcompiler.ops import reference
from tests import native_nets, onnx_nets, zoo
from tests.native_nets import shaken
from tests.onnx_nets import Decides, randn

X = randn(2, 3, 8, 8)


class Net(nn.Module):
    """Clamps that are ranges, one that is not (both sides of the cat share steps), a pool, a linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = torch.clamp(self.first(x), 0, 6)
        y = torch.cat([torch.relu(self.a(y)), self.b(y)], 1)
        return {"logits": self.head(y.mean((2, 3))), "parts": [y, (y.amax((2, 3)),)]}


def prepared(model: nn.Module, *args: Any, **options: Any) -> fx.GraphModule:
    made = qcompiler.prepare_fx(model.eval(), None, args, **{"backend": "reference", **options})
    with torch.no_grad():
        made(*args)
    return made


def agree(graph: nn.Module, program: ExportedProgram, *args: Any) -> None:
    """The same bits in the same containers."""
    with torch.no_grad():
        expected, got = graph(*args), program.module()(*args)
    (want, spec), (have, other) = pytree.tree_flatten(expected), pytree.tree_flatten(got)
    assert spec == other and len(want) == len(have)
    for one, another in zip(want, have):
        assert torch.equal(one, another) and one.dtype is another.dtype


def ops_of(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.fixture(scope="module")
def ready() -> fx.GraphModule:
    return prepared(Net(), X)


@pytest.fixture(scope="module")
def graph(ready: fx.GraphModule) -> fx.GraphModule:
    return qcompiler.convert_to_reference_fx(ready)


@pytest.fixture(scope="module")
def program(ready: fx.GraphModule) -> ExportedProgram:
    return qcompiler.export_program(ready)


def test_the_same_bits_at_all_sizes(graph: fx.GraphModule, program: ExportedProgram) -> None:
    for shape in ((2, 3, 8, 8), (1, 3, 8, 8), (5, 3, 12, 9), (1, 3, 31, 8)):
        agree(graph, program, randn(*shape))
    with pytest.raises(Exception, match=r"size\(\)\[1\]|shape\[1\]"):
        program.module()(randn(2, 4, 8, 8))


def test_plain_ops_on_integer_weights(program: ExportedProgram) -> None:
    """int8 weights under the user's names, ops of aten alone; a clamp that is the range is gone, the other one is there."""
    assert all(name.startswith("aten.") or "getitem" in name for name in ops_of(program))
    held = program.state_dict
    assert {name for name, tensor in held.items() if tensor.dtype is torch.int8} == {f"{n}.weight" for n in ("first", "a", "b", "head")}
    ends = [node.args[1:] for node in program.graph.nodes if str(node.target) == "aten.clamp.default"]
    assert [tuple(end) for end in ends if tuple(end) != (0, 255)] == [(0.0,)]


def test_where_a_node_comes_from(program: ExportedProgram) -> None:
    conv = next(node for node in program.graph.nodes if str(node.target) == "aten.conv2d.default")
    assert ("first", "Conv2d") in conv.meta["nn_module_stack"].values()
    assert f'{Path(__file__).name}", line {Net.forward.__code__.co_firstlineno + 1}' in conv.meta["stack_trace"]


LOADS = """
import sys, torch
program = torch.export.load(sys.argv[1])
x, expected = torch.load(sys.argv[2])
got = program.module()(x)
assert list(got) == ["logits", "parts"] and type(got["parts"]) is list and type(got["parts"][1]) is tuple, got
assert torch.equal(got["logits"], expected["logits"]) and torch.equal(got["parts"][0], expected["parts"][0])
assert program.module()(x[:1])["logits"].shape == (1, 5)
assert not any(name.partition(".")[0] == "qcompiler" for name in sys.modules)
"""


def test_a_file_that_torch_alone_reads(graph: fx.GraphModule, program: ExportedProgram, tmp_path: Path) -> None:
    torch.export.save(program, tmp_path / "net.pt2")
    assert b"qcompiler" not in (tmp_path / "net.pt2").read_bytes()
    x = randn(3, 3, 10, 8)
    with torch.no_grad():
        torch.save((x, graph(x)), tmp_path / "x.pt")
    call = [sys.executable, "-W", "ignore", "-c", LOADS, str(tmp_path / "net.pt2"), str(tmp_path / "x.pt")]
    subprocess.run(call, check=True, cwd=tmp_path)


def test_sizes_of_the_callers(ready: fx.GraphModule) -> None:
    def is_open(shapes: Any) -> list[bool]:
        made = qcompiler.export_program(ready, dynamic_shapes=shapes)
        (x,) = (node for node in made.graph.nodes if node.name in made.graph_signature.user_inputs)
        return [not isinstance(size, int) for size in x.meta["val"].shape]

    assert is_open({}) == [False] * 4
    assert is_open({"x": {0: "n"}}) == [True, False, False, False]
    assert is_open({"x": (None, None, "h", "w")}) == [False, False, True, True]
    made = qcompiler.export_program(ready, dynamic_shapes={"x": {0: Dim("n", max=4)}})
    made.module()(randn(4, 3, 8, 8))
    with pytest.raises(Exception, match="<= 4"):
        made.module()(randn(5, 3, 8, 8))
    with pytest.raises(qcompiler.ConfigError, match=r"dimension 1 of 'x' cannot change: %first"):
        is_open({"x": {1: "channels"}})
    with pytest.raises(qcompiler.ConfigError, match="names are texts"):
        is_open({"x": {0: 7}})


@pytest.fixture
def decomposed() -> None:
    import torch.ao.quantization.fx._decomposed  # noqa: F401  registers the ops


@pytest.mark.usefixtures("decomposed")
def test_ops_of_quantized_decomposed(ready: fx.GraphModule, graph: fx.GraphModule) -> None:
    """What ExecuTorch, XNNPACK and Inductor start from: a pair of ops around each value, one before each weight."""
    made = qcompiler.export_program(ready, dynamic_shapes={}, ops="quantized_decomposed")
    agree(graph, made, X)
    assert "aten.round.default" not in ops_of(made)
    for conv in (node for node in made.graph.nodes if str(node.target) in ("aten.conv2d.default", "aten.linear.default")):
        assert [str(source.target) for source in conv.args[:2]] == [f"quantized_decomposed.dequantize_per_{of}.default"
                                                                    for of in ("tensor", "channel")]  # fmt: skip


def test_ops_that_nobody_registered(ready: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "quantized_decomposed", object())
    with pytest.raises(qcompiler.ConfigError, match="nothing has registered"):
        qcompiler.export_program(ready, ops="quantized_decomposed")
    with pytest.raises(qcompiler.ConfigError, match="made of aten, quantized_decomposed, xnnpack"):
        qcompiler.export_program(ready, ops="onnx")


@pytest.mark.parametrize("name", ["residual", "squeeze and excite", "rows", "pools", "linear"])
def test_small_networks(name: str) -> None:
    torch.manual_seed(1)
    make, shape = native_nets.NETS[name]
    args = (native_nets.example(shape),)
    made = prepared(shaken(make()), *args)
    agree(qcompiler.convert_to_reference_fx(made), qcompiler.export_program(made, dynamic_shapes={}), *args)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "transformer", "yolo", "u-net")])
def test_families_at_other_sizes(name: str) -> None:
    torch.manual_seed(1)
    make, args, others = onnx_nets.NETS[name]
    made = prepared(shaken(make()), *args)
    graph, program = qcompiler.convert_to_reference_fx(made), qcompiler.export_program(made)
    for given in (args, others):
        agree(graph, program, *given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "googlenet"])
def test_zoo(name: str) -> None:
    (x,) = zoo.inputs(2, 64, 1)
    made = prepared(zoo.few(name), x)
    graph, program = qcompiler.convert_to_reference_fx(made), qcompiler.export_program(made, dynamic_shapes={"x": {0: "batch"}})
    for given in (x, zoo.inputs(1, 64, 1)[0]):
        agree(graph, program, given)


def test_arguments_and_results_in_containers() -> None:
    args = ({"image": randn(2, 3, 9, 9), "weight": randn(2)},)
    made = prepared(Decides(), *args)
    program = qcompiler.export_program(made, dynamic_shapes={"inputs.image": {0: "n"}, "inputs.weight": {0: "n"}})
    agree(qcompiler.convert_to_reference_fx(made), program, {"image": randn(5, 3, 9, 9), "weight": randn(5)})
    assert isinstance(program.module()(*args), OrderedDict)


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, flag: bool = True, bias: Tensor | None = None, scale: float = 0.5, times: int = 2
    ) -> Tensor:
        y: Tensor = self.conv(x) * scale
        for _ in range(times):
            y = y + 1.0
        y = y if mask is None else y * mask
        y = y if bias is None else y + bias
        return y if flag else -y


def test_arguments_that_are_left_out() -> None:
    """A call leaves out what the example left out; what stands behind that is given by name."""
    model, bias = Optional().eval(), randn(4, 1, 1)
    made = qcompiler.prepare_fx(model, None, (X,), example_kwargs={"bias": bias}, backend="reference")
    made(X, bias=bias)
    program = qcompiler.export_program(made, dynamic_shapes={})
    with torch.no_grad():
        assert torch.equal(program.module()(X, bias=bias), qcompiler.convert_to_reference_fx(made)(X, bias=bias))


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 0.3])
def test_rounding_at_run_time_has_the_bits_of_the_reference(spread: float, shift: float) -> None:
    from qcompiler.export.torch_export.arithmetic import dynamic_quantize_dequantize

    x = (randn(5, 7) + shift) * spread
    node = fx.Graph().placeholder("x")
    for ends in ((0, 255), (0, 127), (-128, 127)):
        assert torch.equal(dynamic_quantize_dequantize(node, x, *ends), reference.dynamic_quantize_dequantize(x, *ends))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.down(torch.relu(self.up(self.words(ids))))
        return made


@pytest.mark.usefixtures("decomposed")
@pytest.mark.parametrize("kind", ["dynamic", "weights", "4bit", "half"])
def test_modes(kind: str) -> None:
    from qcompiler import quantization as Q

    linear, table = {"dynamic": (Q.default_dynamic_qconfig, None), "half": (Q.float16_dynamic_qconfig, None),
                     "weights": (Q.default_weight_only_qconfig, Q.float_qparams_weight_only_qconfig),
                     "4bit": (None, Q.float_qparams_weight_only_qconfig_4bit)}[kind]  # fmt: skip
    torch.manual_seed(0)
    mapping = qcompiler.QConfigMapping().set_object_type(nn.Linear, linear).set_object_type(nn.Embedding, table)
    ids = onnx_nets.tokens(3, 7)
    made = qcompiler.prepare_fx(Text().eval(), mapping, (ids,), backend="reference")
    graph = qcompiler.convert_to_reference_fx(made, allow_uncalibrated="float")
    agree(graph, qcompiler.export_program(made, dynamic_shapes={}), ids)
    other = qcompiler.export_program(made, dynamic_shapes={}, ops="quantized_decomposed").module()(ids)
    with torch.no_grad():
        assert float(compute_sqnr(graph(ids), other)) > 40  # scales of the moment are chosen in float32 there


def test_recurrent_layers_compute_in_floats() -> None:
    """On the integer weights of the graph; torch.export holds their length fixed, and that is told."""
    torch.manual_seed(1)
    x = randn(2, 3, 6)
    made = prepared(nn.GRU(6, 8, batch_first=True), x)
    graph = qcompiler.convert_to_reference_fx(made)
    with pytest.warns(UserWarning, match="holds dimension 1 of 'input' fixed") as told:
        program = qcompiler.export_program(made)
    assert told[0].filename == __file__
    assert "aten.gru.input" in ops_of(program)
    for given in (x, randn(5, 3, 6)):
        with torch.no_grad():
            for expected, got in zip(graph(given), program.module()(given), strict=True):
                assert float(compute_sqnr(expected, got)) > 35
    with pytest.raises(qcompiler.ConfigError, match=r"dimension 1 of 'input' cannot change: torch\.export"):
        qcompiler.export_program(made, dynamic_shapes={"input": {1: "length"}})


class Branches(nn.Module):
    """Decided by a size when it was traced: another decision is refused, by the program as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * 2 if x.shape[2] > 6 else y


def test_what_was_decided_by_a_size_is_checked() -> None:
    program = qcompiler.export_program(prepared(Branches(), X), dynamic_shapes={"x": {2: "h"}})
    program.module()(randn(2, 3, 20, 8))
    with pytest.raises(Exception, match=">= 7"):
        program.module()(randn(2, 3, 6, 8))


class Decided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if y.sum() > 0:
            y = y * 2
        return y


def test_what_torch_export_cannot_take_is_one_error() -> None:
    with pytest.raises(qcompiler.UnsupportedOpError, match=r"torch\.export cannot take %") as caught:
        qcompiler.export_program(prepared(Decided(), X), dynamic_shapes={})
    assert f"{Path(__file__).name}:{Decided.forward.__code__.co_firstlineno + 2}" in str(caught.value)


class Counts(nn.Module):
    """Keeps a sum and a number between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.seen[:, None, None]
        self.seen = self.seen + y.detach().mean((0, 2, 3))
        return y


def test_what_is_kept_between_calls_is_kept_by_the_program() -> None:
    torch.manual_seed(0)
    made = prepared(Counts(), X)
    graph = qcompiler.convert_to_reference_fx(made)
    program = qcompiler.export_program(made, dynamic_shapes={}).module()
    with torch.no_grad():
        assert [torch.equal(graph(X), program(X)) for _ in range(3)] == [True] * 3


def test_what_it_takes(ready: fx.GraphModule, graph: fx.GraphModule) -> None:
    agree(graph, qcompiler.export_program(graph, dynamic_shapes={}), X)
    for backend in ("torch", "onnx"):
        got = qcompiler.export_program(prepared(Net(), X, backend=backend), dynamic_shapes={}).module()(X)
        with torch.no_grad():
            assert float(compute_sqnr(Net()(X)["logits"], got["logits"])) > 30, backend
    with pytest.raises(qcompiler.ConfigError, match="prepare_fx"):
        qcompiler.export_program(Net())
    forms = qcompiler.prepare_fx(Net().eval(), None, (), example_kwargs=[{"x": X}, ((X[:1],), {})], backend="reference")
    with pytest.raises(qcompiler.ConfigError, match="call_forms"):
        qcompiler.export_program(forms)
    with pytest.raises(qcompiler.CalibrationError):
        qcompiler.export_program(qcompiler.prepare_fx(Net().eval(), None, (X,), backend="reference"))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()\n"
    )
    torch.save(X, tmp_path / "data.pt")
    command = ["export-program", f"{tmp_path / 'model.py'}:build", "--calibrate", str(tmp_path / "data.pt"), "--fixed", "--out"]
    made = CliRunner().invoke(app, [*command, str(tmp_path / "net.pt2")])
    assert made.exit_code == 0, made.output
    assert torch.export.load(tmp_path / "net.pt2").module()(X).shape == (2, 8, 6, 6)
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "net.bin")])
    assert refused.exit_code == 1 and "net.pt2" in refused.output


def test_models_that_are_programs_already() -> None:
    """torch.compile's is taken; of those that no longer say what is a layer, the module that they were made of is asked for."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    exported = torch.export.export(model, (X,))
    made = qcompiler.quantize(torch.compile(model), [X], progress=False)  # type: ignore[arg-type]
    assert "0.weight" in made.state_dict()
    for given in (exported, exported.module(), torch.jit.trace(model, X)):
        for call in (lambda given: qcompiler.quantize(given, [X]), lambda given: qcompiler.prepare_fx(given, None, (X,))):
            with pytest.raises(qcompiler.ConfigError, match="give the Python module that it was made of"):
                call(given)


class Steps(nn.Module):
    """torch.export unrolls a recurrent layer: it holds the number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.recurrent = nn.Linear(6, 6), nn.GRU(6, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.recurrent(self.before(x))[0]
        return made


@pytest.mark.parametrize("steps", [1, 5])
def test_what_torch_export_holds_is_the_examples_size(steps: int) -> None:
    """It takes no size of 1 as one that may change, so such an example is exported at another size, where that is not held."""
    x = randn(3, steps, 6)
    made = qcompiler.prepare_fx(Steps().eval(), None, (x,), backend="reference")
    made(x)
    with pytest.warns(UserWarning, match="holds dimension 1 of 'x' fixed"):
        program = qcompiler.export_program(made)
    graph = qcompiler.convert_to_reference_fx(made)
    with torch.no_grad():
        for given in (x, randn(7, steps, 6)):
            assert torch.allclose(program.module()(given), graph(given), atol=0.02)  # each step rounds in the graph alone


class Unfolded(nn.Module):
    """Patches, as MobileViT takes them: torch.export guards against the one batch in which a reshape of theirs would be another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        b, c, h, w = y.shape
        rows, columns = h // 2, w // 2
        y = y.reshape(b * c * rows, 2, columns, 2).transpose(1, 2).reshape(b, c, rows * columns, 4).transpose(1, 3)
        return self.last(y.reshape(b * 4, rows * columns, c))  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_program_takes_its_example(batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 16, 16)
    prepared = qcompiler.prepare_fx(Unfolded().eval(), None, (x,), backend="reference")
    qcompiler.calibrate(prepared, [x], progress=False)
    graph = qcompiler.convert_to_reference_fx(prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batch that torch.export holds
        program = qcompiler.export_program(prepared).module()
    for given in (x, torch.randn(batch, 3, 24, 16)):
        assert torch.equal(program(given), graph(given))
