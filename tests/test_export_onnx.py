"""export_onnx: what stands in the file, under which names, and what is told where a file cannot be written."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

import qcompiler
from qcompiler.backends import backend_of
from qcompiler.cli import app
from qcompiler.debug import compute_sqnr
from qcompiler.export.onnx_qdq.target import AnyPair
from qcompiler.export.ranges import code_limits
from qcompiler.ir.types import QParams
from tests.fuzz_graphs import sqnrs
from tests.graph_grammar import network
from tests.onnx_nets import Decides, UNet, randn
from tests.onnx_runs import ir, ops_of, optimized_ops, prepared, run, run_in_openvino, session, tensors


class Net(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act or nn.ReLU6()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.act(self.norm(self.first(x))).mean((2, 3)))
        return made


X = randn(2, 3, 8, 8)


def exported(model: nn.Module, path: Path, *args: Any, **options: Any) -> Any:
    """The file as onnx_ir reads it."""
    qcompiler.export_onnx(prepared(model.eval(), args or (X,)), path, **options)
    return ir.load(path)


def constants(model: Any) -> dict[str, Any]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def test_what_the_file_holds(tmp_path: Path) -> None:
    """int8 weights with a scale a channel, int32 biases on the scale of the products, uint8 values; the clamp is the range."""
    model = exported(Net(), tmp_path / "net.onnx")
    held = constants(model)
    assert held["first.weight"].dtype == "int8" and held["first.weight"].shape == (8, 3, 3, 3)
    assert held["first.weight_scale"].shape == (8,) and not held["first.weight_zero_point"].any()
    assert held["first.bias_int32"].dtype == "int32"
    types = {value.dtype for node in model.graph if node.op_type == "QuantizeLinear" for value in node.outputs[:1] if value.dtype}
    assert types <= {ir.DataType.UINT8}
    kinds = ops_of(tmp_path / "net.onnx")
    assert not {"Relu", "Clip", "BatchNormalization"} & kinds.keys()
    conv = next(node for node in model.graph if node.op_type == "Conv")
    assert conv.name.startswith("first/") and conv.metadata_props["module"] == "first"
    scale = held[next(node for node in model.graph if node.op_type == "QuantizeLinear").inputs[1].name]
    bias = next(node for node in model.graph if node.op_type == "DequantizeLinear" and node.inputs[0].name == "first.bias_int32")
    assert held[bias.inputs[1].name] == pytest.approx(held["first.weight_scale"] * scale)


def test_names_and_sizes(tmp_path: Path) -> None:
    model = exported(Decides(), tmp_path / "net.onnx", {"image": randn(2, 3, 9, 9), "weight": randn(2)})
    assert [value.name for value in model.graph.inputs] == ["inputs.image", "inputs.weight"]
    assert [str(size) for size in model.graph.inputs[0].shape] == ["batch", "3", "height", "width"]
    assert [value.name for value in model.graph.outputs] == ["logits", "aux.0", "aux.1", "seen"]
    assert [str(size) for size in model.graph.outputs[0].shape] == ["batch", "4", "height - 2", "width - 2"]
    assert json.loads(model.metadata_props["qcompiler.results"]) == ["logits", "aux.0", "aux.1", "seen"]


def test_sizes_of_the_callers(tmp_path: Path) -> None:
    shape = lambda model: [size if isinstance(size, int) else str(size) for size in model.graph.inputs[0].shape]  # noqa: E731
    assert shape(exported(Net(), tmp_path / "a.onnx", dynamic_shapes={})) == [2, 3, 8, 8]
    assert shape(exported(Net(), tmp_path / "b.onnx", dynamic_shapes={"x": {0: "n"}})) == ["n", 3, 8, 8]
    assert shape(exported(Net(), tmp_path / "c.onnx", dynamic_shapes={"x": (None, None, "h", "w")})) == [2, 3, "h", "w"]
    (got,) = run(session(tmp_path / "b.onnx"), randn(5, 3, 8, 8))
    assert got.shape == (5, 5)
    with pytest.raises(qcompiler.ConfigError, match=r"dimension 1 of 'x' cannot change: %first"):
        exported(Net(), tmp_path / "d.onnx", dynamic_shapes={"x": {1: "channels"}})
    with pytest.raises(qcompiler.ConfigError, match="no such dimension"):
        exported(Net(), tmp_path / "d.onnx", dynamic_shapes={"y": {0: "n"}})


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        exported(Net(), tmp_path / name, dynamic_shapes={})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("opset", [18, 19, 21, 23])
def test_opsets(opset: int, tmp_path: Path) -> None:
    model = exported(UNet(), tmp_path / "net.onnx", randn(1, 3, 16, 16), opset=opset, dynamic_shapes={})
    assert model.opset_imports[""] == opset
    session(tmp_path / "net.onnx")


def test_an_opset_that_is_none(tmp_path: Path) -> None:
    for opset in (17, 99, "18"):
        with pytest.raises(qcompiler.ConfigError, match="opset"):
            exported(Net(), tmp_path / "net.onnx", opset=opset)


class Loud(nn.Module):
    """Weights and inputs for which two products do not fit into 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(16, 16, 1, bias=False), nn.Linear(16, 16)
        with torch.no_grad():
            self.conv.weight.fill_(0.5)
            self.linear.weight.fill_(-0.25)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.linear(self.conv(x).flatten(1))
        return made


def test_no_sum_of_two_products_overflows(tmp_path: Path) -> None:
    """On any CPU: x86 without VNNI adds pairs in 16 bits, in both runtimes."""
    x = torch.ones(4, 16, 1, 1)
    model = exported(Loud(), tmp_path / "net.onnx", x)
    held = constants(model)
    assert max(int(abs(held[name].astype(int)).max()) for name in ("conv.weight", "linear.weight")) <= 64
    for made in (run(session(tmp_path / "net.onnx"), x), run_in_openvino(tmp_path / "net.onnx", x)[0]):
        assert float(compute_sqnr(Loud()(x).detach(), made[0])) > 30


def test_for_newer_cpus_weights_have_all_bits(tmp_path: Path) -> None:
    made = prepared(Loud().eval(), (torch.ones(4, 16, 1, 1),), isa="avx512_vnni")
    qcompiler.export_onnx(made, tmp_path / "net.onnx")
    assert abs(constants(ir.load(tmp_path / "net.onnx"))["conv.weight"].astype(int)).max() >= 127


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scales", [1, 6])
def test_the_limit_of_weights(axis: int, scales: int) -> None:
    """What is safe keeps its scale; else no two weights of a channel and sign are more than 128 steps."""
    weight = torch.randn(6, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[:, 0] *= 0.1
    largest = weight.abs().amax([i for i in range(4) if i != axis])
    scale = (largest if scales > 1 else largest.amax().reshape(1)).double() / 127
    limit = AnyPair(axis)
    found, zero = limit.qparams(weight, scale, torch.zeros(scales, dtype=torch.int64), 127)
    shape = [-1 if i == axis and scales > 1 else 1 for i in range(4)]
    rows = torch.round(weight / found.reshape(shape)).movedim(axis, 0).flatten(1)
    for signed in (rows, -rows):
        assert signed.clamp(min=0).topk(2).values.sum(1).max() <= 128
    assert (found >= scale).all() and not zero.any() and (found <= 2.02 * scale).all()
    again, _ = limit.qparams(weight, found, zero, 127)
    assert torch.equal(again, found)


def test_a_clamp_that_is_no_range_cuts_codes(tmp_path: Path) -> None:
    """A ReLU whose value shares its steps with negative ones (cat): codes are cut behind the rounding, and the convolution stays int8."""

    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.c(torch.cat([F.relu(self.a(x)), self.b(x)], 1))
            return made

    torch.manual_seed(0)
    model = Shares().eval()
    made = prepared(model, (X,))
    qcompiler.export_onnx(made, tmp_path / "net.onnx", dynamic_shapes={})
    ops = optimized_ops(tmp_path / "net.onnx")
    assert ops["QLinearConv"] == 3 and "Relu" not in ops
    (got,), graph = run(session(tmp_path / "net.onnx"), X), qcompiler.convert_to_reference_fx(made)
    with torch.no_grad():
        assert float(compute_sqnr(model(X), got)) > float(compute_sqnr(model(X), graph(X))) - 1


@pytest.mark.parametrize(
    ("bounds", "zero", "limits"),
    [((0.0, None), 0, None), ((0.0, None), 10, (10, 255)), ((0.0, 6.0), 0, (0, 60)), ((0.0, 25.5), 0, None), ((None, 30.0), 3, None),
     ((-1e38, 1e38), 3, None), ((None, None), 3, None), ((-1.0, 1.0), 100, (90, 110))],
)  # fmt: skip
def test_limits_of_codes(bounds: Any, zero: int, limits: Any) -> None:
    assert code_limits(QParams(0.1, zero, 0, 255, torch.uint8), bounds) == limits
    assert code_limits(QParams(0.1, 5, 0, 127, torch.uint8), (None, None)) == (0, 127)


def test_a_bias_beyond_int32(tmp_path: Path) -> None:
    """A channel of tiny weights under a large bias gets a larger scale, which the bias drowns."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight[1] *= 1e-9  # type: ignore[operator]
        model[0].bias[1] = 3.0  # type: ignore[index, operator]
    exported(model, tmp_path / "net.onnx", X)
    (got,) = run(session(tmp_path / "net.onnx"), X)
    with torch.no_grad():
        assert float(compute_sqnr(model(X), got)) > 30


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        a = torch.linalg.svdvals(y)
        b = torch.special.i0(y)
        return a.sum() + b.sum()


def test_one_error_lists_all_that_has_no_form(tmp_path: Path) -> None:
    with pytest.raises(qcompiler.UnsupportedOpError) as caught:
        exported(Strange(), tmp_path / "net.onnx")
    text = str(caught.value)
    assert text.startswith("2 calls have no ONNX form:") and "svdvals" in text and "i0" in text
    line = Strange.forward.__code__.co_firstlineno
    assert f"{Path(__file__).name}:{line + 2}" in text and f"{Path(__file__).name}:{line + 3}" in text
    assert not (tmp_path / "net.onnx").exists()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, factor: float = 2.0, flag: bool = True, mask: Tensor | None = None) -> Tensor:
        made: Tensor = self.conv(x) * factor
        return made if flag else -made


def test_arguments_that_are_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(qcompiler.ConfigError, match="factor is a number"):
        exported(Scaled(), tmp_path / "net.onnx", X, 2.0)
    made = prepared(Scaled().eval(), (X,), concrete_args={"factor": 3.0})
    qcompiler.export_onnx(made, tmp_path / "net.onnx")
    (got,) = run(session(tmp_path / "net.onnx"), X)
    with torch.no_grad():
        assert float(compute_sqnr(made(X), got)) > 30
    assert [value.name for value in ir.load(tmp_path / "net.onnx").graph.inputs] == ["x"]


def test_what_it_takes(tmp_path: Path) -> None:
    path, model = tmp_path / "net.onnx", Net().eval()
    for backend in ("torch", "native", "reference"):
        made = prepared(model, (X,), backend=backend)
        qcompiler.export_onnx(made, path, dynamic_shapes={})
        (got,) = run(session(path), X)
        with torch.no_grad():
            assert float(compute_sqnr(model(X), got)) > 30, backend
    with pytest.raises(qcompiler.ConfigError, match="prepare_fx"):
        qcompiler.export_onnx(model, path)
    forms = qcompiler.prepare_fx(model, None, (), example_kwargs=[{"x": X}, ((X[:1],), {})], backend="onnx")
    with pytest.raises(qcompiler.ConfigError, match="call_forms"):
        qcompiler.export_onnx(forms, path)
    with pytest.raises(qcompiler.CalibrationError):
        qcompiler.export_onnx(qcompiler.prepare_fx(model, None, (X,), backend="onnx"), path)
    with pytest.raises(qcompiler.ArtifactError):
        qcompiler.export_onnx(made, tmp_path / "missing" / "net.onnx", dynamic_shapes={})


def test_a_quantized_graph_is_written_as_it_is(tmp_path: Path) -> None:
    graph = qcompiler.convert_to_reference_fx(prepared(Net().eval(), (X,)))
    qcompiler.export_onnx(graph, tmp_path / "net.onnx", dynamic_shapes={})
    (got,) = run(session(tmp_path / "net.onnx", optimized=False), X)
    with torch.no_grad():
        assert float(compute_sqnr(graph(X), got)) > 60


def test_after_training(tmp_path: Path) -> None:
    """The file has what training settled; where that was 7 bits, codes are cut there."""
    for backend, isa in (("onnx", None), ("torch", "avx2")):
        model = Net().train()
        made = qcompiler.prepare_qat_fx(model, None, (X,), backend=backend, isa=isa)
        optimizer = torch.optim.SGD(made.parameters(), 1e-3)
        for _ in range(3):
            made(X).square().mean().backward()
            optimizer.step()
        qcompiler.export_onnx(made, tmp_path / "net.onnx", dynamic_shapes={})
        (got,) = run(session(tmp_path / "net.onnx"), X)
        made.eval()
        with torch.no_grad():
            assert float(compute_sqnr(made(X), got)) > 30, backend


def test_tensors_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.export.onnx_qdq.export.LARGEST_FILE", 100)
    exported(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)), tmp_path / "net.onnx", X, dynamic_shapes={})
    assert (tmp_path / "net.onnx.data").stat().st_size > 30_000 > (tmp_path / "net.onnx").stat().st_size
    assert run(session(tmp_path / "net.onnx"), X)[0].shape == (2, 64, 4, 4)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("onnx_ir", "qcompiler.export.onnx_qdq.export"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(qcompiler.ConfigError, match=r"onnx-ir") as caught:
        qcompiler.export_onnx(prepared(Net().eval(), (X,)), tmp_path / "net.onnx")
    assert caught.value.hint is not None and "qcompiler[onnx]" in caught.value.hint


def test_the_back_end_builds_nothing() -> None:
    made = prepared(Net().eval(), (X,))
    with pytest.raises(qcompiler.ConfigError, match="onnx builds no modules"):
        qcompiler.convert_fx(made)
    for settings in ({"engine": "x86"}, {"isa": "sse"}):
        with pytest.raises(qcompiler.ConfigError):
            backend_of("onnx").target(settings.get("engine"), settings.get("isa"))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()\n"
    )
    torch.save(X, tmp_path / "data.pt")
    out = tmp_path / "net.onnx"
    command = ["export-onnx", f"{tmp_path / 'model.py'}:build", "--calibrate", str(tmp_path / "data.pt"), "--out", str(out), "--fixed"]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    assert tensors(run(session(out), X))[0].shape == (2, 8, 6, 6)


class Early(nn.Module):
    """What follows the condition runs as it stands, with its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor | None:
        y = self.first(x)
        if y.mean() > 3:
            return None
        result: Tensor = self.last(self.second(y))
        return result


def test_statements_that_run_as_they_stand_have_no_form(tmp_path: Path) -> None:
    made = prepared(Early().eval(), (randn(2, 3, 5),))
    with pytest.raises(qcompiler.UnsupportedOpError, match=r"1 call has no ONNX form:\n  %statement.*test_export_onnx.py:\d+"):
        qcompiler.export_onnx(made, tmp_path / "net.onnx")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("first", [90000000, 90000040])
def test_random_networks(first: int, tmp_path: Path) -> None:
    """Written and run node by node, or refused in words."""
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + 10):
        outcomes[_written(seed, tmp_path / "net.onnx")] += 1
    assert outcomes["written"] >= 3 and set(outcomes) <= {"written", "onnx-form", "no network"}


def _written(seed: int, path: Path) -> str:
    model, inputs = network(seed)
    if model.forms or model.branches:
        return "no network"
    made = qcompiler.prepare_fx(model, None, inputs, backend="onnx")
    qcompiler.calibrate(made, [inputs], progress=False)
    try:
        qcompiler.export_onnx(made, path)
    except qcompiler.UnsupportedOpError as error:
        return str(error.code)
    with torch.no_grad():
        expected = qcompiler.convert_to_reference_fx(made)(*[x.clone() for x in inputs])
    results = [torch.as_tensor(leaf) for leaf in tree_leaves(expected)]
    assert min(sqnrs(results, run(session(path, optimized=False), inputs)), default=99.0) > 20
    return "written"
