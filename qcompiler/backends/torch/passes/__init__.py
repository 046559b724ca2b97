"""The passes of this back end: QUANTIZED -> LOWERED, with its kernels checked and its memory reused."""

from qcompiler.backends.torch.passes.lower import Lower

LOWERING = (Lower(),)  # QUANTIZED -> LOWERED: what its pipelines end with
