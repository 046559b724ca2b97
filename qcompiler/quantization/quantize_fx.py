"""The graph flow, where code written for torch.quantization.quantize_fx looks for it. The module can be called as well:

calibrating = quantize_fx(model, calibration_module_names=["features"])
calibrating(batch)                     # traces at its first call
quantized = calibrating.convert()      # only `features` is int8
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from qcompiler.api import convert_fx, convert_to_reference_fx, fuse_fx, prepare_fx, prepare_qat_fx
from qcompiler.config.qconfig import get_default_qconfig
from qcompiler.config.qconfig_mapping import QConfigMapping
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.executable import Executable
from qcompiler.inputs.near_names import no_module


def mapping_for(model: nn.Module, names: Iterable[str], qconfig: object = None) -> QConfigMapping:
    """int8 for the submodules of these names alone. ConfigError for a name that the model does not have."""
    names, known = list(names), [path for path, _ in model.named_modules()]
    if not names:
        raise ConfigError("calibration_module_names is empty: nothing would be quantized", code="calibration-names")
    mapping = QConfigMapping()
    for name in names:
        if name not in known:
            raise no_module(name, known, "calibration-names")
        chosen = qconfig or get_default_qconfig(torch.backends.quantized.engine)
        mapping = mapping.set_module_name(name, chosen) if name else mapping.set_global(chosen)
    return mapping


class Calibrating(nn.Module):
    """A model that is traced at its first call and observed at every one; `convert()` gives its int8 form.

    It computes what the float model computes; the model itself is not changed.
    """

    def __init__(self, model: nn.Module, mapping: QConfigMapping | None, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.mapping, self.options = model, mapping, options
        self.prepared: fx.GraphModule | None = None
        self.train(model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.prepared is None:
            self.prepared = prepare_fx(self.model, self.mapping, args, example_kwargs=kwargs or None, **self.options)
        with torch.no_grad():
            return self.prepared(*args, **kwargs)

    def convert(self, **options: Any) -> Executable:
        """The int8 module; options go to convert_fx. CalibrationError where no data came before."""
        if self.prepared is None:
            text = f"{type(self.model).__name__} was not calibrated: no data reached the module that quantize_fx returned"
            raise CalibrationError(text, code="not-calibrated", hint="call it with calibration data, then convert()")
        module: Executable = convert_fx(self.prepared, **options)
        return module


class CallableModule(ModuleType):
    """A module that can be called."""

    def __call__(
        self, model: nn.Module, calibration_module_names: Iterable[str] | None = None, *, qconfig: object = None, **options: object
    ) -> Calibrating:
        """`model` as a Calibrating that quantizes the named submodules alone (None: all that can be).

        `qconfig`: that of the named submodules; default the engine's. `options` go to prepare_fx. ConfigError for unknown names.
        """
        if not isinstance(model, nn.Module):
            raise ConfigError(f"expected a torch.nn.Module, got {type(model).__name__}", code="not-a-module")
        names = [""] if calibration_module_names is None and qconfig is not None else calibration_module_names
        return Calibrating(model, None if names is None else mapping_for(model, names, qconfig), options)


sys.modules[__name__].__class__ = CallableModule

__all__ = [
    "Calibrating", "convert_fx", "convert_to_reference_fx", "fuse_fx", "prepare_fx", "prepare_qat_fx",
]  # fmt: skip
