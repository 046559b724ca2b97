"""Objects of a compile as JSON data and tensors, without pickle, and back.

What is not plain (functions, classes, objects of any class) is written by name, `package.module:Class.attribute`, with its
attributes as data. Reading takes the things behind the names from a table that the caller hands in: data imports nothing.

| JSON | stands for |
|---|---|
| what files/values.py writes | numbers, text, dtypes, slices, tuples, lists |
| {"node": name} | another node of the graph |
| {"array": [code, numbers]} | an array.array of numbers |
| {"call": name} | an operation of the compiler's registry |
| {"name": key} | a class, function or module-level object; a statement of the user's code, whose text the script has |
| {"tensor": key} | a tensor of the .safetensors file |
| {"object": class, "state": {...}} | an object with those attributes |
| {"module": class, ...} | an nn.Module with its tensors, submodules and plain attributes |
| {"method": name, "of": ...} | a method of an object |
| {"class": key} | a module class that need not be imported: its name is all that passes look at |
| {"shared": index} | one object that is referred to more than once |
| {"lost": text} | what could not be written |
"""

from __future__ import annotations

import array
import enum
import functools
import keyword
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from qcompiler.backends.torch.program import registry
from qcompiler.errors import QCompilerError
from qcompiler.files.safetensors import SAFETENSORS
from qcompiler.files.values import to_json
from qcompiler.ops.float_statements import Statement, statement_of
from qcompiler.ops.table import OPS, Table
from qcompiler.qat.ops import is_for_training

PLAIN = (type(None), bool, int, float, str, complex, slice, torch.dtype, torch.device, torch.memory_format, torch.layout)


def find_name(thing: object) -> str | None:
    """`package.module:qualname` of a class, function or module-level object; None where no such name leads to it."""
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module == "__main__" and not _has_file():
        return None
    if isinstance(module, str) and isinstance(qualname, str) and _importable(module, qualname) and look_up(f"{module}:{qualname}") is thing:
        return f"{module}:{qualname}"
    if isinstance(thing, (type(None), bool, int, float, str)):
        return None
    for name, found in list(sys.modules.items()):
        for key, value in list(getattr(found, "__dict__", {}).items()):
            if value is thing and _importable(name, key) and not name.startswith("_"):
                return f"{name}:{key}"
    return None


def _has_file() -> bool:
    """Whether what runs is a script, and no notebook or prompt."""
    return hasattr(sys.modules["__main__"], "__file__")


def _importable(module: str, path: str) -> bool:
    """Whether a script can import the module and read the path: both are dotted names."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in f"{module}.{path}".split("."))


def look_up(name: str) -> object:
    """What the name stands for among the modules that are loaded, None where nothing does."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


class Writer:
    """Makes data; `tensors`, `names` and `lost` collect what it refers to and what it had to leave out; `statements`: of the names,
    those of statements of the user's code."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.names: set[str] = set()
        self.statements: dict[str, Statement] = {}
        self.lost: list[str] = []
        self.shared: list[Any] = []
        self.scope = ""  # dotted name of the module that is being written
        self.stubs: Callable[[type], bool] = lambda cls: False  # which classes are written by name alone
        self._keys: dict[int, str] = {}
        self._index: dict[int, int] = {}
        self._held: list[Any] = []  # so that an id stays its object's own

    def write(self, value: object) -> Any:
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, PLAIN):
            return self._plain(value)
        if isinstance(value, (list, tuple)):
            items = [self.write(v) for v in value]
            if hasattr(value, "_fields"):
                return {"namedtuple": self.name(type(value)), "items": items}
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, (dict, Mapping)):
            return {"dict": [[self.write(k), self.write(v)] for k, v in value.items()]}
        if isinstance(value, (set, frozenset)):
            return {"set": sorted((self.write(v) for v in value), key=repr)}
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        return self._thing(value)

    def _plain(self, value: object) -> object:
        try:
            if isinstance(value, slice):
                return {"slice": [self.write(v) for v in (value.start, value.stop, value.step)]}
            return to_json(value)
        except QCompilerError:
            return self._lose(value)

    def _thing(self, value: object) -> object:
        if value is Ellipsis:
            return to_json(value)
        if isinstance(value, torch.qscheme):
            return {"qscheme": str(value).removeprefix("torch.")}
        if isinstance(value, enum.Enum):
            return {"enum": self.name(type(value)), "value": value.name}
        if isinstance(value, array.array):
            return {"array": [value.typecode, self.write(value.tolist())]}
        if isinstance(value, functools.partial):
            return {"partial": [self.write(value.func), self.write(value.args), self.write(value.keywords)]}
        if isinstance(value, types.MethodType):
            return {"method": value.__name__, "of": self.write(value.__self__)}
        if isinstance(value, type) or callable(getattr(value, "__get__", None)) or type(value).__module__ in ("builtins", "torch._ops"):
            return self.callable(value)
        if id(value) not in self._index:
            data = self._object(value)
            if set(data) & {"name", "lost"}:
                return data
            self._index[id(value)] = len(self.shared)
            self._held.append(value)
            self.shared.append(data)
        return {"shared": self._index[id(value)]}

    def callable(self, value: object) -> Any:
        """A call target, class or function."""
        known, statement = registry.name_of(value), statement_of(value)
        if statement is not None:
            return self._statement(statement)
        return {"call": known} if known is not None else self._named(value)

    def _statement(self, statement: Statement) -> object:
        name = f"{statement.module}:{statement.owner}.{statement.name}"
        if not _importable(statement.module, statement.name) or (statement.module == "__main__" and not _has_file()):
            return self._lose(f"function {statement.owner}.{statement.name}")
        while self.statements.setdefault(name, statement) is not statement:
            name += "+"  # one line with arguments of other types
        self.names.add(name)
        return {"name": name}

    def _named(self, value: object) -> Any:
        if isinstance(value, type) and issubclass(value, nn.Module) and self.stubs(value):
            return {"class": f"{value.__module__}:{value.__qualname__}"}
        name = find_name(value)
        if name is None:
            return self._lose(value)
        self.names.add(name)
        return {"name": name}

    def name(self, thing: Any) -> str:
        """The name of a class, made up where it has none that can be imported."""
        found = self._named(thing)
        return str(found.get("name") or found.get("class") or f"{thing.__module__}:{thing.__qualname__}")

    def _object(self, value: object) -> Any:
        if isinstance(value, Table):
            return self._table(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        state = getattr(value, "__dict__", None)
        if state is None or isinstance(value, type) or find_name(type(value)) is None:
            return self._named(value)
        checkpoint = len(self.lost)
        data = {"object": self.name(type(value)), "state": {k: self.write(v) for k, v in state.items()}}
        if len(self.lost) > checkpoint and find_name(value) is not None:  # its parts have no names, but it has one itself
            del self.lost[checkpoint:]
            return self._named(value)
        return data

    def _table(self, table: Table) -> object:
        """The op table as what differs from the default one. `trains`: and has the ops of a model in training."""
        own = [row for row in table.rows.values() if OPS.rows.get(row.name) is not row and not is_for_training(row)]
        gone = [name for name, row in OPS.rows.items() if table.rows.get(name) is not row]
        return {"table": [self._named(row) for row in own], "without": gone, "trains": any(map(is_for_training, table.rows.values()))}

    def module(self, module: nn.Module) -> Any:
        """A module by its class, tensors, submodules and those attributes that are data."""
        plain = {k: v for k, v in module.__dict__.items() if k not in nn.Module().__dict__}
        return {
            "module": self.name(type(module)),
            "training": module.training,
            "state": {k: self.write(v) for k, v in plain.items()},
            "parameters": self._scoped(module._parameters),
            "buffers": self._scoped(module._buffers),
            "modules": self._scoped(module._modules),
        }

    def _scoped(self, members: Mapping[str, object]) -> dict[str, object]:
        outer, found = self.scope, {}
        for name, value in members.items():
            self.scope = f"{outer}.{name}".lstrip(".")
            found[name] = self.write(value)
        self.scope = outer
        return found

    def tensor(self, value: torch.Tensor) -> Any:
        """A tensor, under the dotted name that it has in the model where that is free."""
        if str(value.dtype).removeprefix("torch.") not in SAFETENSORS or value.layout is not torch.strided:
            return self._lose(f"a {value.dtype} tensor")
        if id(value) not in self._keys:
            name = self.scope if self.scope and self.scope not in self.tensors else f"{self.scope}#{len(self.tensors)}"
            self._keys[id(value)] = name
            self.tensors[name] = value
        return {"tensor": self._keys[id(value)]}

    def _lose(self, value: object) -> object:
        text = value if isinstance(value, str) else f"{type(value).__name__} {getattr(value, '__qualname__', '')}".strip()
        self.lost.append(text)
        return {"lost": text}
