"""A module that was compiled for a CPU whose sums do not overflow where this one's do."""

from __future__ import annotations

import warnings

from qcompiler.backends.torch.site import VNNI, host_isa
from qcompiler.errors import callers_level


class OtherCPUWarning(UserWarning):
    """A module runs on a CPU whose kernels overflow where those that it was compiled for do not."""


def note_other_cpu(isa: str, engine: str) -> None:
    """Warns where full 8-bit activations were safe on the CPU that was compiled for, and are not on this one."""
    if isa in VNNI and host_isa() not in VNNI and engine != "qnnpack":
        text = (f"this module was compiled for CPUs with VNNI ({isa}), which this one lacks: sums may overflow in 16 bits, with errors "
                'in the results. Compile it with isa="avx2" for both')  # fmt: skip
        warnings.warn(text, OtherCPUWarning, stacklevel=callers_level())
