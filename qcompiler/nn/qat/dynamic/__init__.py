"""Modules that train for dynamic quantization: the activation's range is that of each batch alone."""

from __future__ import annotations

from qcompiler.errors import ConfigError
from qcompiler.nn.qat.linear import Linear as StaticLinear

__all__ = ["Linear"]


class Linear(StaticLinear):
    """nn.Linear with a fake-quantized weight, for a qconfig whose activations keep no memory of earlier batches.

    ConfigError for an activation observer with memory: `default_dynamic_qat_qconfig` has one without.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, qconfig: object = None, device: object = None, dtype: object = None
    ) -> None:
        super().__init__(in_features, out_features, bias, qconfig, device, dtype)
        made = self.qconfig.activation()
        observer = getattr(made, "activation_post_process", made)
        if not getattr(observer, "is_dynamic", False) and getattr(observer, "averaging_constant", None) != 1:
            raise ConfigError("training for dynamic quantization needs an activation observer without memory", code="observer-dynamic",
                              hint="default_dynamic_qat_qconfig, or averaging_constant=1")  # fmt: skip
