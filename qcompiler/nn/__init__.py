"""Modules: fused float containers, their quantized forms, and the modules of quantization-aware training."""

import qcompiler.nn.intrinsic.qat
import qcompiler.nn.intrinsic.quantized  # attributes of intrinsic from now on  # noqa: F401
from qcompiler.nn import intrinsic, qat, quantizable, quantized

__all__ = ["intrinsic", "qat", "quantizable", "quantized"]
