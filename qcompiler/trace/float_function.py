"""The function that a part of the user's code becomes."""

from __future__ import annotations

import ast
import copy
import linecache
from collections.abc import Sequence
from typing import Any

import torch

from qcompiler.trace.float_arguments import Arguments
from qcompiler.trace.float_source import Function, Part, Replaced, expression_of, refused, statements_of, within_part
from qcompiler.trace.float_uses import Uses, uses_of
from qcompiler.trace.mode import Training
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.statements import tree_of


def source_of_part(part: Part) -> tuple[Function, list[ast.stmt], Uses]:
    tree = tree_of(part.file)
    assert tree is not None
    if part.kind == "expression":
        found = expression_of(tree, part)
        assert found is not None
        result: list[ast.stmt] = [ast.copy_location(ast.Return(found[1]), found[1])]
        return found[0], result, uses_of(found[0], result, True)
    at = statements_of(tree, part)
    assert at is not None
    function, block, index = at
    statements = within_part(block[index:], part)
    return function, statements, uses_of(function, statements, part.has_result)


def refused_part(part: Part) -> str | None:
    if part.is_followed:
        return None
    _, statements, uses = source_of_part(part)
    if part.kind == "expression" and (uses.changes or uses.rebinds):
        return "it changes a variable"
    return refused(statements)


def indent(file: str | None, line: int | None) -> int:
    text = linecache.getline(file, line) if file and line else ""
    return len(text) - len(text.lstrip())


def text_of_function(part: Part, statements: Sequence[ast.stmt], uses: Uses, arguments: Arguments) -> str:
    """The source of the function."""
    names = {int: "int", float: "float", bool: "bool", Training: "bool", str: "str"}
    typed = [f"{name}: {names[kind]}" if (kind := kind_of(value)) in names else name for name, value in arguments.values.items()]
    lines = [f"def statement_{part.first[0]}({', '.join(typed)}):"]
    lines += [f"    {name} = {how.format(name)}" for name in uses.changes if (how := _copying(arguments.values.get(name)))]
    replaced = [Replaced(dict(arguments.chains)).visit(copy.deepcopy(statement)) for statement in statements]
    lines += [f"    {line}" for statement in replaced for line in ast.unparse(ast.fix_missing_locations(statement)).splitlines()]
    lines += [] if part.has_result else [f"    return {', '.join(uses.gives) or None}"]
    return "\n".join(lines) + "\n"


def _copying(value: object) -> str:
    """How a function copies an argument that it may change."""
    kind = kind_of(value)
    if kind is torch.Tensor:
        return "{}.clone()"
    return f"{kind.__name__}({{}})" if kind in (list, dict, set) else ""


def kind_of(value: Any) -> type:
    if type(value) in (Proxy, Opaque):
        return torch.Tensor if isinstance(value.example, torch.Tensor) else type(value.example)
    return torch.Tensor if isinstance(value, torch.Tensor) else type(value)
