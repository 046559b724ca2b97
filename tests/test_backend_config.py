"""BackendConfig: made from rows and kernels, kept through dicts, and what it does not allow stays float."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import backend_config as ao

from qcompiler import ConfigError, QConfig, calibrate, convert_fx, explain, prepare_fx
from qcompiler.backends.torch.kernels.table import TABLE
from qcompiler.config.backend_config import BackendConfig, BackendPatternConfig, DTypeConfig, DTypeWithConstraints, ObservationType
from qcompiler.observers import MinMaxObserver, default_per_channel_weight_observer
from qcompiler.ops.table import OPS
from qcompiler.quantization.backend_config import get_native_backend_config, get_qnnpack_backend_config, get_x86_backend_config
from tests.flow import randn

INT8 = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float32)


def rows(backend_config: Any, mapping: Any = None, **options: Any) -> dict[str, tuple[bool, str]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    ready = prepare_fx(model, mapping, (randn(4, 8),), backend_config=backend_config, **options)
    calibrate(ready, randn(32, 8))
    return {row.module_path: (row.int8, row.reason) for row in explain(convert_fx(ready)).rows}


def test_every_row_with_a_kernel_is_described() -> None:
    config = get_native_backend_config()
    for row in OPS.rows.values():
        if row.name in TABLE or row.elementwise:
            qconfig = QConfig(MinMaxObserver, default_per_channel_weight_observer)
            assert not row.spellings or config.refuses(row, qconfig) is None, row.name
    by_pattern = {entry.pattern: entry for entry in config.configs}
    assert by_pattern[nn.Conv2d].dtype_configs[0].weight_dtype is torch.qint8
    assert by_pattern[nn.MaxPool2d].observation_type is ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT
    assert by_pattern[nn.Sigmoid].dtype_configs[0].output_dtype_with_constraints.scale_exact_match == 1 / 256


@pytest.mark.parametrize("make", [get_native_backend_config, get_x86_backend_config, get_qnnpack_backend_config])
def test_our_own_description_changes_nothing(make: Any) -> None:
    assert rows(make()) == rows(None)
    assert rows(BackendConfig.from_dict(make().to_dict())) == rows(None)


def test_an_op_without_a_pattern_stays_float() -> None:
    config = BackendConfig("mine").set_backend_pattern_configs([BackendPatternConfig(nn.Linear).add_dtype_config(INT8)])
    found = rows(config)
    assert [found[path][0] for path in "01234"] == [True, False, True, False, True]
    assert found["1"][1] == "the backend config 'mine' has no pattern for sigmoid"


def test_torchs_own_configs_are_taken() -> None:
    importlib.import_module("torch.ao.quantization.backend_config.utils")  # torch uses it without importing it
    theirs = ao.BackendConfig("theirs").set_backend_pattern_config(
        ao.BackendPatternConfig(nn.Linear)
        .set_observation_type(ao.ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
        .add_dtype_config(ao.DTypeConfig(ao.DTypeWithConstraints(torch.quint8, 0, 255), torch.quint8, torch.qint8, torch.float))
    )
    assert [rows(theirs)[path][0] for path in "01"] == [True, False]
    assert rows(ao.get_native_backend_config())["0"][0]


@pytest.mark.parametrize(("constraint", "message"), [
    (DTypeWithConstraints(torch.qint8), "input dtype torch.uint8 is not torch.qint8"),
    (DTypeWithConstraints(torch.quint8, quant_max_upper_bound=127), "input quant_max 255 is above 127"),
    (DTypeWithConstraints(torch.quint8, quant_min_lower_bound=1), "input quant_min 0 is below 1"),
    (DTypeWithConstraints(torch.quint8, scale_min_lower_bound=2**-12), "input scales may fall below"),
])  # fmt: skip
def test_constraints_of_dtypes_are_checked(constraint: DTypeWithConstraints, message: str) -> None:
    entry = BackendPatternConfig(nn.Linear).add_dtype_config(DTypeConfig(constraint, torch.quint8, torch.qint8))
    int8, reason = rows(BackendConfig("mine").set_backend_pattern_config(entry))["0"]
    assert not int8 and message in reason
    entry.add_dtype_config(INT8)  # one that fits is enough
    assert rows(BackendConfig("mine").set_backend_pattern_config(entry))["0"][0]


def test_fixed_qparams_must_match() -> None:
    def sigmoid(scale: float) -> BackendConfig:
        exact = DTypeWithConstraints(torch.quint8, 0, 255, scale_exact_match=scale, zero_point_exact_match=0)
        entries = [BackendPatternConfig(nn.Linear).add_dtype_config(INT8),
                   BackendPatternConfig(nn.Sigmoid).add_dtype_config(DTypeConfig(torch.quint8, exact))]  # fmt: skip
        return BackendConfig("mine").set_backend_pattern_configs(entries)

    assert rows(sigmoid(1 / 256))["1"][0]
    assert "are not (0.5, 0)" in rows(sigmoid(0.5))["1"][1]


def test_dicts_come_back() -> None:
    entry = (BackendPatternConfig((nn.Conv2d, nn.ReLU)).set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
             .set_dtype_configs([INT8]).set_root_module(nn.Conv2d).set_fused_module(nn.Sequential))  # fmt: skip
    config = BackendConfig().set_name("mine").set_backend_pattern_config(entry)
    again = BackendConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict() and again.name == "mine"
    assert again.configs[0].root_module is nn.Conv2d and again.configs[0].dtype_configs == [INT8]


def test_what_is_no_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a BackendConfig"):
        rows(3)
    with pytest.raises(ConfigError, match="expected a dtype"):
        DTypeConfig("int8")
