"""Functions of the user's with statements replaced, for the time of a trace: each asks, where the statement stood, who runs it.

if <switch>.is_traced():
    [x] = <switch>.run(locals())
else:
    while x.abs().max() > 1:
        x = x / 2
"""

from __future__ import annotations

import ast
import contextlib
import copy
import gc
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qcompiler.trace.float_source import Part, expression_of, statements_of, within_part
from qcompiler.trace.float_uses import uses_of
from qcompiler.trace.statements import tree_of

_Key = tuple[str, int]  # name and first line of a function


class Switch:
    """Stands in the code of a function as a constant. `run`: of the variables, what the statement gives."""

    def __init__(self, part: Part, is_traced: Callable[[], bool], run: Callable[[Part, dict[str, Any]], object]) -> None:
        self.part, self.is_traced, self._run = part, is_traced, run

    def run(self, variables: dict[str, Any]) -> Any:
        return self._run(self.part, variables)


@contextlib.contextmanager
def rewritten(switches: Sequence[Switch]) -> Iterator[None]:
    """Let the functions with these parts ask the switches. Other threads that call them run what stands there."""
    files: dict[str, list[Switch]] = {}
    for switch in switches:
        files.setdefault(switch.part.file, []).append(switch)
    codes = {file: _codes(file, own) for file, own in files.items()}
    changed: list[tuple[types.FunctionType, types.CodeType]] = []
    try:
        for function in _functions(codes):
            old = function.__code__
            new = codes[old.co_filename].get((old.co_name, old.co_firstlineno))
            if new is not None and new.co_freevars == old.co_freevars:
                changed.append((function, old))
                function.__code__ = new
        yield
    finally:
        for function, old in changed:
            function.__code__ = old


def _functions(codes: Mapping[str, object]) -> list[types.FunctionType]:
    if not codes:
        return []
    return [found for found in gc.get_objects() if type(found) is types.FunctionType and found.__code__.co_filename in codes]


def _codes(file: str, switches: Sequence[Switch]) -> dict[_Key, types.CodeType]:
    """The new code of each function that has a part, and of the functions around it, which make it."""
    tree = copy.deepcopy(tree_of(file))
    assert tree is not None
    names: dict[str, Switch] = {}
    for switch in switches:
        names[f"qcompiler float part {len(names)}"] = switch
        _replace(tree, switch.part, f"qcompiler float part {len(names) - 1}")
    whole = _with_switches(compile(tree, file, "exec", dont_inherit=True), names)
    found: dict[_Key, types.CodeType] = {}
    _collect(whole, {(s.part.name, s.part.line) for s in switches}, found)
    return found


def _replace(tree: ast.AST, part: Part, name: str) -> None:
    if part.kind == "expression":
        _Expression(tree, part, name)
        return
    at = statements_of(tree, part)
    assert at is not None
    function, block, index = at
    old = within_part(block[index:], part)
    uses = uses_of(function, old, part.has_result)
    test, call = _calls(name)
    new: ast.stmt
    if part.has_result:
        new = ast.Return(call)
    elif uses.gives:
        new = ast.Assign([ast.List([ast.Name(n, ast.Store()) for n in uses.gives], ast.Store())], call)
    else:
        new = ast.Expr(call)
    made = ast.If(test, [new], old)
    _place((made, *ast.walk(new), *ast.walk(test)), old[0])
    block[index : index + len(old)] = [made]


def _calls(name: str) -> tuple[ast.expr, ast.expr]:
    return tuple(ast.parse(f"{name!r}.{text}", mode="eval").body for text in ("is_traced()", "run(locals())"))  # type: ignore[return-value]


def _place(nodes: Iterable[ast.AST], first: ast.expr | ast.stmt) -> None:
    """New nodes stand on the first line of what they replace, where the user looks for it."""
    for node in nodes:
        ast.copy_location(node, first)
        if isinstance(node, (ast.expr, ast.stmt)):
            node.end_lineno, node.end_col_offset = first.lineno, first.col_offset + 1


class _Expression(ast.NodeTransformer):
    """Puts `<switch>.run(locals()) if <switch>.is_traced() else <expression>` in place of an expression."""

    def __init__(self, tree: ast.AST, part: Part, name: str) -> None:
        at = expression_of(tree, part)
        assert at is not None
        self.wanted, self.name = at[1], name
        self.visit(tree)

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.wanted:
            return self.generic_visit(node)
        test, call = _calls(self.name)
        made = ast.IfExp(test, call, self.wanted)
        _place((made, *ast.walk(test), *ast.walk(call)), self.wanted)
        return made


def _with_switches(code: types.CodeType, names: Mapping[str, Switch]) -> types.CodeType:
    """A code with the switches in place of the texts that name them."""
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constant = _with_switches(constant, names)
        constants.append(names.get(constant, constant) if isinstance(constant, str) else constant)
    return code.replace(co_consts=tuple(constants))


def _collect(code: types.CodeType, wanted: set[_Key], found: dict[_Key, types.CodeType]) -> bool:
    """Note the codes of functions that are wanted or hold one that is."""
    has = False
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inside = _collect(constant, wanted, found)
            key = (constant.co_name, constant.co_firstlineno)
            if inside or key in wanted:
                found[key] = constant
                has = True
    return has
