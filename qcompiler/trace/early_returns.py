"""Conditions on data under which a function returns early, as its text says: what it does up to that return, and what must not follow.

y = f(x)
if y.max() > 1:        the way: `return g(y)`
    return g(y)
return h(y)            the function goes on where the condition does not hold
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from qcompiler.trace.statements import MUTATORS, has_no_other_effect, is_plain, tested_at
from qcompiler.trace.syntax import Position, span

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_LOOPS = (ast.For, ast.While, ast.AsyncFor)


@dataclass(frozen=True)
class EarlyReturn:
    """`answer`: the truth value of the condition under which the function goes on; `way`: what it does else, up to its return;
    `first`, `last`: of the function."""

    answer: bool
    way: tuple[ast.stmt, ...]
    first: Position
    last: Position


def early_return_at(frame: FrameType) -> EarlyReturn | None:
    """The early return that a frame is about to decide on; None where there is none, or one with other effects."""
    found = tested_at(frame)
    if found is None:
        return None
    function, _, statement, negated = found
    return _early_return(function, statement, negated) if isinstance(statement, ast.If) else None


def returns_early(function: ast.AST, statement: ast.If) -> bool:
    """Whether a condition decides on an early return that both ways can be computed of."""
    return _early_return(function, statement, False) is not None


def _early_return(function: ast.AST, statement: ast.If, negated: bool) -> EarlyReturn | None:
    if not isinstance(function, ast.FunctionDef) or _reaches_out(function, statement):
        return None
    first, last = span(function)
    for way, holds in ((statement.body, True), (statement.orelse, False)):
        if way and _ends(way):
            return EarlyReturn(holds is negated, tuple(way), first, last)
    return None


def _ends(statements: Sequence[ast.stmt]) -> bool:
    """Whether statements do no more than compute a value and return it, whichever way they go."""
    *before, last = statements
    if isinstance(last, ast.Return):
        done = last.value is None or is_plain(last.value)
    else:
        done = isinstance(last, ast.If) and bool(last.orelse) and _ends(last.body) and _ends(last.orelse)
    return done and all(has_no_other_effect(s) or (isinstance(s, ast.If) and not s.orelse and _ends(s.body)) for s in before)


def _reaches_out(function: ast.FunctionDef, statement: ast.If) -> bool:
    """Whether what may run behind a statement changes more than variables and tensors: it must not where the function has returned."""
    loops = [span(n)[0] for n in own_nodes(function) if isinstance(n, _LOOPS) and span(n)[0] <= span(statement)[0] < span(n)[1]]
    start = min([span(statement)[0], *loops])
    stored = {n.id for n in own_nodes(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return any(_is_effect(node, stored) for node in own_nodes(function) if _begins(node) >= start)


def _begins(node: ast.AST) -> Position:
    return span(node)[0] if isinstance(node, (ast.stmt, ast.expr)) else (0, 0)


def _is_effect(node: ast.AST, stored: set[str]) -> bool:
    if isinstance(node, (ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.Try)):
        return True
    if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
        return isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        owner = node.func.value
        return not (isinstance(owner, ast.Name) and owner.id in stored)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MUTATORS


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Every node of a function that stands in no other function inside."""
    stack = list(ast.iter_child_nodes(function))
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, _SCOPES):
            stack.extend(ast.iter_child_nodes(node))
