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

from qcompiler.trace.statements import _MUTATORS, Place, inside_functions, span, tree_of

Function = ast.FunctionDef | ast.AsyncFunctionDef
NESTED = 3  # expressions around a place that are tried
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_LOOPS = (ast.For, ast.While, ast.AsyncFor)
_REFUSED: tuple[tuple[tuple[type, ...], str], ...] = (
    ((ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith), "it is part of a generator or a coroutine"),
    ((ast.Global, ast.Nonlocal), "it changes a variable of another function"),
    ((ast.Import, ast.ImportFrom), "it imports a module"),
    ((ast.Delete,), "it deletes a variable"),
    ((ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef), "it defines a function or a class"),
)


@dataclass(frozen=True)
class Part:
    """Statements of one function, from `first` to `last`, or an expression in one. `name`, `line`: of the function."""

    file: str
    name: str
    line: int
    first: Place
    last: Place
    kind: Literal["expression", "statements", "end"]  # "end": the function ends with them

    @property
    def has_result(self) -> bool:
        """Whether it gives one value, and no variables."""
        return self.kind != "statements"

    def covers(self, other: Part) -> bool:
        return (self.file, self.name, self.line) == (other.file, other.name, other.line) and self.first <= other.first <= self.last


@dataclass(frozen=True)
class Uses:
    """The variables of a part. `reads`: all that it needs; `gives`: those that it assigns and that others read, in order;
    `rebinds`: those that it assigns; `changes`: those whose object it may change in place, with why it may not be a part where it
    reaches into what they hold; `sure`: those that it assigns whichever way it goes."""

    reads: tuple[str, ...]
    gives: tuple[str, ...]
    rebinds: frozenset[str]
    changes: tuple[str, ...]
    deep: frozenset[str]
    sure: frozenset[str]


def first_line(function: Function) -> int:
    """What a code object has as its first line: that of the first decorator."""
    return min([function.lineno, *(d.lineno for d in function.decorator_list)])


def function_at(file: str, place: Place, codes: Sequence[CodeType]) -> Function | None:
    """The innermost function around a place, if its code is among those that run."""
    tree, found = tree_of(file), None
    for function, node in inside_functions(tree) if tree is not None else ():
        if node is function and isinstance(node, Function) and span(node)[0] <= place < span(node)[1]:
            found = node if found is None or span(node)[0] > span(found)[0] else found
    known = {(code.co_name, code.co_firstlineno) for code in codes if code.co_filename == file}
    return found if found is not None and (found.name, first_line(found)) in known else None


def parts_at(file: str, function: Function, at: tuple[Place, Place], decides: bool) -> Iterator[Part]:
    """What may stand alone around a place, the smallest first: expressions, then statements. `decides`: a truth value is asked for."""
    for first, last in _expressions(function, at, decides):
        yield Part(file, function.name, first_line(function), first, last, "expression")
    chain = list(_chain(function, at[0]))
    for block, index, in_loop in reversed(chain):
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


def _part(file: str, function: Function, statements: Sequence[ast.stmt], kind: Literal["statements", "end"]) -> Part:
    return Part(file, function.name, first_line(function), span(statements[0])[0], span(statements[-1])[1], kind)


def _expressions(function: Function, at: tuple[Place, Place], decides: bool) -> list[tuple[Place, Place]]:
    """The spans of the expressions around a place, the smallest first; of a truth value only those that it chooses in."""
    around = [node for node in ast.walk(function) if isinstance(node, ast.expr) and span(node)[0] <= at[0] and at[1] <= span(node)[1]]
    if decides:
        around = around[: max((i + 1 for i, node in enumerate(around) if isinstance(node, (ast.IfExp, ast.BoolOp))), default=0)]
    values = [n for n in around if isinstance(n, (ast.Call, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.BoolOp,
                                                  ast.ListComp, ast.DictComp))]  # fmt: skip
    return list(dict.fromkeys(map(span, reversed(values))))[:NESTED]


def _chain(function: Function, place: Place) -> Iterator[tuple[list[ast.stmt], int, bool]]:
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
        in_loop = in_loop or isinstance(node, _LOOPS)


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for _, value in ast.iter_fields(node):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield value
        elif isinstance(value, list):  # except clauses, cases of a match
            for item in value:
                if isinstance(item, (ast.excepthandler, ast.match_case)):
                    yield item.body


def _leaves(statement: ast.AST, in_loop: bool = False) -> set[str]:
    """How control may leave a statement but at its end: "return", or "loop" (a break or continue of a loop around it)."""
    if isinstance(statement, ast.Return):
        return {"return"}
    if isinstance(statement, (ast.Break, ast.Continue)):
        return set() if in_loop else {"loop"}
    found: set[str] = set()
    for name, value in ast.iter_fields(statement):
        inside = in_loop or (isinstance(statement, _LOOPS) and name == "body")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, (ast.stmt, ast.excepthandler, ast.match_case)) and not isinstance(item, _SCOPES):
                found |= _leaves(item, inside)
    return found


def expression_of(tree: ast.AST, part: Part) -> tuple[Function, ast.expr] | None:
    """In a tree of the file: the function and the expression of a part."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and (node.name, first_line(node)) == (part.name, part.line):
            found = [n for n in ast.walk(node) if isinstance(n, ast.expr) and span(n) == (part.first, part.last)]
            return (node, found[0]) if found else None
    return None


def statements_of(tree: ast.AST, part: Part) -> tuple[Function, list[ast.stmt], int] | None:
    """In a tree of the file: the function, the block and the index of the first statement of a part."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and (node.name, first_line(node)) == (part.name, part.line):
            for inner in ast.walk(node):
                for block in _blocks(inner):
                    for index, statement in enumerate(block):
                        if span(statement)[0] == part.first:
                            return node, block, index
    return None


def within_part(statements: Sequence[ast.stmt], part: Part) -> list[ast.stmt]:
    return [statement for statement in statements if part.first <= span(statement)[0] < part.last]


def refused(statements: Sequence[ast.stmt]) -> str | None:
    """Why statements cannot be a function of their own, as their text says."""
    for node in _walk(statements):
        for kinds, why in _REFUSED:
            if isinstance(node, kinds):
                return why
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("super", "locals", "exec", "eval"):
            return f"it calls {node.func.id}()"
        stores = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if stores:
            return "it assigns an attribute"
    return None


def uses_of(function: Function, statements: Sequence[ast.stmt], has_result: bool) -> Uses:
    """What statements read and change, by the names of variables."""
    own = _inner_names(statements)
    loads: dict[str, Place] = {}
    stores: dict[str, Place] = {}
    for node in _walk(statements):
        if isinstance(node, ast.Name) and id(node) not in own:
            table = loads if isinstance(node.ctx, ast.Load) else stores
            table.setdefault(node.id, (node.lineno, node.col_offset))
        if isinstance(node, ast.ExceptHandler) and node.name:
            stores.setdefault(node.name, (node.lineno, node.col_offset))
    augmented = {n.target.id for n in _walk(statements) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
    changed, deep = _changed(statements)
    changes = dict.fromkeys([*changed, *augmented])
    plain = {n.id for n in _walk(statements) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in own}
    rebinds = frozenset(plain - _only_augmented(statements, augmented))
    gives = (
        ()
        if has_result
        else tuple(name for name in dict.fromkeys([*stores, *changes]) if name in changes or _is_read(function, statements, name))
    )
    reads = tuple(dict.fromkeys([*loads, *augmented, *gives]))
    return Uses(reads, gives, rebinds, tuple(changes), deep, frozenset(_sure(statements)))


def _only_augmented(statements: Sequence[ast.stmt], augmented: set[str]) -> set[str]:
    targets = {id(n.target) for n in _walk(statements) if isinstance(n, ast.AugAssign)}
    assigned = {n.id for n in _walk(statements) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in targets}
    return augmented - assigned


def _inner_names(statements: Sequence[ast.stmt]) -> set[int]:
    """The nodes of names that belong to comprehensions and lambdas inside."""
    found: set[int] = set()
    for node in _walk(statements):
        names: set[str] = set()
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            names = {n.id for c in node.generators for n in ast.walk(c.target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.Lambda):
            names = {a.arg for a in (*node.args.args, *node.args.posonlyargs, *node.args.kwonlyargs)}
        if names:
            found |= {id(n) for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in names}
    return found


def _changed(statements: Sequence[ast.stmt]) -> tuple[list[str], frozenset[str]]:
    """The variables whose objects may be changed in place, and those of them that are reached into: `d["x"].append(y)`."""
    roots: dict[str, bool] = {}
    for node in _walk(statements):
        target: ast.expr | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            target = node.value
        elif isinstance(node, ast.AugAssign) and not isinstance(node.target, ast.Name):
            target = node.target.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _changes(node.func.attr):
            target = node.func.value
        if target is not None and (found := _root(target)) is not None:
            name, reaches = found
            roots[name] = roots.get(name, False) or reaches
    return list(roots), frozenset(name for name, reaches in roots.items() if reaches)


def _changes(method: str) -> bool:
    return method in _MUTATORS or (method.endswith("_") and not method.endswith("__"))


def _root(node: ast.expr) -> tuple[str, bool] | None:
    """The variable at the bottom of `x`, `x[0]`, `x.y`, `x.view(-1)`, and whether it is more than the variable itself."""
    reaches = False
    while not isinstance(node, ast.Name):
        reaches = True
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return None
    return node.id, reaches


def _is_read(function: Function, statements: Sequence[ast.stmt], name: str) -> bool:
    """Whether other statements read a variable: any elsewhere, or the same ones in the next round of a loop around them."""
    first, last = span(statements[0])[0], span(statements[-1])[1]
    loops = any(isinstance(n, _LOOPS) and span(n)[0] <= first and last <= span(n)[1] for n in ast.walk(function) if n not in statements)
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Store):
            if loops or not first <= (node.lineno, node.col_offset) < last:
                return True
    return False


def _sure(statements: Sequence[ast.stmt]) -> set[str]:
    """The variables that statements assign whichever way they go."""
    found: set[str] = set()
    for node in statements:
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        elif isinstance(node, ast.If) and node.orelse:
            found |= _sure(node.body) & _sure(node.orelse)
        elif isinstance(node, ast.With):
            found |= _sure(node.body)
        elif isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and node.test.value:
            before = next((i for i, s in enumerate(node.body) if _has_break(s)), len(node.body))
            found |= _sure(node.body[:before])
    return found


def _has_break(statement: ast.stmt) -> bool:
    return any(isinstance(node, (ast.Break, ast.Continue)) for node in ast.walk(statement))


def _walk(statements: Sequence[ast.stmt]) -> Iterator[ast.AST]:
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
