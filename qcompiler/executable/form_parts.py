"""The user's modules in a model of several call forms: what stands under a name in each form, as one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qcompiler.errors import ConfigError
from qcompiler.ir.items import DictItems, ListItems
from qcompiler.observers.watch import Watch

TABLES = ("_parameters", "_buffers", "_modules")


def is_scope(module: nn.Module) -> bool:
    """Whether a module only holds others, and has no forward."""
    return type(module) is nn.Module or type(module).forward is nn.Module.forward


def share_modules(first: nn.Module, other: nn.Module) -> None:
    """Lets a form hold the modules of the first one where they hold the same tensors: what is set on one, such as `eval()` on a
    BatchNorm, is set in all forms."""
    for name, child in other._modules.items():
        held = first._modules.get(name)
        if child is not None and held is not None and held is not child and not isinstance(child, Watch):
            share_modules(held, child)
            if not is_scope(child) and _is_same(held, child):
                other._modules[name] = held


def _is_same(one: nn.Module, other: nn.Module) -> bool:
    if type(one) is not type(other) or one.training is not other.training:
        return False
    tables = [(vars(one)[table], vars(other)[table]) for table in TABLES]
    return all(list(a) == list(b) and all(a[name] is b[name] for name in a) for a, b in tables)


def found_in(forms: Sequence[nn.Module], name: str) -> object:
    """What stands under a name in the forms; None where nothing does. Scopes are put together: a form lacks what it does not use."""
    found = [vars(form)[table][name] for form in forms for table in TABLES if vars(form)[table].get(name) is not None]
    distinct = [value for i, value in enumerate(found) if all(value is not other for other in found[:i])]
    scopes = [value for value in distinct if isinstance(value, nn.Module) and is_scope(value)]
    modules = [value for value in distinct if isinstance(value, nn.Module)]
    if len(modules) > max(1, len(scopes)):
        raise ConfigError(f"{name} is another module in each form of the call", code="form-module",
                          hint=f"take it from one of them: model.call_forms[0].{name}")  # fmt: skip
    return (_together(scopes) if len(scopes) > 1 else distinct[0]) if distinct else None


def _together(scopes: Sequence[nn.Module]) -> nn.Module:
    """The first scope that has all that the others have, else one that is made of them."""
    names = {table: list(dict.fromkeys(name for scope in scopes for name in vars(scope)[table])) for table in TABLES}
    parts = {(table, name): found_in(scopes, name) for table in TABLES for name in names[table]}
    for scope in scopes:
        if all(vars(scope)[table].get(name) is value for (table, name), value in parts.items()):
            return scope
    like = next((scope for scope in scopes if isinstance(scope, (ListItems, DictItems))), scopes[0])
    made = type(like).__new__(type(like))
    nn.Module.__init__(made)
    vars(made).update({name: value for name, value in vars(like).items() if name not in vars(made)})
    for (table, name), value in parts.items():
        vars(made)[table][name] = value
    return made
