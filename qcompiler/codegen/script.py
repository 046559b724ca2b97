"""What torch.jit reads of a generated module: the TorchScript spelling behind its forward, packs and tensors as attributes.

Nothing is put in place of a module: with the hook `__prepare_scriptable__` torch.jit.script would change the user's model for good.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.codegen.bind import Bound, define, resolve
from qcompiler.codegen.emit import Dialect, Emitted, Emitter
from qcompiler.errors import ConfigError, Where


def attach_script(bound: Bound, callee: Callable[[str], Any] = resolve) -> Emitted:
    """Makes the TorchScript spelling of a bound forward its `__wrapped__`: torch.jit unwraps functions before it reads their source."""
    emitter = bound.emitter.spelled(Dialect.SCRIPT)
    emitted = emitter.emit()
    namespace = emitter.namespace(callee)
    bound.forward.__globals__.update(namespace)  # where torch.jit looks names up, also those of the unwrapped source
    bound.forward.__wrapped__ = define(emitted.source, namespace, f"script {emitter.program.name}")  # type: ignore[attr-defined]
    return emitted


def script_attributes(emitter: Emitter, packs: Mapping[str, Any], tensor: Callable[[str], Tensor]) -> dict[str, Any]:
    """What the TorchScript spelling reads from self. `packs`: results of the once calls; `tensor`: the tensor under a dotted name."""
    held = {alias: packs[name] for name, alias in emitter.packs.items()}
    held |= {alias: tensor(path).detach() for path, alias in emitter.tensors.items()}
    return {emitter.attribute(alias): value for alias, value in held.items()}


def unscriptable(module: nn.Module) -> list[str]:
    """Submodules that torch.jit cannot take: it reads them with getattr, and writes names that its parser does not read."""

    def taken(name: str) -> bool:
        spelled = name.isascii() and name.isprintable() and not keyword.iskeyword(name) and not set(name) & {'"', "\\"}
        return spelled and getattr(module, name, None) is module._modules[name]

    return [name for name in module._modules if not taken(name)]


def refuse_unscriptable(module: nn.Module, leaves: tuple[str, ...]) -> None:
    """Raises ConfigError for a float submodule that the TorchScript spelling has no way to."""
    for path in leaves:
        owner: nn.Module = module
        for name in path.split("."):
            if name in unscriptable(owner):
                raise ConfigError(f"TorchScript cannot reach a float submodule through the name {name!r}: a keyword, a character that "
                                  "torch.jit cannot write, or an attribute of compiled modules", code="script-name",
                                  where=Where(module_path=path), hint="give it another name")  # fmt: skip
            owner = owner._modules[name]  # type: ignore[assignment]


def listed(module: nn.Module) -> list[str]:
    """dir(module) without what torch.jit would copy to its script module and cannot, or should not: that would share the tensors."""
    hidden = {*unscriptable(module), *(n for n in module._buffers if hasattr(torch.jit.ScriptModule, n))}
    return [name for name in nn.Module.__dir__(module) if name not in hidden]
