"""What stands under the parts of the user's dotted names in a compiled module: scopes, which hold tensors and have no forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qcompiler.backends.torch.program.script import listed, unscriptable
from qcompiler.errors import ConfigError
from qcompiler.executable.states import STATES, KeepsState
from qcompiler.executable.tensors import is_path
from qcompiler.ir.items import DictItems, ListItems


class Scope(KeepsState):
    """Holds tensors and submodules under one part of the user's dotted names; has no forward of its own."""

    __jit_unused_properties__ = ["__jit_ignored_attributes__"]
    _fixed_dtypes = True
    _is_scope = True

    def _resizes(self, name: str, value: Tensor) -> bool:
        return name in self.__dict__.get(STATES, ())  # what forward keeps may have another size after each call

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if not prefix:
            raise ConfigError("a part of an int8 module cannot load a state_dict: the packed weights are the module's", code="part-state",
                              hint="call load_state_dict of the whole module, with strict=False for a part of the names")  # fmt: skip
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """Tensors: a script has them in its packs, or as attributes of the CompiledModule."""
        return [*self._buffers, *unscriptable(self), STATES]

    def __dir__(self) -> list[str]:
        return listed(self)


class ListScope(ListItems, Scope):
    """The place of a Sequential, ModuleList or ParameterList."""


class DictScope(DictItems, Scope):
    """The place of a ModuleDict or ParameterDict."""


def place(module: nn.Module, path: str, value: Tensor | nn.Module) -> None:
    """Puts a buffer or submodule under a dotted name, with scopes on the way. Raises ConfigError if the name is taken."""
    *scopes, last = path.split(".")
    if not is_path(path):
        raise ConfigError(f"{path!r:.200} cannot be a name in a module", code="codegen-name")
    for part in scopes:
        module = module._modules.setdefault(part, Scope()) or Scope()
    if isinstance(value, nn.Module):
        held = module._modules.get(last)
        if held is not None and (held._buffers or held._modules):
            raise ConfigError(f"submodule {path!r} holds tensors of the program", code="codegen-name")
        module._modules[last] = value
    elif module._parameters.get(last) is None:  # else a leaf module owns it
        module._buffers[last] = value
