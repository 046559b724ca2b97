"""prepare_qat, training, convert: the tutorial's script, loss, parity with the fake-quantized model, shared placeholders."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler.nn.intrinsic.qat as nniqat
import qcompiler.nn.intrinsic.quantized as nniq
import qcompiler.nn.quantized as nnq
from qcompiler import remarks
from qcompiler.errors import ConfigError
from qcompiler.quantization import (
    convert,
    default_qat_qconfig,
    disable_observer,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_qconfig,
    prepare_qat,
    quantize_qat,
)
from tests.hand_prepared import SmallMobileNetV2, SmallResNet, images, seeded, sqnr


def train(model: nn.Module, steps: int = 6) -> list[float]:
    torch.manual_seed(0)  # of dropout
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, x = [], images(8)
    target = (x.mean((1, 2, 3)) > 0).long()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("is_qat", [False, True])
def test_the_tutorials_script(is_qat: bool, tmp_path: Any) -> None:
    """Also in its old form, where fuse_model() of a model in train mode was for training."""
    qat_model: Any = seeded(SmallMobileNetV2()).train()
    qat_model.fuse_model(is_qat=is_qat)
    qat_model.qconfig = get_default_qat_qconfig("fbgemm")
    prepare_qat(qat_model, inplace=True)
    assert type(qat_model.features[0][0]) is nniqat.ConvBnReLU2d
    losses = train(qat_model)
    assert losses[-1] < losses[0]
    qat_model.apply(disable_observer)
    qat_model.apply(nniqat.freeze_bn_stats)
    train(qat_model, 1)
    quantized = convert(qat_model.eval(), inplace=False)
    quantized.eval()
    x = images(4, seed=7)
    assert sqnr(qat_model(x), quantized(x)) > 25
    assert type(quantized.features[0][0]) is nniq.ConvReLU2d and type(quantized.classifier[1]) is nnq.Linear
    torch.jit.save(torch.jit.script(copy.deepcopy(quantized)), str(tmp_path / "qat.pt"))
    assert torch.equal(torch.jit.load(str(tmp_path / "qat.pt"))(x), quantized(x))


def test_each_batch_is_observed_once_and_module_types() -> None:
    model: Any = fuse_modules_qat(seeded(SmallResNet()).train(), SmallResNet.chains())
    model.qconfig = default_qat_qconfig
    prepared: Any = prepare_qat(model)
    assert type(prepared.layer1[0].conv2) is nniqat.ConvBn2d and type(model.conv1).__name__ == "ConvBnReLU2d"
    calls: list[int] = []
    prepared.conv1.activation_post_process.register_forward_hook(lambda *_: calls.append(1))
    train(prepared, 2)
    assert calls == [1, 1]
    made: Any = convert(prepared.eval())
    assert type(made.layer1[0].conv2) is nnq.Conv2d and type(made.bn1) is nn.Identity
    assert sqnr(prepared(images()), made(images())) > 25


def test_a_relu_that_is_called_again_is_missed_in_training_too() -> None:
    from tests.test_fuse_modules import CalledTwice

    model = fuse_modules_qat(nn.Sequential(CalledTwice()).train(), ["0.conv", "0.bn", "0.relu"])
    model.qconfig = default_qat_qconfig
    with pytest.warns(UserWarning, match="QuantStub"):
        prepared = prepare_qat(model)
    with pytest.raises(ConfigError, match=r"0\.relu was fused into 0\.conv but is called again"):
        prepared(torch.randn(2, 3, 4, 4))


def test_transposed_convolution_and_batch_norm() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)).train()
    assert type(fuse_modules(model, ["0", "1"])[0]).__name__ == "ConvTransposeBn2d"


def test_quantize_qat_in_one_call() -> None:
    model = fuse_modules_qat(seeded(SmallResNet()).train(), SmallResNet.chains())
    model.qconfig = default_qat_qconfig
    made = quantize_qat(model, lambda m, steps: train(m, steps), [3])
    assert type(made.conv1) is nniq.ConvReLU2d and not made.training and model.training
    assert torch.isfinite(made(images())).all()


def test_bits_are_chosen_before_training() -> None:
    model = fuse_modules_qat(seeded(SmallResNet()).train(), SmallResNet.chains())
    model.qconfig = default_qat_qconfig
    narrow, wide = prepare_qat(model, isa="avx2"), prepare_qat(model, isa="avx512_vnni")
    assert narrow.conv1.activation_post_process.quant_max == 127 and wide.conv1.activation_post_process.quant_max == 255
    train(wide, 1)
    with pytest.raises(ConfigError, match="trained with 8-bit activations"):
        convert(wide.eval(), isa="avx2")
    train(narrow, 1)
    made = [convert(m.eval(), isa=isa) for m, isa in ((wide, "avx512_vnni"), (narrow, "avx2"))]
    assert [[r.code for r in remarks(m)].count("not-cut") for m in made] == [0, 1]  # int8 modules saturate at 255, training at 127
