"""Modules: fused float containers, their quantized forms, and the modules of quantization-aware training."""

import qcompiler.nn.intrinsic.quantized  # noqa: F401  (an attribute of intrinsic from now on)
from qcompiler.nn import intrinsic, quantizable, quantized

__all__ = ["intrinsic", "quantizable", "quantized"]
