"""export_program(ops="xnnpack"): the patterns that ExecuTorch's partitioner for XNNPACK takes, with the values of the reference graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the ops
from torch import fx, nn
from torch.export import ExportedProgram

import qcompiler
from qcompiler.debug import compute_sqnr
from qcompiler.quantization import QConfig, default_dynamic_qconfig, default_observer, per_channel_weight_observer_range_neg_127_to_127
from tests import zoo
from tests.onnx_nets import randn
from tests.test_export_program import Net, agree, ops_of, prepared

X = randn(2, 3, 8, 8)
PRODUCTS = ("aten.conv2d.default", "aten.conv2d.padding", "aten.linear.default")
FUSED = ("aten.relu.default", "aten.hardtanh.default")
QUANTIZE, DEQUANTIZE = (f"quantized_decomposed.{name}_per_tensor.default" for name in ("quantize", "dequantize"))


def called(node: Any) -> str:
    return str(node.target) if isinstance(node, fx.Node) else ""


def check(program: ExportedProgram) -> int:
    """Signed codes alone; products stand between reading codes and rounding to them, with one op at most that is fused. Their number."""
    conversions = [node for node in program.graph.nodes if called(node) in (QUANTIZE, DEQUANTIZE)]
    assert conversions and all(node.args[3:] == (-128, 127, torch.int8) for node in conversions)
    products = [node for node in program.graph.nodes if called(node) in PRODUCTS]
    for node in products:
        assert called(node.args[0]) == DEQUANTIZE and called(node.args[1]) == "quantized_decomposed.dequantize_per_channel.default"
        (reader,) = node.users
        (reader,) = reader.users if called(reader) in FUSED else (reader,)
        assert called(reader) == QUANTIZE
    return len(products)


def test_products_and_clamps_have_the_patterns() -> None:
    """A clamp that is the range is none; one that is not is an op in front of the rounding. All values are the reference's."""
    made = prepared(Net(), X, backend="xnnpack")
    with pytest.warns(qcompiler.errors.QCompilerWarning, match="a size was larger than at its first call") as told:
        program = qcompiler.export_program(made, ops="xnnpack")
    assert told[0].filename == __file__ and check(program) == 4
    assert sum(called(node) in FUSED for node in program.graph.nodes) == 1
    for shape in ((2, 3, 8, 8), (5, 3, 12, 9)):
        agree(qcompiler.convert_to_reference_fx(made), program, randn(*shape))


def test_what_was_prepared_for_others_is_decided_anew() -> None:
    """As far as it can be: a linear that hands out floats has no range for its result, and that is told."""
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1))
    for backend in ("reference", "torch", "native"):
        assert check(qcompiler.export_program(prepared(convolutions, X, backend=backend), ops="xnnpack", dynamic_shapes={})) == 2
        with pytest.raises(qcompiler.ConfigError, match=r'hand out floats.*\n(.*\n)*.*backend="xnnpack"'):
            qcompiler.export_program(prepared(Net(), X, backend=backend), ops="xnnpack")


@pytest.mark.parametrize("isa", ["avx2", "avx512_vnni"])
def test_a_converted_module_keeps_its_integers(isa: str) -> None:
    """Codes of 7 bits end where they did, and floats that its linear handed out stay floats."""
    small = qcompiler.quantize(Net().eval(), [X], progress=False, isa=isa)
    plain = qcompiler.export_program(small, dynamic_shapes={}).module()
    signed = qcompiler.export_program(small, dynamic_shapes={}, ops="xnnpack").module()
    with torch.no_grad():
        for scale in (1, 4):
            for name in ("logits", "parts"):
                one, other = (made(X * scale)[name] for made in (plain, signed))
                assert float(compute_sqnr(*(x if name == "logits" else x[0] for x in (one, other)))) > 100


def test_weights_off_zero_are_refused() -> None:
    """XNNPACK reads no zero points of weights, and would say nothing."""
    affine = per_channel_weight_observer_range_neg_127_to_127.with_args(qscheme=torch.per_channel_affine)
    mapping = qcompiler.QConfigMapping().set_global(QConfig(default_observer, affine))
    made = qcompiler.prepare_fx(Net().eval(), mapping, (X,), backend="xnnpack")
    made(X)
    with pytest.raises(qcompiler.UnsupportedOpError, match=r"weights around zero alone, not with first\.weight"):
        qcompiler.export_program(made, ops="xnnpack")


def test_dynamic_linears() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval(), randn(5, 16)
    made = qcompiler.prepare_fx(model, qcompiler.QConfigMapping().set_global(default_dynamic_qconfig), (x,), backend="xnnpack")
    program = qcompiler.export_program(made, ops="xnnpack", dynamic_shapes={})
    chosen = [node for node in program.graph.nodes if called(node) == "quantized_decomposed.choose_qparams.tensor"]
    assert [node.args[1:3] for node in chosen] == [(-128, 127)] * 2 and {node.args[4] for node in chosen} == {torch.int8}
    with torch.no_grad():
        assert float(compute_sqnr(model(x), program.module()(x))) > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet"])
def test_zoo(name: str) -> None:
    (x,) = zoo.inputs(2, 64, 1)
    made = prepared(zoo.few(name), x, backend="xnnpack")
    program = qcompiler.export_program(made, ops="xnnpack", dynamic_shapes={})
    assert check(program) > 10 and not any("uint8" in op for op in ops_of(program))
    agree(qcompiler.convert_to_reference_fx(made), program, x)


def test_the_back_end_builds_nothing() -> None:
    with pytest.raises(qcompiler.ConfigError, match="xnnpack"):
        qcompiler.quantize(Net().eval(), [X], progress=False, backend="xnnpack")
    with pytest.raises(qcompiler.ConfigError, match="no engines"):
        qcompiler.prepare_fx(Net().eval(), None, (X,), backend="xnnpack", engine="x86")
