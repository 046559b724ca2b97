"""What torch.compile can follow of a program: all that works on no tensor of a quantized dtype."""

from __future__ import annotations

from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import KERNELS
from qcompiler.backends.torch.program.statements import Call


def is_opaque(call: Call) -> bool:
    """Whether a call works on tensors that torch.compile does not know: of quantized dtypes."""
    return call.op.startswith(KERNELS) and call.op != registry.RUN_REGION


def is_seen(pack: object) -> bool:
    """Whether torch.compile can follow the runs of what a once call made: of native regions, those that hand out tensors alone."""
    return isinstance(pack, NativeRegion) and len(pack.tensors) == len(pack.network.outputs)
