"""torch.ao's stubs and fused containers, recognised by their qualified names: torchvision's quantizable models hold them."""

from __future__ import annotations

from torch import nn

from qcompiler.nn import intrinsic
from qcompiler.nn.quantized import FloatFunctional
from qcompiler.quantization.stubs import DeQuantStub, QuantStub, QuantWrapper

_STUBS = "torch.ao.quantization.stubs"
_FUSED = "torch.ao.nn.intrinsic.modules.fused"

OURS: dict[str, type[nn.Module]] = {
    f"{_STUBS}.QuantStub": QuantStub,
    f"{_STUBS}.DeQuantStub": DeQuantStub,
    f"{_STUBS}.QuantWrapper": QuantWrapper,
    "torch.ao.nn.quantized.modules.functional_modules.FloatFunctional": FloatFunctional,
    **{f"{_FUSED}.{name}": getattr(intrinsic, name) for name in intrinsic.__all__ if name != "FusedModule"},
}


def adopt_(model: nn.Module) -> None:
    """Turns such modules into ours, in place: the objects, their names and what they hold stay."""
    for module in model.modules():
        ours = OURS.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if ours is not None:
            module.__class__ = ours
