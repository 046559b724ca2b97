"""Published scripts of torch.quantization, with nothing but the imports changed, and the faulty one with what it is told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.errors import CalibrationError, ConfigError, InputError
from qcompiler.vision import import_torchvision
from tests.cpu import BIT
from tests.hand_prepared import SmallMobileNetV2, images, seeded, sqnr


def evaluate(model: nn.Module, batches: int = 3) -> None:
    model.eval()
    with torch.no_grad():
        for seed in range(batches):
            model(images(4, seed=seed))


@pytest.mark.parametrize("backend", [None, "fbgemm"])
def test_the_static_quantization_tutorial(backend: str | None, tmp_path: Any) -> None:
    """Both of its settings: per tensor with min-max, then the back end's default; saved as TorchScript."""
    import qcompiler.quantization  # the tutorial's `import torch.quantization`

    float_model = seeded(SmallMobileNetV2())
    expected = float_model(images())
    my_model: Any = copy.deepcopy(float_model)
    my_model.eval()
    my_model.fuse_model()
    my_model.qconfig = qcompiler.quantization.get_default_qconfig(backend) if backend else qcompiler.quantization.default_qconfig
    qcompiler.quantization.prepare(my_model, inplace=True)
    evaluate(my_model)
    qcompiler.quantization.convert(my_model, inplace=True)
    assert sqnr(expected, my_model(images())) > 20
    torch.jit.save(torch.jit.script(my_model), str(tmp_path / "quantized_scripted.pth"))
    assert torch.equal(torch.jit.load(str(tmp_path / "quantized_scripted.pth"))(images()), my_model(images()))


def test_the_same_model_through_the_graph_flow() -> None:
    """Stubs vanish, FloatFunctional is an op, fused containers are gone through: before and after fuse_model."""
    for fuse in (False, True):
        model: Any = seeded(SmallMobileNetV2())
        expected = model(images())
        if fuse:
            model.fuse_model()
        prepared = qcompiler.prepare_fx(model, None, (images(),))
        qcompiler.calibrate(prepared, [images(4)])
        made = qcompiler.convert_fx(prepared)
        assert qcompiler.explain(made).int8_mac_share == 1 and sqnr(expected, made(images())) > 20


def faulty() -> nn.Module:
    """ResNet18 without stubs; its blocks call one ReLU twice, and the script fuses it away."""
    from qcompiler.quantization import fuse_modules, get_default_qconfig

    torch.manual_seed(0)
    model = import_torchvision().models.resnet18(weights=None).eval()
    chains = [["conv1", "bn1", "relu"], ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu"]]
    fused = fuse_modules(model, chains)
    fused.qconfig = get_default_qconfig("fbgemm")
    return fused


def test_the_faulty_resnet_script_is_told_each_fault() -> None:
    from qcompiler.quantization import convert, fuse_modules, prepare

    with pytest.warns(UserWarning, match="ResNet has no QuantStub"):
        prepared = prepare(faulty())
    with pytest.raises(CalibrationError) as caught:
        convert(prepared)
    assert "call the model that prepare returned with calibration data" in str(caught.value) and "no QuantStub" in str(caught.value)
    with pytest.raises(ConfigError) as again:
        prepared(images(1, 64))
    assert "layer1.0.relu was fused into layer1.0.conv1 but is called again on another value" in str(again.value)
    with pytest.warns(UserWarning, match="QuantStub"):
        bare = fuse_modules(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), ["0", "1"])
        bare.qconfig = faulty().qconfig
        prepared = prepare(bare)
    prepared(images())
    with pytest.raises(InputError, match="QuantStub") as floats:
        convert(prepared)(images())
    assert floats.value.where.module_path == "0"


def test_the_faulty_script_needs_no_repair_in_the_graph_flow() -> None:
    torch.manual_seed(0)
    model = import_torchvision().models.resnet18(weights=None).eval()
    prepared = qcompiler.prepare_fx(model, None, (images(1, 64),))
    qcompiler.calibrate(prepared, [images(2, 64)])
    assert sqnr(model(images(1, 64)), qcompiler.convert_fx(prepared)(images(1, 64))) > 25


@pytest.mark.parametrize(("name", "least"), [("resnet18", 20), ("mobilenet_v3_large", 8), ("shufflenet_v2_x0_5", 20)])
def test_torchvisions_quantizable_models(name: str, least: float) -> None:
    """They hold torch.ao's stubs and fuse by torch.ao's fuse_modules. Untrained, the deep one magnifies every rounding."""
    model: Any = seeded(getattr(import_torchvision().models.quantization, name)(weights=None, quantize=False))
    x = images(2, 64)
    expected = model(x)
    model.fuse_model()
    model.qconfig = qcompiler.get_default_qconfig()
    prepared = qcompiler.quantization.prepare(model)
    prepared(x)
    assert sqnr(expected, qcompiler.quantization.convert(prepared)(x)) > least - BIT
    graph = qcompiler.prepare_fx(model, None, (x,))
    qcompiler.calibrate(graph, [x])
    assert sqnr(expected, qcompiler.convert_fx(graph)(x)) > least
