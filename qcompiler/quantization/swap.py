"""Takes modules out and puts their quantized or trained forms in, by a table of classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qcompiler.errors import QCompilerError, Where
from qcompiler.inputs.door import door
from qcompiler.nn.intrinsic import FusedModule
from qcompiler.nn.place import PATH
from qcompiler.nn.qat.base import QATModule
from qcompiler.quantization.fused_into import relink
from qcompiler.quantization.observation import OBSERVER, observe_output
from qcompiler.trace.parametrize import fold_parametrizations

__all__ = ["swap_module"]


@door
def swap_module(
    mod: nn.Module,
    mapping: Mapping[Any, Any],
    custom_module_class_mapping: Mapping[Any, Any] | None = None,
    use_precomputed_fake_quant: bool = False,
) -> nn.Module:
    """What takes the place of `mod`: itself where it has no qconfig or its class is in no table.

    `mapping`: class -> class with `from_float(mod)`. `custom_module_class_mapping`: class -> class with `from_observed(mod)`.
    The user's hooks move along. Errors of the package name the module.
    """
    custom = custom_module_class_mapping or {}
    cls = type_before_parametrizations(mod)
    if getattr(mod, "qconfig", None) is None or (cls not in custom and cls not in mapping):
        return mod
    try:
        made = custom[cls].from_observed(mod) if cls in custom else _from_float(mapping[cls], plain(mod), use_precomputed_fake_quant)
    except QCompilerError as error:
        if not error.where.module_path:
            error.where = Where(error.where.node, getattr(mod, PATH, None), error.where.source)
        raise
    if made is not mod:
        _move(mod, made)
    return made  # type: ignore[no-any-return]


def _from_float(cls: Any, mod: nn.Module, precomputed: bool) -> Any:
    name = "use_precomputed_fake_quant"
    takes = precomputed and name in inspect.signature(cls.from_float).parameters
    return cls.from_float(mod, **{name: True} if takes else {})


def plain(mod: nn.Module) -> nn.Module:
    """The module with a computed weight (weight_norm and the like) as a parameter; itself where it has none."""
    hooked = any(isinstance(hook, (WeightNorm, SpectralNorm)) for m in mod.modules() for hook in m._forward_pre_hooks.values())
    return fold_parametrizations(mod) if hooked or any(is_parametrized(m) for m in mod.modules()) else mod


def _move(old: nn.Module, new: nn.Module) -> None:
    """The user's hooks, the qconfig and the place in the model, from the module that was replaced to the one that replaces it."""
    for before in old._forward_pre_hooks.values():
        if not isinstance(before, (WeightNorm, SpectralNorm)) and before not in new._forward_pre_hooks.values():
            new.register_forward_pre_hook(before)
    for after in old._forward_hooks.values():
        if after is not observe_output and after not in new._forward_hooks.values():
            new.register_forward_hook(after)
    setattr(new, PATH, getattr(old, PATH, ""))
    if not hasattr(new, "qconfig"):
        new.qconfig = old.qconfig
    relink(old, new)


def swap_all(model: nn.Module, swap: Callable[[nn.Module], nn.Module], whole: tuple[type, ...] = ()) -> nn.Module:
    """`swap` for every module, inner ones first; fused modules, trained ones and those of the classes `whole` as one.

    A module under several names stays one module. Returns what stands in the place of `model` itself.
    """
    done: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if id(module) not in done:
            done[id(module)] = module  # a module may hold itself
            if not isinstance(module, (FusedModule, QATModule, *whole)):
                for name, child in list(module._modules.items()):
                    if child is not None and name != OBSERVER:
                        module._modules[name] = visit(child)
            done[id(module)] = swap(module)
        return done[id(module)]

    return visit(model)
