"""What torch.jit reads of a generated module: the TorchScript spelling behind its forward, packs and tensors as attributes.

Nothing is put in place of a module: with the hook `__prepare_scriptable__` torch.jit.script would change the user's model for good.
"""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.bind import Bound, define, resolve
from qcompiler.backends.torch.program.emit import Emitted, Emitter
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.script_types import check_result, named_class
from qcompiler.backends.torch.program.spell import Dialect
from qcompiler.errors import ConfigError, Where
from qcompiler.inputs.input_text import first_sentence
from qcompiler.ops.float_statements import statement_of
from qcompiler.ops.records import Maker


def attach_script(bound: Bound, callee: Callable[[str], object] = resolve) -> Emitted:
    """Makes the TorchScript spelling of a bound forward its `__wrapped__`: torch.jit unwraps functions before it reads their source."""
    emitter = bound.emitter.spelled(Dialect.SCRIPT)
    check_result(emitter.program.output)
    emitted = emitter.emit()
    fields = {c.op: c.args[1:3] for c in emitter.program.calls if c.op.startswith(registry.RECORD)}

    def scripted(op: str) -> object:
        found = callee(op)
        return named_class(found, *fields[op]) if isinstance(found, Maker) else found

    namespace = emitter.namespace(scripted)
    bound.forward.__globals__.update(namespace)  # where torch.jit looks names up, also those of the unwrapped source
    bound.forward.__wrapped__ = define(emitted.source, namespace, f"script {emitter.program.name}")  # type: ignore[attr-defined]
    return emitted


def script_attributes(emitter: Emitter, packs: Mapping[str, object], tensor: Callable[[str], Tensor]) -> dict[str, object]:
    """What the TorchScript spelling reads from self. `packs`: results of the once calls; `tensor`: the tensor under a dotted name."""
    held = {alias: packs[name] for name, alias in emitter.packs.items()}
    held |= {alias: tensor(path).detach() for path, alias in emitter.tensors.items()}
    return {emitter.attribute(alias): value for alias, value in held.items()}


def hidden(module: nn.Module, name: str) -> bool:
    """Whether an attribute of the module's class hides its submodule: torch.jit reads submodules with getattr."""
    return getattr(module, name, None) is not module._modules[name]


def unscriptable(module: nn.Module) -> list[str]:
    """Submodules that scripts go without: hidden ones, and scopes with names that torch.jit writes and cannot read."""

    def left_out(name: str, held: nn.Module) -> bool:
        writable = name.isascii() and name.isprintable() and not keyword.iskeyword(name) and not set(name) & {'"', "\\"}
        return hidden(module, name) or (not writable and all(getattr(m, "_is_scope", False) for m in held.modules()))

    return [name for name, held in module._modules.items() if held is not None and left_out(name, held)]


def refuse_unscriptable(module: nn.Module, program: Program, externals: Mapping[str, object]) -> None:
    """Raises ConfigError for what a program calls and torch.jit cannot read or compile."""
    _refuse_hidden(module, program.leaves)
    _refuse_statements(program, externals)
    _refuse_classes({name: externals[name] for name in program.externals})


def _refuse_hidden(module: nn.Module, leaves: tuple[str, ...]) -> None:
    """Raises ConfigError for a float submodule that torch.jit cannot read."""
    for path in leaves:
        name = path.partition(".")[0]
        if hidden(module, name):
            raise ConfigError(f"torch.jit cannot reach a float submodule named {name!r}: compiled modules have an attribute of that name",
                              code="script-name", where=Where(module_path=path), hint="give the submodule another name")  # fmt: skip


def _refuse_classes(externals: Mapping[str, object]) -> None:
    """Raises ConfigError for a class that forward makes (a dataclass, a result of transformers) and torch.jit cannot compile."""
    for made in externals.values():
        if not isinstance(made, type) or hasattr(made, "_fields"):
            continue
        try:
            torch.jit.script(made)
            for item in dataclasses.fields(made) if dataclasses.is_dataclass(made) else ():
                if item.default is None and item.type in (Tensor, "Tensor", "torch.Tensor"):
                    raise TypeError(f"{item.name} may be None, which its type {item.type} does not say")
        except Exception as error:  # of any kind: OSError where it finds no source
            text = f"torch.jit cannot compile {made.__name__}, which forward makes: {type(error).__name__}: {first_sentence(error)}"
            raise ConfigError(
                text,
                code="script-class",
                where=Where(source=f"{made.__module__}.{made.__qualname__}"),
                hint="return a tuple, a dict or a NamedTuple; qcompiler.save takes the module as it is",
            ) from error


def _refuse_statements(program: Program, externals: Mapping[str, object]) -> None:
    """Raises ConfigError for a statement of the user's that runs as it stands, and that torch.jit cannot compile."""
    for name in program.externals:
        statement = statement_of(externals[name])
        if statement is None:
            continue
        try:
            if any(call.op == registry.SUBMODULE for call in program.calls):
                raise TypeError("it calls a module, which is no argument of a function there")
            torch.jit.script(externals[name])
        except Exception as error:
            line = f"{statement.file}:{statement.line}"
            text = f"torch.jit cannot compile a statement that runs as it stands: {type(error).__name__}: {first_sentence(error)}"
            raise ConfigError(
                text,
                code="script-statement",
                where=Where(source=line),
                hint="move it into a submodule that torch.jit can compile; qcompiler.save takes the module as it is",
            ) from error


def listed(module: nn.Module) -> list[str]:
    """dir(module) without what torch.jit would copy to its script module and cannot, or should not: that would share the tensors."""
    left_out = {*unscriptable(module), *(n for n in module._buffers if hasattr(torch.jit.ScriptModule, n))}
    return [name for name in nn.Module.__dir__(module) if name not in left_out]
