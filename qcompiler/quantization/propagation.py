"""Which module of a hand-prepared model gets which QConfig: the `.qconfig` attribute, inherited from the module around it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from qcompiler.config.qconfig import QConfig, as_qconfig
from qcompiler.errors import ConfigError, Where
from qcompiler.inputs.door import door
from qcompiler.inputs.kinds import module_of
from qcompiler.inputs.near_names import near_names, no_module

__all__ = ["add_quant_dequant", "propagate_qconfig_"]

KEYS = ("float_to_observed_custom_module_class", "observed_to_quantized_custom_module_class", "non_traceable_module_name",
        "non_traceable_module_class", "preserved_attributes")  # fmt: skip


@door
def propagate_qconfig_(
    module: nn.Module, qconfig_dict: Mapping[Any, Any] | None = None, prepare_custom_config_dict: Mapping[str, Any] | None = None
) -> None:
    """Sets `.qconfig` on every submodule: its own attribute, else by name or class in `qconfig_dict`, else its parent's.

    None stands for "stays float". `prepare_custom_config_dict`: "non_traceable_module_name" and "non_traceable_module_class" list
    what is left alone. Raises ConfigError for values that are no QConfig, for unknown names, and where one module stands in two
    places that give it different ones.
    """
    module = module_of(module)
    rules = {key: as_qconfig(value) for key, value in (qconfig_dict or {}).items()}
    custom = prepare_custom_config_dict or {}
    check_keys(custom)
    _check_names(module, [key for key in rules if isinstance(key, str)], "a key of the qconfig_dict")
    _check_names(module, custom.get("non_traceable_module_name", ()), "non_traceable_module_name")
    _Walk(rules, custom.get("non_traceable_module_name", ()), tuple(custom.get("non_traceable_module_class", ()))).visit(module, "", None)


class _Walk:
    def __init__(self, rules: Mapping[object, QConfig | None], names: Collection[str], classes: tuple[type, ...]) -> None:
        self.rules, self.names, self.classes = rules, names, classes
        self.inherited: dict[int, tuple[str, QConfig | None]] = {}  # modules without a qconfig of their own, by id

    def visit(self, module: nn.Module, path: str, parent: QConfig | None) -> None:
        rule = self.rules.get(path, self.rules.get(type_before_parametrizations(module), parent))
        if id(module) in self.inherited:
            _check_same(module, path, rule, *self.inherited[id(module)])
        elif hasattr(module, "qconfig"):
            rule = as_qconfig(module.qconfig)
        else:
            self.inherited[id(module)] = path, rule
        setattr(module, "qconfig", rule)  # noqa: B010  # for the type checker this is a submodule
        for name, child in module._modules.items():
            if child is not None and name not in self.names and type(child) not in self.classes:
                self.visit(child, f"{path}.{name}" if path else name, rule)


def _check_same(module: nn.Module, path: str, rule: QConfig | None, before: str, taken: QConfig | None) -> None:
    if rule != taken:
        raise ConfigError(f"{before} and {path} are one module, and the modules around them have different qconfigs", code="qconfig-shared",
                          where=Where(module_path=path), hint=f"set the qconfig of this {type(module).__name__} itself")  # fmt: skip


def check_keys(custom: Mapping[str, object]) -> None:
    """Raises ConfigError for a key that a custom config does not have: it would be passed over."""
    for key in custom:
        if key not in KEYS:
            close = near_names(str(key), KEYS)
            hint = f"did you mean {', '.join(close)}?" if close else f"the keys are {', '.join(KEYS)}"
            raise ConfigError(f"a custom config has no key {key!r}", code="custom-config-key", hint=hint)


def _check_names(model: nn.Module, names: Iterable[str], where: str) -> None:
    known = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for name in names:
        if name not in known:
            raise no_module(name, known, "qconfig-module-name", where)


@door
def add_quant_dequant(module: nn.Module) -> nn.Module:
    """Wraps each leaf module that has a qconfig into a QuantWrapper, in place; a leaf itself comes back wrapped."""
    from qcompiler.quantization.stubs import QuantWrapper

    wrapped: dict[int, nn.Module] = {}

    def wrap(child: nn.Module) -> nn.Module:
        if id(child) not in wrapped:
            quantized = not any(True for _ in child.children()) and getattr(child, "qconfig", None) is not None
            wrapped[id(child)] = QuantWrapper(child) if quantized else child
            if not quantized:
                for name, inner in child._modules.items():
                    child._modules[name] = wrap(inner) if inner is not None else None
        return wrapped[id(child)]

    return wrap(module_of(module))
