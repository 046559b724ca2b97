"""What torch's kernels for x86 make of int8 on the CPU at hand: without VNNI they add products in 16 bits, so activations get 7 bits."""

from __future__ import annotations

import pytest

from qcompiler.backends.torch.site import VNNI, host_isa

SEVEN_BITS = host_isa() not in VNNI  # on the engines x86, fbgemm and onednn
BIT = 6.02 if SEVEN_BITS else 0.0  # dB that the missing bit costs at most
STEPS = 127 if SEVEN_BITS else 255
needs_vnni = pytest.mark.skipif(SEVEN_BITS, reason="without VNNI kernels add in 16 bits")
compiled_for_others = pytest.mark.filterwarnings("ignore:this module was compiled for CPUs with VNNI")


def steps(engine: str) -> int:
    """Steps between the ends of an activation's range on an engine of torch."""
    return 255 if engine == "qnnpack" else STEPS
