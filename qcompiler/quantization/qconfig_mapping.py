"""QConfigMapping, where code written for torch.quantization.qconfig_mapping looks for it."""

from qcompiler.config.qconfig_mapping import QConfigMapping, get_default_qat_qconfig_mapping, get_default_qconfig_mapping

__all__ = [
    "QConfigMapping", "get_default_qat_qconfig_mapping", "get_default_qconfig_mapping",
]  # fmt: skip
