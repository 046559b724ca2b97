"""Observers inside the modules of this package: each linear, each FloatFunctional and each marked value gets one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, ConfigError, NumericsError
from qcompiler.fake_quantize import default_fixed_qparams_range_0to1_fake_quant, default_fixed_qparams_range_neg1to1_fake_quant
from qcompiler.nn import qat
from qcompiler.nn.place import OUTPUTS, place_of
from qcompiler.nn.quantized.functional_modules import FloatFunctional

FIXED: dict[type[nn.Module], Any] = {  # ranges that are known beforehand
    nn.Sigmoid: default_fixed_qparams_range_0to1_fake_quant,
    nn.Tanh: default_fixed_qparams_range_neg1to1_fake_quant,
}


class Observed(nn.Identity):
    """A place in forward whose value is quantized there: observed, then an nn.quantized.Quantize."""


def qconfig_of(mod: nn.Module, given: object = None) -> Any:
    """The qconfig to observe with. Raises ConfigError where there is none."""
    where = place_of(mod)
    qconfig = getattr(mod, "qconfig", None) or given
    if qconfig is None:
        raise ConfigError(f"this {type(mod).__name__} has no qconfig, which says how to observe it", code="no-qconfig", where=where,
                          hint="set .qconfig on it or on the model, or pass qconfig=")  # fmt: skip
    return qconfig


def observe_(module: nn.Module, qconfig: Any, path: str = "") -> None:
    """Sets `qconfig` on all parts of a module and puts its observers on their results, in place. `path`: where the module stands.

    In train mode linears become those of nn.qat, and sigmoid and tanh, whose ranges are known, are fake-quantized as well.
    """
    for name, part in module.named_modules():
        part.qconfig = qconfig  # type: ignore[assignment]
        part._qc_path = ".".join(filter(None, (path, name)))  # type: ignore[assignment]
    for part in list(module.modules()):
        for name, child in part._modules.items():
            if module.training and type(child) is nn.Linear:
                part._modules[name] = _placed_as(child, qat.Linear.from_float(child))
    for part in list(module.modules()):
        maker = FIXED.get(type(part)) if module.training else None
        if isinstance(part, FloatFunctional):
            part.activation_post_process = qconfig.activation()
        elif maker is not None or isinstance(part, (nn.Linear, Observed)):
            part.add_module("activation_post_process", (maker or qconfig.activation)())
            part.register_forward_hook(_observe)


def _placed_as(old: nn.Module, new: nn.Module) -> nn.Module:
    new._qc_path = old._qc_path
    return new


def _observe(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    observer: Any = module.activation_post_process
    if not torch.compiler.is_compiling():
        module.__dict__[OUTPUTS] = output.numel()
    try:
        return observer(output)  # type: ignore[no-any-return]
    except NumericsError as error:
        where = place_of(module)
        raise CalibrationError(f"{type(module).__name__}: {error.message}", code=error.code, where=where) from error
