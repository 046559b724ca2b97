"""Descriptions of back ends, under torch.quantization's names."""

from qcompiler.backends.torch.description import (
    get_fbgemm_backend_config,
    get_native_backend_config,
    get_native_backend_config_dict,
    get_onednn_backend_config,
    get_qnnpack_backend_config,
    get_x86_backend_config,
)
from qcompiler.config.backend_config import BackendConfig, BackendPatternConfig, DTypeConfig, DTypeWithConstraints, ObservationType

__all__ = [
    "BackendConfig", "BackendPatternConfig", "DTypeConfig", "DTypeWithConstraints", "ObservationType", "get_fbgemm_backend_config",
    "get_native_backend_config", "get_native_backend_config_dict", "get_onednn_backend_config", "get_qnnpack_backend_config",
    "get_x86_backend_config",
]  # fmt: skip
