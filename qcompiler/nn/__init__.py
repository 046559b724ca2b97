"""Modules: fused float containers, their quantized forms, and the modules of quantization-aware training."""

from qcompiler.nn import intrinsic

__all__ = ["intrinsic"]
