"""Observers on the modules of a hand-prepared model: under `activation_post_process`, called by a forward hook."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from qcompiler.errors import CalibrationError, ConfigError, NumericsError, Where
from qcompiler.fake_quantize import FakeQuantizeBase
from qcompiler.inputs.door import door
from qcompiler.inputs.input_text import how_to_give
from qcompiler.inputs.kinds import module_of
from qcompiler.nn.intrinsic import FusedModule
from qcompiler.nn.place import OUTPUTS, PATH, place_of
from qcompiler.nn.quantized import FloatFunctional, QFunctional
from qcompiler.observers import ObserverBase
from qcompiler.observers.base import refuse_nonfinite
from qcompiler.ops.spec import Output
from qcompiler.ops.table import OPS
from qcompiler.quantization.quantization_mappings import FIXED_IN_TRAINING, get_default_qconfig_propagation_list, no_observer_set
from qcompiler.quantization.stubs import DeQuantStub

__all__ = ["add_observer_", "get_observer_dict"]

OBSERVER = "activation_post_process"


def name_modules_(model: nn.Module) -> None:
    """Tells every module where it stands."""
    for path, module in model.named_modules():
        setattr(module, PATH, path)


def observe_output(module: nn.Module, inputs: object, output: object) -> object:
    """The forward hook of prepared modules. Raises CalibrationError naming the module for NaN, inf, and what is no tensor."""
    place = place_of(module)
    if not isinstance(output, torch.Tensor):
        hint = how_to_give(output) or "set its qconfig to None, or have it observed as a custom module"
        text = f"this {type(module).__name__} gives {type(output).__name__}, not a tensor"
        raise CalibrationError(text, code="not-a-tensor", where=place, hint=hint)
    if not torch.compiler.is_compiling():
        module.__dict__[OUTPUTS] = output.numel()
    try:
        return module.activation_post_process(output)  # type: ignore[operator]
    except NumericsError as error:
        raise _bad_values(error, type(module).__name__, place) from error


def check_operand(observer: nn.Module, inputs: Any) -> None:
    """Pre-hook of a FloatFunctional's observer, which no hook of a module calls: CalibrationError naming the FloatFunctional."""
    if not bool(inputs[0].isfinite().all()):
        try:
            refuse_nonfinite(inputs[0])
        except NumericsError as error:
            place = Where(module_path=str(getattr(observer, PATH, "")).removesuffix(f".{OBSERVER}") or None)
            raise _bad_values(error, "FloatFunctional", place) from error


def _bad_values(error: NumericsError, kind: str, place: Where) -> CalibrationError:
    return CalibrationError(f"{kind}: {error.message}", code=error.code, where=place,
                            hint="look at this batch, and at the layers before this module")  # fmt: skip


def observers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """(path, module, observer) of the modules whose results are observed."""
    for path, module in module_of(model).named_modules():
        observer = getattr(module, OBSERVER, None)
        if isinstance(observer, nn.Module) and not isinstance(module, ObserverBase) and not isinstance(observer, nn.Identity):
            yield path, module, observer


@door
def add_observer_(
    module: nn.Module,
    qconfig_propagation_list: Collection[type] | None = None,
    non_leaf_module_list: Collection[type] | None = None,
    device: torch.device | None = None,
    custom_module_class_mapping: Mapping[type, object] | None = None,
) -> None:
    """Puts observers on the results of the submodules that have a qconfig, in place.

    Observed: leaf modules of the classes in `qconfig_propagation_list` (default: all that can be quantized) whose result has a
    range of its own, fused modules, FloatFunctionals, modules of `non_leaf_module_list`. Modules of the classes in
    `custom_module_class_mapping` are first replaced: `observed_class.from_float(module)`. `device`: where the observers stand.
    """
    module = module_of(module)
    classes = get_default_qconfig_propagation_list() if qconfig_propagation_list is None else qconfig_propagation_list
    custom = dict(custom_module_class_mapping or {})
    _Observe(set(classes), set(non_leaf_module_list or ()), device or _device(module), custom).visit(module)


def _device(module: nn.Module) -> torch.device | None:
    devices = {t.device for t in (*module.parameters(), *module.buffers()) if not t.is_meta}
    if len(devices) > 1:
        raise ConfigError(f"the model is on {', '.join(sorted(map(str, devices)))}", code="device", hint="move it to one device first")
    return next(iter(devices), None)


class _Observe:
    def __init__(self, classes: set[type], whole: set[type], device: torch.device | None, custom: dict[type, Any]) -> None:
        self.classes, self.whole, self.device, self.custom = classes, whole, device, custom
        self.done: dict[int, nn.Module] = {}  # by id of what stood there: a module under two names is visited once

    def visit(self, module: nn.Module) -> nn.Module:
        """The module that stands there from now on."""
        if id(module) in self.done:
            return self.done[id(module)]
        self.done[id(module)] = module
        cls = type_before_parametrizations(module)
        wanted = getattr(module, "qconfig", None) is not None
        if wanted and cls in self.custom:
            return self.replace(module, self.custom[cls])
        if isinstance(module, FloatFunctional):
            if wanted:
                self.observe_functional(module)
        elif isinstance(module, FusedModule) or cls in self.whole:
            if wanted:
                self.observe(module)
        else:
            for name, child in list(module._modules.items()):
                if child is not None and name != OBSERVER:
                    module._modules[name] = self.visit(child)
            has_range = fixed_in_training(module) or (cls in self.classes and needs_observer(module))
            if wanted and has_range and is_leaf(module) and not isinstance(module, nn.Sequential):
                self.observe(module)
        return module

    def replace(self, module: nn.Module, observed_class: Any) -> nn.Module:
        made: nn.Module = observed_class.from_float(module)
        made.qconfig = module.qconfig
        setattr(made, PATH, getattr(module, PATH, None))
        self.done[id(module)] = self.done[id(made)] = made
        if observed_class not in no_observer_set():
            self.observe(made)
        return made

    def observe(self, module: nn.Module) -> None:
        module.add_module(OBSERVER, self.observer(module))
        module.register_forward_hook(observe_output, prepend=True)

    def observe_functional(self, module: FloatFunctional) -> None:
        module.activation_post_process = observer = self.observer(module)
        if not isinstance(observer, FakeQuantizeBase):
            observer.register_forward_pre_hook(check_operand)

    def observer(self, module: nn.Module) -> nn.Module:
        fixed = FIXED_IN_TRAINING[type(module)] if fixed_in_training(module) else None
        made: nn.Module = (fixed or module.qconfig.activation)()  # type: ignore[union-attr,operator]
        return made if self.device is None else made.to(self.device)


def is_leaf(module: nn.Module) -> bool:
    """Whether it holds no modules but an observer and what computes its weight."""
    return all(child is None or name in (OBSERVER, "parametrizations") for name, child in module._modules.items())


def fixed_in_training(module: nn.Module) -> bool:
    """Whether the result is fake-quantized to the range that the function has."""
    return module.training and type(module) in FIXED_IN_TRAINING


def needs_observer(module: nn.Module) -> bool:
    """Whether the result has a range of its own: not that of the input, nor one that is known beforehand."""
    if isinstance(module, DeQuantStub):
        return False
    form = OPS.module_form(module)
    return form is None or form[0].output in (Output.OWN, Output.JOIN)


def remove_observers_(model: nn.Module) -> None:
    """Takes observers, their hooks and what `prepare` noted away again."""
    for module in list(model.modules()):
        if isinstance(module, FloatFunctional):
            setattr(module, OBSERVER, nn.Identity())
        elif isinstance(module._modules.get(OBSERVER), nn.Module) and not isinstance(module, (ObserverBase, QFunctional)):
            delattr(module, OBSERVER)
        for key in [key for key, hook in module._forward_hooks.items() if hook is observe_output]:
            del module._forward_hooks[key]
        module.__dict__.pop(OUTPUTS, None)


@door
def get_observer_dict(mod: nn.Module, target_dict: dict[str, object], prefix: str = "") -> None:
    """Puts every observer of a prepared model into `target_dict`, under its dotted name."""
    start = f"{prefix}." if prefix else ""
    for path, _, observer in observers_of(mod):
        target_dict[f"{start}{path}.{OBSERVER}" if path else f"{start}{OBSERVER}"] = observer
