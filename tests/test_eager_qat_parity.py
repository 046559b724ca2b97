"""The eager flow's promise: each int8 module computes what its trained module simulated, on equal inputs, at most one step apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler.nn.quantized as nnq
from qcompiler.quantization import convert, disable_observer, fuse_modules_qat, get_default_qat_qconfig, prepare_qat
from tests.hand_prepared import OURS, ConvBNReLU, InvertedResidual, SmallMobileNetV2, SmallResNet, images, seeded

ENGINES = [e for e in ("x86", "fbgemm", "onednn", "qnnpack") if e in torch.backends.quantized.supported_engines]


@contextmanager
def engine_set(engine: str) -> Iterator[None]:
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


class Wide(SmallMobileNetV2):
    """With a depthwise convolution of more than a hundred groups, which x86 packs with fbgemm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(ConvBNReLU(3, 32, stride=2), InvertedResidual(32, 32, 1, 4, OURS), ConvBNReLU(32, 64, kernel=1))


def mobilenet(cls: type[SmallMobileNetV2] = SmallMobileNetV2) -> nn.Module:
    model: Any = seeded(cls()).train()
    model.fuse_model(is_qat=True)
    return model  # type: ignore[no-any-return]


def resnet() -> nn.Module:
    return fuse_modules_qat(seeded(SmallResNet()).train(), SmallResNet.chains())


def trained(model: nn.Module, engine: str, steps: int = 3, rate: float = 0.01) -> nn.Module:
    """In eval mode, ranges kept. The last thing that happened to the weights is a step of the optimizer."""
    model.qconfig = get_default_qat_qconfig(engine)
    prepared = prepare_qat(model)
    optimizer = torch.optim.SGD(prepared.parameters(), rate)
    for step in range(steps):
        if step == steps - 1:
            prepared.apply(disable_observer)
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared(images(8, seed=step)), torch.arange(8)).backward()
        optimizer.step()
    return prepared.eval()


def worst_steps(prepared: nn.Module, converted: nn.Module, x: Tensor) -> dict[str, float]:
    """The largest distance of each int8 result, in its own steps, from what the trained module makes of the same inputs."""
    found: dict[str, float] = {}
    twins = dict(prepared.named_modules())

    def compare(name: str, run: Callable[..., Tensor], inputs: tuple[Any, ...], result: Tensor) -> None:
        want = run(*[v.dequantize() if isinstance(v, Tensor) else v for v in inputs])
        steps = torch.round(want.double() / result.q_scale()) + result.q_zero_point()
        apart = (steps.clamp(0, 255) - result.int_repr()).abs().max()
        found[name] = max(found.get(name, 0.0), float(apart))

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, result: compare(name, twins[name], inputs, result)

    for name, module in list(converted.named_modules()):
        if isinstance(module, nnq.QFunctional):
            for method in ("add", "add_relu"):
                setattr(module, method, _watched(getattr(module, method), getattr(twins[name], method), f"{name}.{method}", compare))
        elif type(module).__module__.startswith("qcompiler.nn.") and not isinstance(module, nnq.DeQuantize):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        converted(x)
    return found


def _watched(run: Callable[..., Tensor], twin: Callable[..., Tensor], name: str, compare: Any) -> Callable[..., Tensor]:
    def call(*inputs: Any) -> Tensor:
        result = run(*inputs)
        compare(name, twin, inputs, result)
        return result

    return call


MODELS: dict[str, Callable[[], nn.Module]] = {"mobilenet": mobilenet, "wide": lambda: mobilenet(Wide), "resnet": resnet}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_each_int8_module_is_at_most_a_step_from_its_trained_one(name: str, engine: str) -> None:
    with engine_set(engine):
        prepared = trained(MODELS[name](), engine)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no scale is enlarged behind the training's back
            converted = convert(prepared)
        found = worst_steps(prepared, converted, images(4, seed=9))
    assert len(found) >= 8 and all(steps <= 1 for steps in found.values()), found


@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_depthwise_weights_train_with_scales_that_are_safe(rate: float) -> None:
    """fbgemm adds two taps in 16 bits. Weights of one sign, and a last step that moves them far."""
    if "fbgemm" not in ENGINES or not torch.cpu._is_vnni_supported():
        pytest.skip("elsewhere activations have 7 bits")
    with engine_set("fbgemm"):
        model = mobilenet()
        with torch.no_grad():
            model.features[1].conv[0][0][0].weight.abs_()
        prepared = trained(model, "fbgemm", rate=rate)
        depthwise: Any = prepared.features[1].conv[0][0]
        assert depthwise.weight_fake_quant.least_scale is not None
        assert prepared.features[0][0].weight_fake_quant.least_scale is None
        before = depthwise.weight_fake_quant.scale.clone()
        converted = convert(prepared)
        assert torch.equal(before, depthwise.weight_fake_quant.scale)  # convert changes nothing of what it is given
        assert max(worst_steps(prepared, converted, images(4, seed=9)).values()) <= 1
    taps = converted.features[1].conv[0][0].weight().int_repr().to(torch.int32).flatten(1)
    assert int(taps[:, :8].reshape(-1, 4, 2).clamp(min=0).sum(2).max()) <= 128
