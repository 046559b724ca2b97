"""The graph flow, where code written for torch.quantization.quantize_fx looks for it."""

from qcompiler.api import convert_fx, convert_to_reference_fx, fuse_fx, prepare_fx

__all__ = [
    "convert_fx", "convert_to_reference_fx", "fuse_fx", "prepare_fx",
]  # fmt: skip
