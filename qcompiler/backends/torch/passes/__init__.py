"""The passes of this back end: QUANTIZED -> LOWERED, with its kernels checked and its memory reused."""

from qcompiler.backends.torch.passes.centre_depthwise import CentreDepthwise
from qcompiler.backends.torch.passes.lower import Lower

LOWERING = (CentreDepthwise(), Lower())  # QUANTIZED -> LOWERED: what its pipelines end with
