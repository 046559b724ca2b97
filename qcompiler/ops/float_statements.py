"""Statements of the user's code that run as they stand: functions that a trace makes of lines it cannot follow."""

from __future__ import annotations

import importlib
import linecache
import types
from dataclasses import dataclass
from typing import Any

MARK = "__qcompiler_statement__"


@dataclass(frozen=True)
class Statement:
    """What such a function is made of. `source`: its text; `name`, `owner`: its own name and that of the function it comes from;
    `module`: the module whose globals it reads; `file`, `line`: where the user wrote it."""

    source: str
    name: str
    owner: str
    module: str
    file: str
    line: int

    def function(self, names: dict[str, Any]) -> types.FunctionType:
        """The function, with these globals, which stay the user's own."""
        file = f"<statement of {self.owner}, line {self.line} of {self.file}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        code = compile(self.source, file, "exec", dont_inherit=True)
        inner = next(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
        made = types.FunctionType(inner, names, self.name)
        made.__module__, made.__qualname__ = self.module, f"{self.owner}.{self.name}"
        setattr(made, MARK, self)
        return made


class Pickled:
    """Holds such a function where pickle comes by: it writes down what the function is made of. Copies share the function."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function

    def __deepcopy__(self, memo: dict[int, Any]) -> Pickled:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (statement_of(self.function),)


def _unpickled(statement: Statement) -> Pickled:
    return Pickled(statement.function(vars(importlib.import_module(statement.module))))


def held(target: Any) -> Any:
    """A function as pickle can take it."""
    return Pickled(target) if statement_of(target) is not None else target


def given_back(target: object) -> Any:
    return target.function if isinstance(target, Pickled) else target


def statement_of(target: object) -> Statement | None:
    """What a function was made of, if it is such a statement."""
    found: Statement | None = getattr(target, "__dict__", {}).get(MARK) if isinstance(target, types.FunctionType) else None
    return found
