"""fuse_modules: puts chains of modules that the user names into one module each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qcompiler.ambient import in_plain_torch
from qcompiler.errors import ConfigError, NumericsError, Where
from qcompiler.inputs.door import door
from qcompiler.inputs.kinds import check_kinds, module_of
from qcompiler.inputs.near_names import no_module
from qcompiler.quantization.fused_into import FUSION, FusedInto, link, unlink_
from qcompiler.quantization.fuser_method_mappings import fuse_conv_bn, fuse_conv_bn_relu, get_fuser_method

__all__ = ["fuse_conv_bn", "fuse_conv_bn_relu", "fuse_known_modules", "fuse_modules", "fuse_modules_qat", "get_fuser_method"]

FuserFunc = Callable[..., Sequence[nn.Module]]


@in_plain_torch
@door
def fuse_known_modules(
    mod_list: Sequence[nn.Module], is_qat: bool, additional_fuser_method_mapping: Mapping[Any, Any] | None = None
) -> list[nn.Module]:
    """The fused module, then an nn.Identity for each of the other modules. ConfigError where these do not fuse.

    Pre-hooks of the first and hooks of the last module move to the fused one.
    """
    fuser = get_fuser_method(_types(mod_list), additional_fuser_method_mapping)
    before = _taken(mod_list[0]._forward_pre_hooks)
    after = _taken(mod_list[-1]._forward_hooks)
    fused = fuser(is_qat, *mod_list).train(mod_list[0].training)
    for hook in before:
        fused.register_forward_pre_hook(hook)
    for hook in after:
        fused.register_forward_hook(hook)
    return [fused, *(nn.Identity().train(mod_list[0].training) for _ in mod_list[1:])]


def _types(modules: Sequence[nn.Module]) -> list[type]:
    return [type_before_parametrizations(module) for module in modules]


def _taken(hooks: MutableMapping[int, Any]) -> list[Any]:
    """The hooks of one module, taken away from it; those that compute its weight stay with it."""
    keys = [key for key, hook in hooks.items() if not isinstance(hook, (WeightNorm, SpectralNorm))]
    return [hooks.pop(key) for key in keys]


@in_plain_torch
@door
def fuse_modules(
    model: nn.Module,
    modules_to_fuse: Sequence[object],
    inplace: bool = False,
    fuser_func: FuserFunc = fuse_known_modules,
    fuse_custom_config_dict: Mapping[str, object] | None = None,
) -> nn.Module:
    """Fuses the chains of modules that are named: one list of names, or a list of such lists; names may be dotted or indices.

    conv, bn | conv, bn, relu | conv, relu | linear, bn | linear, bn, relu | linear, relu | linear, leaky_relu | linear, tanh |
    bn, relu | transposed conv, bn. The first name gets the fused module; the others pass their input on, and raise ConfigError
    when they are called on anything but its result. In eval mode BatchNorm is folded into the weight; modules that train become
    what `fuse_modules_qat` makes. `inplace`: change `model` itself, else a copy. Returns the model.
    Raises ConfigError naming the modules that do not fuse, and for unknown names; the model is unchanged then.
    """
    return _fuse(model, modules_to_fuse, None, inplace, fuser_func, fuse_custom_config_dict)


@in_plain_torch
@door
def fuse_modules_qat(
    model: nn.Module,
    modules_to_fuse: Sequence[object],
    inplace: bool = False,
    fuser_func: FuserFunc = fuse_known_modules,
    fuse_custom_config_dict: Mapping[str, object] | None = None,
) -> nn.Module:
    """`fuse_modules` for quantization-aware training: BatchNorm stays, as a part of the container that `prepare_qat` trains."""
    return _fuse(model, modules_to_fuse, True, inplace, fuser_func, fuse_custom_config_dict)


def _fuse(
    model: nn.Module, names: Sequence[Any], is_qat: bool | None, inplace: bool, fuser_func: FuserFunc, custom: Mapping[str, Any] | None
) -> nn.Module:
    model = module_of(model)
    check_kinds(model)
    groups = _groups(names)
    known = dict(model.named_modules(remove_duplicate=False))
    _check_groups(groups, known)
    mapping = (custom or {}).get("additional_fuser_method_mapping", {})
    if fuser_func is fuse_known_modules:
        for group in groups:  # all of them before the first change
            with _naming(group, known):
                get_fuser_method(_types([known[name] for name in group]), mapping)
    if not inplace:
        model = copy.deepcopy(model)
    for group in groups:
        _fuse_one(model, group, is_qat, fuser_func, mapping)
    return model


def _groups(names: Sequence[Any]) -> list[list[str]]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"modules_to_fuse is a list of names or a list of such lists, not {names!r:.80}", code="fuse-names")
    nested = names if names and not isinstance(names[0], (str, int)) else [names]
    groups = [[str(name) for name in group] for group in nested if len(group)]
    short = next((group for group in groups if len(group) == 1), None)
    if short is not None:
        raise ConfigError(f"nothing to fuse {short[0]} with", code="fuse-names", hint="name at least two modules")
    return groups


def _check_groups(groups: list[list[str]], known: Mapping[str, nn.Module]) -> None:
    """All names exist, and no module is in two chains, under whatever name."""
    seen: dict[int, tuple[str, str]] = {}
    for group in groups:
        for name in group:
            if name not in known:
                raise no_module(name, known, "fuse-names", f"in {group}")
            _check_once(name, group[0], known[name], seen)


def _check_once(name: str, base: str, module: nn.Module, seen: dict[int, tuple[str, str]]) -> None:
    hint = "give each chain a module of its own"
    place = Where(module_path=name)
    if isinstance(module, FusedInto):
        raise ConfigError(f"{name} was fused into {module._qc_fusion.path} before", code="fuse-twice", where=place, hint=hint)
    if id(module) in seen:
        before, into = seen[id(module)]
        same = "" if before == name else f" (it is the module {before} as well)"
        raise ConfigError(f"{name} is to be fused into both {into} and {base}{same}", code="fuse-twice", where=place, hint=hint)
    seen[id(module)] = name, base


def _fuse_one(model: nn.Module, names: list[str], is_qat: bool | None, fuser_func: FuserFunc, mapping: Mapping[object, object]) -> None:
    parts = [model.get_submodule(name) for name in names]
    before = getattr(parts[0], FUSION, None)  # a chain that grows: what was fused into its first module stays so
    unlink_(parts[0])
    with _naming(names, dict(zip(names, parts))):
        made = fuser_func(parts, parts[0].training if is_qat is None else is_qat, mapping)
    places = link(names[0], made[0], dict(zip(names[1:], parts[1:])), before)
    standing = [_standing(model, part) for part in parts]  # before the fused module brings its parts in again
    for name, new, found in zip(names, made, standing):
        replacement = places[name] if type(new) is nn.Identity and name in places else new
        for parent, key in found:
            parent._modules[key] = replacement


def _standing(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """All places of a module: a shared one stays shared."""
    return [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is module]


@contextmanager
def _naming(names: list[str], modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Errors inside name the chain."""
    try:
        yield
    except (ConfigError, NumericsError) as error:
        chain = ", ".join(f"{name} ({type(modules[name]).__name__})" for name in names)
        raise type(error)(f"cannot fuse {chain}: {error.message}", code=error.code, where=Where(module_path=names[0]),
                          hint=error.hint) from error  # fmt: skip
