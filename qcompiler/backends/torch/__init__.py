"""Lowering of QUANTIZED to torch's quantized kernels."""
