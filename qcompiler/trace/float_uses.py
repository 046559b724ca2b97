"""Which variables a statement reads, assigns, and may change in place, as its text says."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qcompiler.trace.float_source import LOOPS, Function, walk
from qcompiler.trace.statements import MUTATORS
from qcompiler.trace.syntax import Position, span


@dataclass(frozen=True)
class Uses:
    """The variables of a part. `reads`: all that it needs; `gives`: those that it assigns and that others read, in order;
    `rebinds`: those that it assigns; `changes`: those whose object it may change in place; `deep`: those of them where it reaches into
    what they hold; `sure`: those that it assigns whichever way it goes; `handed`: of those that may change only since a function is
    given them, the names of these functions."""

    reads: tuple[str, ...]
    gives: tuple[str, ...]
    rebinds: frozenset[str]
    changes: tuple[str, ...]
    deep: frozenset[str]
    sure: frozenset[str]
    handed: Mapping[str, frozenset[str]]

    def knowing(self, is_harmless: Callable[[str], bool]) -> Uses:
        """The same where it is known which functions change nothing that they are given."""
        kept = {name for name, functions in self.handed.items() if all(map(is_harmless, functions))}
        changes = tuple(name for name in self.changes if name not in kept)
        return replace(self, changes=changes, gives=tuple(n for n in self.gives if n not in kept or n in self.rebinds))


def uses_of(function: Function, statements: Sequence[ast.stmt], has_result: bool) -> Uses:
    """What statements read and change, by the names of variables."""
    own = _inner_names(statements)
    loads: dict[str, Position] = {}
    stores: dict[str, Position] = {}
    for node in walk(statements):
        if isinstance(node, ast.Name) and id(node) not in own:
            table = loads if isinstance(node.ctx, ast.Load) else stores
            table.setdefault(node.id, (node.lineno, node.col_offset))
        if isinstance(node, ast.ExceptHandler) and node.name:
            stores.setdefault(node.name, (node.lineno, node.col_offset))
    augmented = {n.target.id for n in walk(statements) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
    changed, deep = _changed(statements)
    handed = _handed(statements)
    changes = dict.fromkeys([*changed, *augmented, *handed])
    plain = {n.id for n in walk(statements) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in own}
    rebinds = frozenset(plain - _only_augmented(statements, augmented))
    gives = (
        ()
        if has_result
        else tuple(name for name in dict.fromkeys([*stores, *changes]) if name in changes or _is_read(function, statements, name))
    )
    reads = tuple(dict.fromkeys([*loads, *augmented, *gives]))
    only_handed = {name: functions for name, functions in handed.items() if name not in changed and name not in augmented}
    return Uses(reads, gives, rebinds, tuple(changes), deep, frozenset(_sure(statements)), only_handed)


def _only_augmented(statements: Sequence[ast.stmt], augmented: set[str]) -> set[str]:
    targets = {id(n.target) for n in walk(statements) if isinstance(n, ast.AugAssign)}
    assigned = {n.id for n in walk(statements) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in targets}
    return augmented - assigned


def _inner_names(statements: Sequence[ast.stmt]) -> set[int]:
    """The nodes of names that belong to comprehensions and lambdas inside."""
    found: set[int] = set()
    for node in walk(statements):
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
    for node in walk(statements):
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


def _handed(statements: Sequence[ast.stmt]) -> dict[str, frozenset[str]]:
    """The variables that functions are given, which may change what they hold, with the names of these functions."""
    found: dict[str, frozenset[str]] = {}
    for node in walk(statements):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            for name in _handed_on(node):
                found[name] = found.get(name, frozenset()) | {node.func.id}
    return found


def _handed_on(call: ast.Call) -> list[str]:
    """The variables that a call gives to a function that a name stands for."""
    if not isinstance(call.func, ast.Name) or hasattr(builtins, call.func.id):  # methods of modules and tensors, functions of libraries
        return []
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return [node.id for value in given for node in ast.walk(value) if isinstance(node, ast.Name) and _is_itself(value)]


def _is_itself(value: ast.expr) -> bool:
    """Whether an argument is a variable, alone or among others in a display."""
    return isinstance(value, (ast.Name, ast.List, ast.Tuple, ast.Starred, ast.Dict))


def _changes(method: str) -> bool:
    return method in MUTATORS or (method.endswith("_") and not method.endswith("__"))


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
    loops = any(isinstance(n, LOOPS) and span(n)[0] <= first and last <= span(n)[1] for n in ast.walk(function) if n not in statements)
    augmented = {id(node.target) for node in ast.walk(function) if isinstance(node, ast.AugAssign)}  # x += y reads x
    for node in ast.walk(function):
        if not isinstance(node, ast.Name) or node.id != name or (isinstance(node.ctx, ast.Store) and id(node) not in augmented):
            continue
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
        elif isinstance(node, ast.Try):
            ways = [_sure([*node.body, *node.orelse]), *(_sure(handler.body) for handler in node.handlers)]
            found |= set.intersection(*ways) | _sure(node.finalbody)
        elif isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and node.test.value:
            before = next((i for i, s in enumerate(node.body) if _has_break(s)), len(node.body))
            found |= _sure(node.body[:before])
    return found


def _has_break(statement: ast.stmt) -> bool:
    return any(isinstance(node, (ast.Break, ast.Continue)) for node in ast.walk(statement))
