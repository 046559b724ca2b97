"""BackendConfigs of torch's engines, made from the op rows and the kernel table."""

from __future__ import annotations

import torch

from qcompiler.backends.torch.kernels.table import TABLE
from qcompiler.backends.torch.site import ENGINES
from qcompiler.config.backend_config import BackendConfig, BackendPatternConfig, DTypeConfig, DTypeWithConstraints, ObservationType
from qcompiler.ops.spec import Op, Output, Spelling
from qcompiler.ops.table import OPS

ACTIVATION = DTypeWithConstraints(torch.quint8, 0, 255)
WEIGHT = DTypeWithConstraints(torch.qint8, -128, 127)
OBSERVATION = {
    Output.SAME: ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT,
    Output.JOIN: ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT,
    Output.OTHER: ObservationType.INPUT_OUTPUT_NOT_OBSERVED,
}


def _dtypes(row: Op) -> DTypeConfig:
    if row.fixed is not None:
        assert isinstance(row.fixed.scale, float) and isinstance(row.fixed.zero_point, int)
        exact = DTypeWithConstraints(torch.quint8, 0, 255, scale_exact_match=row.fixed.scale, zero_point_exact_match=row.fixed.zero_point)
        return DTypeConfig(ACTIVATION, exact)
    return DTypeConfig(ACTIVATION, ACTIVATION, WEIGHT, torch.float32) if row.weight is not None else DTypeConfig(ACTIVATION, ACTIVATION)


def _patterns(row: Op) -> list[object]:
    """Module classes, functions and method names that the row has; classes of libraries that need not be there are left out.

    An op that nobody writes, for it is made by fusing, is named by its row.
    """
    spelled = [s.target if isinstance(s, Spelling) else s for s in row.spellings]
    return [*(form.cls for form in row.modules if isinstance(form.cls, type)), *dict.fromkeys(spelled)] or [row.name]


def _runs(row: Op, engine: str | None) -> bool:
    kernels = TABLE.get(row.name, ())
    return row.elementwise or any(engine is None or engine in kernel.engines for kernel in kernels)


def backend_config(engine: str | None = None) -> BackendConfig:
    """What one engine runs (None: any of them)."""
    config = BackendConfig(engine or "native")
    for row in OPS.rows.values():
        if row.output is Output.FLOAT or not _runs(row, engine):
            continue
        observation = OBSERVATION.get(row.output, ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
        for pattern in _patterns(row):
            entry = BackendPatternConfig(pattern).set_observation_type(observation).add_dtype_config(_dtypes(row))
            if row.weight is not None and isinstance(pattern, type):
                entry.set_root_module(pattern)
            config.set_backend_pattern_config(entry)
    return config


def get_native_backend_config() -> BackendConfig:
    """What some engine of torch runs."""
    return backend_config()


def get_native_backend_config_dict() -> dict[str, object]:
    """The same as a dict."""
    return backend_config().to_dict()


def get_x86_backend_config() -> BackendConfig:
    """What the engine x86 runs."""
    return backend_config("x86")


def get_fbgemm_backend_config() -> BackendConfig:
    """What the engine fbgemm runs."""
    return backend_config("fbgemm")


def get_onednn_backend_config() -> BackendConfig:
    """What the engine onednn runs."""
    return backend_config("onednn")


def get_qnnpack_backend_config() -> BackendConfig:
    """What the engine qnnpack runs."""
    return backend_config("qnnpack")


__all__ = [
    "ENGINES", "backend_config", "get_fbgemm_backend_config", "get_native_backend_config", "get_native_backend_config_dict",
    "get_onednn_backend_config", "get_qnnpack_backend_config", "get_x86_backend_config",
]  # fmt: skip
