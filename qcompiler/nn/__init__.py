"""Modules: fused float containers, their quantized forms, and the modules of quantization-aware training."""

import qcompiler.nn.intrinsic.quantized.dynamic
import qcompiler.nn.quantized.dynamic  # noqa: F401  (an attribute of intrinsic from now on)
from qcompiler.nn import intrinsic, quantized

__all__ = ["intrinsic", "quantized"]
