"""Modules: fused float containers, their quantized forms, and the modules of quantization-aware training."""

import qcompiler.nn.intrinsic.qat
import qcompiler.nn.intrinsic.quantized.dynamic
import qcompiler.nn.quantized.dynamic  # attributes of intrinsic and quantized from now on  # noqa: F401
from qcompiler.nn import intrinsic, qat, quantizable, quantized

__all__ = ["intrinsic", "qat", "quantizable", "quantized"]
