"""scriptable: the twin of a CompiledModule that torch.jit.script compiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from qcompiler.codegen.bind import define
from qcompiler.codegen.emit import Dialect, Emitter

if TYPE_CHECKING:
    from qcompiler.codegen.module import CompiledModule


class Twin(nn.Module):
    """Packs and tensors as attributes, a forward that names packets of torch.ops: TorchScript knows no bound overloads."""


def scriptable(module: CompiledModule) -> nn.Module:
    """A module of equal results that torch.jit.script accepts. It shares tensors and leaf modules with `module`."""
    from qcompiler.codegen.module import find, find_submodule

    emitter = Emitter(module.program, *module._qparams(), Dialect.SCRIPT)
    emitted = emitter.emit()
    namespace: dict[str, Any] = emitter.namespace(module._resolve)
    forward = define(emitted.source, namespace, f"script {module.program.name}")
    twin: nn.Module = type(module.program.name, (Twin,), {"forward": forward, "__module__": Twin.__module__})()
    for name, alias in emitted.packs.items():
        setattr(twin, alias, module.__dict__[f"_{_bound_pack(module, name)}"])
    for path, alias in emitted.tensors.items():
        twin.register_buffer(alias, find(module, path).detach())
    for path in module.program.leaves:
        twin.add_module(emitter.submodule(path).removeprefix("self."), find_submodule(module, path))
    twin.train(module.training)
    return twin


def _bound_pack(module: CompiledModule, name: str) -> str:
    return Emitter(module.program, *module._qparams(), Dialect.BOUND).packs[name]
