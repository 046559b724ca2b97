"""Prepare-, Convert- and FuseCustomConfig: leaves, attributes, custom modules, quantized inputs and outputs; torch.ao's are taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import custom_config as ao

from qcompiler import ConfigError, calibrate, convert_fx, explain, fuse_fx, prepare_fx
from qcompiler.config.custom_config import ConvertCustomConfig, FuseCustomConfig, PrepareCustomConfig, as_config
from qcompiler.debug import compute_sqnr
from qcompiler.nn.quantized import Linear
from qcompiler.observers import MinMaxObserver
from tests.flow import randn


class Gain(nn.Module):
    """A user's float module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class ObservedGain(Gain):
    @classmethod
    def from_float(cls, module: Any) -> ObservedGain:
        observed = cls()
        observed.linear, observed.qconfig = module.linear, module.qconfig
        observed.linear.qconfig = module.qconfig
        observed.linear.activation_post_process = module.qconfig.activation()
        return observed

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.linear.activation_post_process(y)
        return y


class QuantizedGain(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    @classmethod
    def from_observed(cls, module: Any) -> QuantizedGain:
        return cls(Linear.from_float(module.linear))

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_quantized, "it is given quint8 tensors"
        return self.linear(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gain, self.last = nn.Linear(6, 6), Gain(), nn.Linear(6, 4)
        self.labels, self.note = ("a", "b"), lambda: "kept"

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gain(self.first(x).relu()).relu())


def prepared(config: Any, data: Tensor | None = None) -> Any:
    result = prepare_fx(Net().eval(), None, (randn(8, 6),), config)
    calibrate(result, randn(64, 6) if data is None else data)
    return result


def paths(module: Any) -> dict[str, bool]:
    return {row.module_path: row.int8 for row in explain(module).rows}


@pytest.mark.parametrize("config", [
    PrepareCustomConfig().set_non_traceable_module_names(["gain"]),
    PrepareCustomConfig().set_non_traceable_module_classes([Gain]),
    {"non_traceable_module_name": ["gain"]},
    ao.PrepareCustomConfig().set_non_traceable_module_classes([Gain]),
])  # fmt: skip
def test_what_is_not_traceable_stays_one_float_call(config: Any) -> None:
    model = Net().eval()
    module = convert_fx(prepared(config))
    found = paths(module)
    assert found["first"] and found["last"] and not found["gain"]
    assert compute_sqnr(model(randn(9, 6)), module(randn(9, 6))) > 28
    assert isinstance(module.get_submodule("gain"), Gain)


def test_custom_modules_are_observed_and_quantized() -> None:
    config = PrepareCustomConfig().set_float_to_observed_mapping(Gain, ObservedGain)
    ready = prepared(config)
    assert isinstance(ready.get_submodule("gain"), ObservedGain)
    assert type(ready.gain.qconfig.activation()) is MinMaxObserver
    module = convert_fx(ready, convert_custom_config=ConvertCustomConfig().set_observed_to_quantized_mapping(ObservedGain, QuantizedGain))
    x = randn(9, 6)
    assert isinstance(module.get_submodule("gain"), QuantizedGain)
    assert paths(module)["gain"]
    assert compute_sqnr(Net().eval()(x), module(x)) > 28
    with pytest.raises(ConfigError, match="no quantized class is given for ObservedGain"):
        convert_fx(ready)


def test_a_custom_module_whose_qconfig_is_none_stays_float() -> None:
    config = PrepareCustomConfig().set_float_to_observed_mapping(Gain, ObservedGain)
    model = Net().eval()
    model.gain.qconfig = None
    ready = prepare_fx(model, None, (randn(8, 6),), config)
    calibrate(ready, randn(64, 6))
    module = convert_fx(ready)
    assert isinstance(module.get_submodule("gain"), Gain) and not paths(module)["gain"]


def test_inputs_and_outputs_can_be_quantized() -> None:
    config = PrepareCustomConfig().set_input_quantized_indexes([0]).set_output_quantized_indexes([0])
    data = randn(64, 6)
    module = convert_fx(prepared(config, data))
    scale = float(data.max() - data.min()) / 255
    given = torch.quantize_per_tensor(data, scale, round(-float(data.min()) / scale), torch.quint8)
    result = module(given)
    assert result.is_quantized and result.dtype is torch.quint8
    plain = convert_fx(prepared(None, data))
    assert compute_sqnr(plain(data), result.dequantize()) > 28
    other = torch.quantize_per_tensor(data, scale * 2, 100, torch.quint8)  # on another scale: it is brought to ours
    assert compute_sqnr(result.dequantize(), module(other).dequantize()) > 24
    with pytest.raises(ConfigError, match="output 1 cannot be quantized"):
        convert_fx(prepared(PrepareCustomConfig().set_output_quantized_indexes([1])))


def test_attributes_are_preserved() -> None:
    ready = prepared(PrepareCustomConfig().set_preserved_attributes(["note", "labels"]))
    assert ready.note() == "kept"
    module = convert_fx(ready, convert_custom_config={"preserved_attributes": ["note"]})
    assert module.note() == "kept" and module.labels == ("a", "b")
    fused = fuse_fx(Net().eval(), (randn(8, 6),), FuseCustomConfig().set_preserved_attributes(["note"]))
    assert fused.note() == "kept"


def test_dicts_come_back() -> None:
    config = (PrepareCustomConfig().set_float_to_observed_mapping(Gain, ObservedGain).set_non_traceable_module_names(["a"])
              .set_non_traceable_module_classes([Net]).set_input_quantized_indexes([0]).set_output_quantized_indexes([0])
              .set_preserved_attributes(["labels"]))  # fmt: skip
    assert PrepareCustomConfig.from_dict(config.to_dict()) == config
    assert ao.PrepareCustomConfig.from_dict(config.to_dict()).to_dict() == config.to_dict(), "torch's own reads it"
    theirs = ao.ConvertCustomConfig().set_observed_to_quantized_mapping(ObservedGain, QuantizedGain)
    assert as_config(theirs, ConvertCustomConfig).to_dict() == theirs.to_dict()


@pytest.mark.parametrize(("config", "message"), [
    ({"non_traceable_module_name": ["gian"]}, "did you mean gain"),
    ({"preserved_attributes": ["nothing"]}, "the model has no nothing"),
    ({"non_tracable": []}, "unknown key"),
    ({"standalone_module_name": [("gain", None, (), None, None)]}, "standalone modules are not supported"),
    (3, "expected a PrepareCustomConfig"),
])  # fmt: skip
def test_what_cannot_be_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(config)


def test_standalone_modules_and_dynamic_ones_are_refused_by_their_setters() -> None:
    with pytest.raises(ConfigError, match="set_module_name"):
        PrepareCustomConfig().set_standalone_module_name("gain", None, (), None, None)
    with pytest.raises(ConfigError, match="static"):
        PrepareCustomConfig().set_float_to_observed_mapping(Gain, ObservedGain, "dynamic")
