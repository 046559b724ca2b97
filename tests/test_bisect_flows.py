"""bisect of every pipeline: what a pass spoils is that pass's, whichever flow it runs in; and a pipeline as it stands spoils nothing."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import ConfigError, calibrate, prepare_fx, prepare_qat_fx
from qcompiler.backends import backend_of
from qcompiler.backends.native.lower import LowerNative
from qcompiler.backends.torch.description import get_onednn_backend_config
from qcompiler.backends.torch.passes import LOWERING
from qcompiler.config.custom_config import ConvertCustomConfig, PrepareCustomConfig
from qcompiler.config.qconfig import default_dynamic_qconfig
from qcompiler.config.qconfig_mapping import QConfigMapping
from qcompiler.debug import bisect
from qcompiler.ir.attributes import attribute, set_attribute
from qcompiler.passes import PIPELINES
from tests import planted
from tests.flow import randn, randomized
from tests.test_bisect import Then

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
DATA = [randn(8, 3, 8, 8, seed=1)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.second, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.gain = planted.Gain()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = torch.relu(self.second(x) + x)
        result: Tensor = self.gain(self.fc(x.mean((2, 3))).relu())
        return result


CUSTOM = {
    "prepare_custom_config": PrepareCustomConfig().set_float_to_observed_mapping(planted.Gain, planted.ObservedGain),
    "convert_custom_config": ConvertCustomConfig().set_observed_to_quantized_mapping(planted.ObservedGain, planted.QuantizedGain),
}
# Flow -> the settings that make it, and the pipeline that they mean.
FLOWS: dict[str, tuple[dict[str, Any], str]] = {
    "static": ({}, "static"),
    "training": ({"training": True}, "training"),
    "custom": (CUSTOM, "custom"),
    "custom training": ({**CUSTOM, "training": True}, "custom training"),
    "reference": ({"reference": True}, "static"),
    "reference of a trained model": ({"reference": True, "training": True}, "training"),
    "dynamic": ({"qconfig_mapping": QConfigMapping().set_global(default_dynamic_qconfig)}, "static"),
    "native": ({"backend": "native"}, "static"),
    "native of a trained model": ({"backend": "native", "training": True}, "training"),
    "backend_config": ({"backend_config": get_onednn_backend_config(), "engine": "onednn"}, "static"),
}
PLACES = ("canonicalize", "fuse", "annotate", "fuse_sums", "share_qparams", "insert_observers", "insert_fake_quants",
          "observe_custom_modules", "settle_training", "judge_recurrent", "freeze_qparams", "join_qparams",
          "insert_quantize_dequantize")  # fmt: skip
STEPS = {p.name: {step.name: step for step in p.with_lowering(LOWERING).steps} for p in PIPELINES.values()}
CASES = [(flow, place) for flow, (_, pipeline) in FLOWS.items() for place in PLACES if place in STEPS[pipeline]]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


def settings_of(flow: str, net: nn.Module) -> dict[str, Any]:
    net.train("training" in flow or "trained" in flow)
    return FLOWS[flow][0]


@pytest.mark.filterwarnings("ignore:an input of .* has codes above 127:UserWarning")  # without VNNI: it has the bits of CPUs with it
@pytest.mark.usefixtures("eight_bits")
@pytest.mark.parametrize("flow", FLOWS)
def test_a_pipeline_as_it_stands_spoils_nothing(net: nn.Module, flow: str) -> None:
    found = bisect(net, DATA, **settings_of(flow, net))
    last = "insert_quantize_dequantize" if "reference" in flow else backend_of(FLOWS[flow][0].get("backend", "torch")).passes[-1].name
    assert not found and found.probes[-1].state == last and not found.probes[-1].error, str(found)


def spoil(gm: fx.GraphModule) -> None:
    set_attribute(gm, "fc.bias", attribute(gm, "fc.bias").detach() + 3, parameter=True)


@pytest.mark.filterwarnings("ignore:an input of .* has codes above 127:UserWarning")
@pytest.mark.usefixtures("eight_bits")  # what is spoiled leaves its range, and so those 7 bits that CPUs without VNNI have
@pytest.mark.parametrize(("flow", "place"), CASES)
def test_a_spoiled_pass_of_each_flow(net: nn.Module, flow: str, place: str) -> None:
    step = STEPS[FLOWS[flow][1]][place]
    found = bisect(net, DATA, replace={place: Then(step, spoil)}, **settings_of(flow, net))
    assert (found.pass_name, found.module_path) == (place, "fc") and not found.error, str(found)


@pytest.mark.parametrize("flow", ["static", "reference"])
def test_a_pass_that_the_flow_does_not_have(net: nn.Module, flow: str) -> None:
    name = "settle_training" if flow == "static" else "lower"
    with pytest.raises(ConfigError, match=f"no pass '{name}' to replace"):
        bisect(net, DATA, replace={name: LOWERING[0]}, **settings_of(flow, net))


@needs_compiler
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("path", "named"), [("conv", "conv"), ("second", ""), ("fc", "fc")])
def test_a_native_layer_that_is_wrong(net: nn.Module, path: str, named: str, training: bool) -> None:
    """The C of one layer has another weight than the graph it was made from: the layer is named, though its region is one call.

    `second` and the sum behind it are one layer, which goes by the line of the sum.
    """

    def spoil(gm: fx.GraphModule) -> None:
        set_attribute(gm, f"{path}.weight", -attribute(gm, f"{path}.weight"))

    found = bisect(net.train(training), DATA, backend="native", training=training, replace={"lower_native": Then(LowerNative(), spoil)})
    assert (found.pass_name, found.module_path) == ("lower_native", named), str(found)
    assert path != "second" or str(found.node).startswith("add"), str(found)


def prepared_net(net: nn.Module, trains: bool, **options: Any) -> fx.GraphModule:
    """Calibrated, or trained for some steps."""
    if not trains:
        prepared = prepare_fx(net.eval(), None, (DATA[0],), **options)
        calibrate(prepared, DATA)
        return prepared
    prepared = prepare_qat_fx(net.train(), None, (DATA[0],), **options)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(DATA[0]).square().mean().backward()
        optimizer.step()
    return prepared


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("trains", [False, True])
def test_a_model_that_the_user_calibrated_or_trained(net: nn.Module, trains: bool, backend: str) -> None:
    """Bisected as it is, its ranges and weights those that it has; nothing of it is changed."""
    prepared = prepared_net(net, trains, backend=backend)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    training = prepared.training
    found = bisect(prepared, DATA)
    assert not found and not found.probes[-1].error and found.probes[-1].state == backend_of(backend).passes[-1].name, str(found)
    assert found.after > 25
    for place in ("settle_training", "freeze_qparams", "insert_quantize_dequantize"):
        if place in STEPS["training" if trains else "static"]:
            spoilt = bisect(prepared, DATA, replace={place: Then(STEPS["training" if trains else "static"][place], spoil)})
            assert (spoilt.pass_name, spoilt.module_path) == (place, "fc") and not spoilt.error, str(spoilt)
    after = prepared.state_dict()
    assert prepared.training == training and list(after) == list(before)
    assert all(
        torch.equal(
            after[name],
            value,
        )
        or (after[name].isnan() & value.isnan()).all()
        for name, value in before.items()
    )


def test_a_prepared_model_has_its_settings(net: nn.Module) -> None:
    prepared = prepared_net(net, False)
    with pytest.raises(ConfigError, match="prepared already"):
        bisect(prepared, DATA, engine="onednn")
    with pytest.raises(ConfigError, match="no pass 'fuse' to replace"):
        bisect(prepared, DATA, replace={"fuse": LOWERING[0]})
