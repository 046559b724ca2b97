"""The passes of this back end: QUANTIZED -> LOWERED, with its kernels checked and its memory reused."""
