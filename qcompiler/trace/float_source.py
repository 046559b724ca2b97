"""The statement around a line that cannot be followed: where it stands, what it reads and changes, and as a function of its own.

while x.abs().max() > 1:              def statement_7(x):
    x = x / 2                             while x.abs().max() > 1:
                                              x = x / 2
                                          return x
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal

from qcompiler.trace.early_returns import returns_early
from qcompiler.trace.statements import is_plain
from qcompiler.trace.syntax import Position, inside_functions, lambdas_of, span, tree_of
from qcompiler.trace.watch import QUESTIONS

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
LAMBDA = "<lambda>"
NESTED = 6  # expressions around a place that are tried: float(np.mean(x.numpy()) * 2) has five
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
LOOPS = (ast.For, ast.While, ast.AsyncFor)
_REFUSED: tuple[tuple[tuple[type, ...], str], ...] = (
    ((ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith), "it is part of a generator or a coroutine"),
    ((ast.Global, ast.Nonlocal), "it changes a variable of another function"),
    ((ast.Import, ast.ImportFrom), "it imports a module"),
    ((ast.Delete,), "it deletes a variable"),
    ((ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef), "it defines a function or a class"),
)


@dataclass(frozen=True)
class Part:
    """Statements of one function, from `first` to `last`, or an expression in one. `name`, `line`, `column`: of the function, as
    `key_of` says."""

    file: str
    name: str
    line: int
    column: int
    first: Position
    last: Position
    kind: Literal["expression", "statements", "end", "returns", "choice", "logic"]

    # "end": the function ends with them. The last three do not run as they stand: "returns": the whole function, whose early returns are
    # computed beside its end; "choice": `a if condition else b`, of which both values are; "logic": `a and b` as a condition.

    @property
    def has_result(self) -> bool:
        """Whether it gives one value, and no variables."""
        return self.kind != "statements"

    @property
    def key(self) -> tuple[str, int, int]:
        return self.name, self.line, self.column

    @property
    def is_followed(self) -> bool:
        """Whether what stands there is traced, both ways."""
        return self.kind in ("returns", "choice", "logic")

    def covers(self, other: Part) -> bool:
        if self.is_followed:
            return self == other
        return (self.file, self.key) == (other.file, other.key) and self.first <= other.first <= self.last


def key_of(function: Function) -> tuple[str, int, int]:
    """What tells a function from the others of its file: what its code has as name and as first line, which is that of the first
    decorator. Of lambdas there may be several in a line: their column besides, -1 for others."""
    if isinstance(function, ast.Lambda):
        return LAMBDA, function.lineno, function.col_offset
    return function.name, min([function.lineno, *(d.lineno for d in function.decorator_list)]), -1


def key_of_code(code: CodeType) -> tuple[str, int, int]:
    """The same of a code: a lambda's is the innermost one around all that it runs."""
    if code.co_name != LAMBDA:
        return code.co_name, code.co_firstlineno, -1
    tree = tree_of(code.co_filename)
    at = [(line, column) for line, _, column, end in code.co_positions() if line is not None and column is not None and column != end]
    found = lambdas_of(tree).get(code.co_firstlineno, []) if tree is not None and at else []
    around = [n for n in found if span(n)[0] <= min(at) and max(at) < span(n)[1]]
    return LAMBDA, code.co_firstlineno, max((n.col_offset for n in around), default=-1)


def function_at(file: str, place: Position, codes: Sequence[CodeType]) -> Function | None:
    """The innermost function around a place, if its code is among those that run."""
    tree, found = tree_of(file), None
    for function, node in inside_functions(tree) if tree is not None else ():
        if node is function and isinstance(node, Function) and span(node)[0] <= place < span(node)[1]:
            found = node if found is None or span(node)[0] > span(found)[0] else found
    known = {(code.co_name, code.co_firstlineno) for code in codes if code.co_filename == file}
    return found if found is not None and key_of(found)[:2] in known else None


def followed_at(file: str, function: Function, at: tuple[Position, Position]) -> Iterator[Part]:
    """What has to be traced both ways around a condition, the innermost first."""
    name, place = (file, *key_of(function)), at[0]
    if any(isinstance(n, ast.Try) and _is_guarded(n, place) for n in ast.walk(function)):
        return
    tests = [n for n in ast.walk(function) if isinstance(n, (ast.If, ast.IfExp, ast.Assert)) and (_covers(n.test, place) or at == span(n))]
    for node in reversed(tests):
        logic = [n for n in ast.walk(node.test) if isinstance(n, ast.BoolOp) and (_covers(n, place) or at == span(node))]
        if logic and all(map(is_plain, logic)):
            yield Part(*name, *span(logic[0]), "logic")
        if isinstance(node, ast.IfExp) and is_plain(node.body) and is_plain(node.orelse):
            yield Part(*name, *span(node), "choice")
    if any(isinstance(node, ast.If) and returns_early(function, node) for node in tests):
        yield Part(*name, *span(function), "returns")


def _covers(node: ast.expr, place: Position) -> bool:
    return span(node)[0] <= place < span(node)[1]


def parts_at(file: str, function: Function, at: tuple[Position, Position], decides: bool) -> Iterator[Part]:
    """What may stand alone around a place, the smallest first: expressions, then statements. `decides`: a truth value is asked for."""
    chain = list(_chain(function, at[0]))
    guarded = max((i + 1 for i, (block, index, _) in enumerate(chain) if _is_guarded(block[index], at[0])), default=0)
    for first, last in _expressions(function, at, decides) if not guarded else ():
        yield Part(file, *key_of(function), first, last, "expression")
    for block, index, in_loop in reversed(chain[: guarded or None]):
        statement = block[index]
        leaves = _leaves(statement)
        if "loop" in leaves and in_loop:
            continue  # it ends or goes on with the loop around it
        if "return" not in leaves:
            yield _part(file, function, [statement], "statements")
        elif isinstance(statement, ast.Return):
            yield _part(file, function, [statement], "end")
    if chain:
        block, index, _ = chain[0]
        rest = block[index:]
        if any("return" in _leaves(statement) for statement in rest):
            yield _part(file, function, rest, "end")


def _is_guarded(statement: ast.stmt, place: Position) -> bool:
    """Whether an exception at a place is caught in this statement: the graph has no such thing, so the part has to have it."""
    if not isinstance(statement, ast.Try) or not statement.handlers:
        return False
    return any(span(inner)[0] <= place < span(inner)[1] for inner in statement.body)


def _part(file: str, function: Function, statements: Sequence[ast.stmt], kind: Literal["statements", "end"]) -> Part:
    return Part(file, *key_of(function), span(statements[0])[0], span(statements[-1])[1], kind)


def _expressions(function: Function, at: tuple[Position, Position], decides: bool) -> list[tuple[Position, Position]]:
    """The spans of the expressions around a place, the smallest first; of a truth value only those that it chooses in."""
    around = [node for node in ast.walk(function) if isinstance(node, ast.expr) and span(node)[0] <= at[0] and at[1] <= span(node)[1]]
    if decides:
        around = around[: max((i + 1 for i, node in enumerate(around) if isinstance(node, (ast.IfExp, ast.BoolOp))), default=0)]
    values = [n for n in around if isinstance(n, (ast.Call, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.BoolOp,
                                                  ast.ListComp, ast.DictComp))]  # fmt: skip
    return list(dict.fromkeys(map(span, reversed(values))))[:NESTED]


def _chain(function: Function, place: Position) -> Iterator[tuple[list[ast.stmt], int, bool]]:
    """The blocks around a place from the outermost, each with the statement in it, and whether that stands in a loop."""
    node: ast.AST = function
    in_loop = False
    while True:
        found = next(((block, index) for block in _blocks(node) for index, statement in enumerate(block)
                      if span(statement)[0] <= place < span(statement)[1]), None)  # fmt: skip
        if found is None:
            return
        yield (*found, in_loop)
        node = found[0][found[1]]
        if isinstance(node, _SCOPES):
            return
        in_loop = in_loop or isinstance(node, LOOPS)


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for _, value in ast.iter_fields(node):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield value
        elif isinstance(value, list):  # except clauses, cases of a match
            for item in value:
                if isinstance(item, (ast.ExceptHandler, ast.match_case)):
                    yield item.body


def _leaves(statement: ast.AST, in_loop: bool = False) -> set[str]:
    """How control may leave a statement but at its end: "return", or "loop" (a break or continue of a loop around it)."""
    if isinstance(statement, ast.Return):
        return {"return"}
    if isinstance(statement, (ast.Break, ast.Continue)):
        return set() if in_loop else {"loop"}
    found: set[str] = set()
    for name, value in ast.iter_fields(statement):
        inside = in_loop or (isinstance(statement, LOOPS) and name == "body")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, (ast.stmt, ast.excepthandler, ast.match_case)) and not isinstance(item, _SCOPES):
                found |= _leaves(item, inside)
    return found


def function_of(tree: ast.AST, part: Part) -> Function | None:
    """In a tree of the file: the function of a part."""
    return next((n for n in ast.walk(tree) if isinstance(n, Function) and key_of(n) == part.key), None)


def expression_of(tree: ast.AST, part: Part) -> tuple[Function, ast.expr] | None:
    """In a tree of the file: the function and the expression of a part."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and key_of(node) == part.key:
            found = [n for n in ast.walk(node) if isinstance(n, ast.expr) and span(n) == (part.first, part.last)]
            return (node, found[0]) if found else None
    return None


def statements_of(tree: ast.AST, part: Part) -> tuple[Function, list[ast.stmt], int] | None:
    """In a tree of the file: the function, the block and the index of the first statement of a part."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and key_of(node) == part.key:
            for inner in ast.walk(node):
                for block in _blocks(inner):
                    for index, statement in enumerate(block):
                        if span(statement)[0] == part.first:
                            return node, block, index
    return None


def within_part(statements: Sequence[ast.stmt], part: Part) -> list[ast.stmt]:
    return [statement for statement in statements if part.first <= span(statement)[0] < part.last]


_ADDRESSES = frozenset(
    ("as_strided", "as_strided_", "as_strided_scatter", "data_ptr", "storage", "untyped_storage", "storage_offset", "_base")
)


def refused(statements: Sequence[ast.stmt]) -> str | None:
    """Why statements cannot be a function of their own, as their text says."""
    for node in walk(statements):
        for kinds, why in _REFUSED:
            if isinstance(node, kinds):
                return why
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("super", "locals", "exec", "eval"):
            return f"it calls {node.func.id}()"
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            return "it assigns an attribute"
        if isinstance(node, (ast.Attribute, ast.Name)) and (name := getattr(node, "attr", getattr(node, "id", ""))) in _ADDRESSES:
            return f"{name} reads memory by its address, and an int8 value may lie otherwise than the float one"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in QUESTIONS:
            return f"{node.func.attr}() asks how a tensor lies in memory, and an int8 value may lie otherwise than the float one"
    return None


def walk(statements: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    for statement in statements:
        yield from ast.walk(statement)


class Replaced(ast.NodeTransformer):
    """Spells chains of attributes that start at a module as the arguments that they are given as. `found`: a chain's text -> an
    argument's name, or a literal."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return self._known(node) or self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return self._known(node) or self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._known(node) or node

    def _known(self, node: ast.expr) -> ast.expr | None:
        value = self.found.get(ast.unparse(node))
        if value is None:
            return None
        return ast.copy_location(ast.Name(value, ast.Load()) if isinstance(value, str) else value, node)
