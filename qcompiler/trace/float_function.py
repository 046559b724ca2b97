"""The function that a part of the user's code becomes."""

from __future__ import annotations

import ast
import copy
import linecache
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qcompiler.trace import places
from qcompiler.trace.float_arguments import Arguments, free
from qcompiler.trace.float_source import Function, Part, Replaced, expression_of, refused, statements_of, within_part
from qcompiler.trace.float_uses import Uses, uses_of
from qcompiler.trace.mode import Training
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.syntax import tree_of


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
    if part.kind == "expression" and uses.rebinds:
        return "it assigns a variable"
    return refused(statements)


def indent(file: str | None, line: int | None) -> int:
    text = linecache.getline(file, line) if file and line else ""
    return len(text) - len(text.lstrip())


def text_of_function(part: Part, statements: Sequence[ast.stmt], uses: Uses, held: Sequence[str], arguments: Arguments) -> str:
    """The source of the function. `held`: variables whose tensors it gives as well, as it leaves them, whatever they hold then."""
    names = {int: "int", float: "float", bool: "bool", Training: "bool", str: "str"}
    typed = [f"{name}: {names[kind]}" if (kind := kind_of(value)) in names else name for name, value in arguments.values.items()]
    lines = [f"def statement_{part.first[0]}({', '.join(typed)}):"]
    lines += [f"    {name} = {how.format(name)}" for name in uses.changes if (how := _copying(arguments.values.get(name)))]
    replaced = [Replaced(dict(arguments.chains)).visit(copy.deepcopy(statement)) for statement in statements]
    taken = {node.id for statement in replaced for node in ast.walk(statement) if isinstance(node, ast.Name)} | set(arguments.values)
    kept = [free(f"{name}_given", taken) for name in held]
    lines += [f"    {new} = {name}" for new, name in zip(kept, held, strict=True)]
    replaced = [_Returning(kept).visit(statement) for statement in replaced] if kept else replaced
    lines += [f"    {line}" for statement in replaced for line in ast.unparse(ast.fix_missing_locations(statement)).splitlines()]
    lines += (
        [] if part.has_result and not kept else [f"    return {', '.join([*(['None'] if part.has_result else uses.gives), *kept]) or None}"]
    )
    return "\n".join(lines) + "\n"


class _Returning(ast.NodeTransformer):
    """Lets the returns of a function give variables besides."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def visit_Return(self, node: ast.Return) -> ast.AST:
        value = node.value or ast.Constant(None)
        return ast.Return(ast.Tuple([value, *(ast.Name(name, ast.Load()) for name in self.names)], ast.Load()))

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node


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


def held_by(part: Part, uses: Uses, variables: Mapping[str, object]) -> list[str]:
    """The variables whose tensors the statement may change while nothing that it gives is sure to be them."""
    changed = [name for name in uses.changes if isinstance(variables.get(name), torch.Tensor)]
    return [name for name in changed if part.has_result or name in uses.rebinds]


def is_harmless(name: str, variables: Mapping[str, object]) -> bool:
    """Whether what a name stands for in the user's code changes nothing that it is given; a run on copies shows where it does."""
    frame = places.user_frame(sys._getframe(1))
    assert frame is not None
    function = variables.get(name, frame.f_globals.get(name))
    return isinstance(function, nn.Module) or str(getattr(function, "__module__", "")).split(".")[0] == "torch"
