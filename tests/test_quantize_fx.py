"""quantize_fx: a module that is imported from, and that can be called to quantize named submodules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qcompiler import CalibrationError, ConfigError, explain
from qcompiler.debug import compute_sqnr
from qcompiler.quantization import quantize_fx
from qcompiler.quantization.quantize_fx import convert_fx, convert_to_reference_fx, fuse_fx, prepare_fx, prepare_qat_fx
from tests.flow import fingerprint, randn


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 4)).eval()


def test_it_is_a_module_with_torchs_names() -> None:
    assert all(map(callable, (convert_fx, convert_to_reference_fx, fuse_fx, prepare_fx, prepare_qat_fx)))
    assert quantize_fx.prepare_fx is prepare_fx and set(quantize_fx.__all__) >= {"prepare_fx", "convert_fx"}


def test_only_the_named_submodules_become_int8() -> None:
    model, x = net(), randn(32, 8)
    before = fingerprint(model)
    calibrating = quantize_fx(model, calibration_module_names=["1"])
    assert torch.equal(calibrating(x), model(x)), "calibration computes the float values"
    calibrating(randn(16, 8, seed=3))
    converted = calibrating.convert()
    assert {row.module_path: row.int8 for row in explain(converted).rows} == {"0.0": False, "1.0": True, "2": False}
    assert compute_sqnr(model(x), converted(x)) > 30
    assert fingerprint(model) == before


def test_all_of_the_model_without_names() -> None:
    calibrating = quantize_fx(net())
    calibrating(randn(32, 8))
    assert all(row.int8 for row in explain(calibrating.convert()).rows)


def test_missing_calibration_and_unknown_names_are_named() -> None:
    with pytest.raises(CalibrationError, match="Sequential was not calibrated"):
        quantize_fx(net(), calibration_module_names=["1"]).convert()
    with pytest.raises(ConfigError, match="no module 'one'"):
        quantize_fx(net(), calibration_module_names=["one"])
    with pytest.raises(ConfigError, match="empty"):
        quantize_fx(net(), calibration_module_names=[])
    with pytest.raises(ConfigError, match=r"expected a torch\.nn\.Module"):
        quantize_fx(3)
    with pytest.raises(ConfigError, match="train mode"):
        quantize_fx(net().train(), calibration_module_names=["1"])(randn(2, 8))
