"""What a condition of the user's code decides, read off its source: a statement that may be computed in any case, or an error.

if mask.any():                  if not mask.any():          if (n < 0).any():        assert (n >= 0).all()
    out[mask] = f(x[mask])          continue                    raise ValueError
                                out[mask] = f(x[mask])
"""

from __future__ import annotations

import ast
import dis
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FrameType

from qcompiler.trace.syntax import Position, inside_functions, span, tree_of

MUTATORS = frozenset((
    "append", "extend", "insert", "pop", "popitem", "update", "setdefault", "clear", "remove", "appendleft", "popleft", "write", "send",
    "__setitem__", "__setattr__", "setattr", "delattr", "exec", "eval", "next", "print",
))  # fmt: skip


@dataclass(frozen=True)
class Branch:
    """`answer`: the truth value of the condition under which the user's code goes where this says."""

    answer: bool
    first: Position  # the statements that depend on it; equal places where the condition is a check: the other way ends in an error
    last: Position
    names: tuple[str, ...] = ()  # variables that the statements assign and that others may read
    targets: tuple[str, ...] = ()  # variables whose items the statements assign
    other: tuple[ast.stmt, ...] = ()  # what the code does where the condition does not hold

    @property
    def is_check(self) -> bool:
        return self.first == self.last


def place_of(frame: FrameType) -> tuple[Position, Position] | None:
    """First and last place of the expression or statement that a frame is in."""
    return span_at(frame.f_code, frame.f_lasti)


def span_at(code: CodeType, position: int) -> tuple[Position, Position] | None:
    """The same for an instruction of a code."""
    first, last, column, end = list(code.co_positions())[position // 2]
    if first is None or last is None or column is None or end is None:
        return None
    return (first, column), (last, end)


def decides_at(code: CodeType, position: int) -> bool:
    """Whether an instruction goes on by a truth value."""
    return dis.opname[code.co_code[position]].startswith(("POP_JUMP", "TO_BOOL", "JUMP_IF"))


def within(frame: FrameType, first: Position, last: Position) -> bool:
    """Whether a frame is at an instruction of these statements."""
    place = place_of(frame)
    return place is not None and first <= place[0] and place[1] <= last


def branch_at(frame: FrameType) -> Branch | None:
    """The branch whose condition a frame is about to follow; None where it is no such statement, or one with other effects."""
    found = tested_at(frame)
    return None if found is None else _branch(*found)


def tested_at(frame: FrameType) -> tuple[ast.AST, _Block, _Tested, bool] | None:
    """The statement whose condition a frame is about to follow: its function, the block that it stands in, the statement, and whether
    the condition is the opposite of the value at hand; None where a part of a condition decides."""
    place, tree = place_of(frame), tree_of(frame.f_code.co_filename)
    if place is None or tree is None or not dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(("POP_JUMP", "TO_BOOL")):
        return None
    for function, block, statement in _tests(tree):
        node = statement.value if isinstance(statement, ast.Assign) else statement
        assert isinstance(node, (ast.If, ast.Assert, ast.IfExp))
        if place[0][0] in (node.lineno, node.test.lineno):
            spans = [span(node), span(node.test)]
            test, negated = node.test, False
            if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
                test, negated = test.operand, True
                spans.append(span(test))
            whole = isinstance(test, ast.BoolOp) and _is_one_value(frame.f_code, test)
            spans += [replaced_span(test)] if whole else []
            if place in spans:
                in_part = isinstance(test, (ast.BoolOp, ast.IfExp, ast.UnaryOp)) and not whole
                return None if in_part else (function, block, statement, negated)
    return None


def replaced_span(node: ast.expr | ast.stmt) -> tuple[Position, Position]:
    """Where what stands for a rewritten node stands in a trace: at its first place, where the user looks for it."""
    return (node.lineno, node.col_offset), (node.lineno, node.col_offset + 1)


def _is_one_value(code: CodeType, test: ast.expr) -> bool:
    """Whether a rewritten function computes `a and b` as one value of the graph."""
    return any(getattr(constant, "whole", None) == span(test)[0] for constant in code.co_consts)


def loop_at(frame: FrameType) -> Branch | None:
    """The body of the `for` that a frame is about to begin; None where it has other effects, or its variable is read behind it."""
    place, tree = place_of(frame), tree_of(frame.f_code.co_filename)
    if tree is None or dis.opname[frame.f_code.co_code[frame.f_lasti]] != "GET_ITER":
        return None
    for function, node in inside_functions(tree):
        if isinstance(node, ast.For) and place in (span(node), span(node.iter)) and isinstance(node.target, ast.Name) and not node.orelse:
            first, last = span(node)
            reads = (n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == node.target.id and isinstance(n.ctx, ast.Load))
            within_loop = all(first <= (n.lineno, n.col_offset) < last for n in reads)
            return _region(function, node.body, True) if within_loop else None
    return None


_Block = tuple[list[ast.stmt], bool]  # statements, and whether they are the body of a loop
_Tested = ast.If | ast.Assert | ast.Assign


@functools.lru_cache(maxsize=64)
def _tests(tree: ast.Module) -> tuple[tuple[ast.AST, _Block, _Tested], ...]:
    """Every `if`, `assert` and `y = a if condition else b` with the function and the block that it stands in."""
    return tuple(_find_tests(tree))


def _find_tests(tree: ast.Module) -> Iterator[tuple[ast.AST, _Block, _Tested]]:
    for function, node in inside_functions(tree):
        for field, value in ast.iter_fields(node):
            block = [item for item in value if isinstance(item, ast.stmt)] if isinstance(value, list) else []
            for item in block:
                if isinstance(item, (ast.If, ast.Assert)) or (isinstance(item, ast.Assign) and isinstance(item.value, ast.IfExp)):
                    yield function, (block, isinstance(node, (ast.For, ast.While)) and field == "body"), item


def _branch(function: ast.AST, block: _Block, statement: _Tested, negated: bool) -> Branch | None:
    place = span(statement)[0]
    if isinstance(statement, ast.Assert):
        return Branch(not negated, place, place)
    if isinstance(statement, ast.Assign):
        return _either_value(function, statement, negated)
    if statement.orelse:
        return _either_block(function, statement, negated)
    if len(statement.body) == 1 and isinstance(statement.body[0], ast.Raise):
        return Branch(negated, place, place)
    if isinstance(statement.body[-1], ast.Break):
        return _rest_of_loop(function, statement, negated)
    if len(statement.body) == 1 and isinstance(statement.body[0], ast.Continue):
        rest = block[0][block[0].index(statement) + 1 :]
        return _region(function, rest, negated) if block[1] and rest else None
    return _region(function, statement.body, not negated)


def _rest_of_loop(function: ast.AST, statement: ast.If, negated: bool) -> Branch | None:
    """`if done: break`: all rounds are computed, and count up to there."""
    place = span(statement)[0]
    loops = [n for n in ast.walk(function) if isinstance(n, (ast.For, ast.While)) and span(n)[0] <= place < span(n)[1]]
    loop = max(loops, key=lambda n: span(n)[0], default=None)
    if not isinstance(loop, ast.For) or loop.orelse or not all(map(has_no_other_effect, statement.body[:-1])):
        return None
    branch = _region(function, [loop], negated)
    first, last = span(loop)
    own = {n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)}
    own -= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and not first <= (n.lineno, n.col_offset) < last}
    if branch is None:
        return None
    return replace(branch, other=tuple(statement.body[:-1]), names=tuple(name for name in branch.names if name not in own))


def _either_block(function: ast.AST, statement: ast.If, negated: bool) -> Branch | None:
    """`if` with `else`: the frame goes where more variables are assigned, the other way is run beside it."""
    yes, no = _region(function, statement.body, not negated), _region(function, statement.orelse, negated)
    if yes is None or no is None:
        return None
    if set(no.names) <= set(yes.names):
        return replace(yes, other=tuple(statement.orelse), targets=yes.targets + no.targets)
    return replace(no, other=tuple(statement.body), targets=yes.targets + no.targets) if set(yes.names) <= set(no.names) else None


def _either_value(function: ast.AST, statement: ast.Assign, negated: bool) -> Branch | None:
    """`y = a if condition else b`: the frame goes where a new value is made."""
    value = statement.value
    assert isinstance(value, ast.IfExp)
    goes_yes = not isinstance(value.body, ast.Name)
    taken, left = (value.body, value.orelse) if goes_yes else (value.orelse, value.body)
    other = ast.copy_location(ast.Assign(statement.targets, left), statement)
    branch = _region(function, [statement], goes_yes is not negated)
    first, last = span(taken)
    return replace(branch, first=first, last=last, other=(other,)) if branch is not None else None


def _region(function: ast.AST, statements: Sequence[ast.stmt], answer: bool) -> Branch | None:
    if not all(map(has_no_other_effect, statements)):
        return None
    first, last = span(statements[0])[0], span(statements[-1])[1]
    stored, loaded = _names(statements, ast.Store), _names(statements, ast.Load)
    targets = [n.value.id for n in _walk(statements) if isinstance(n, ast.Subscript) and _is_store(n) and isinstance(n.value, ast.Name)]
    augmented = [n.target.id for n in _walk(statements) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)]
    outside = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and not first <= (n.lineno, n.col_offset) < last}
    read = [name for name in stored if name in outside or name in augmented or loaded.get(name, last) <= _after(statements, stored[name])]
    return Branch(answer, first, last, tuple(read), tuple(targets))


def _after(statements: Sequence[ast.stmt], place: Position) -> Position:
    """The end of the statement that first assigns a variable: what it reads of the variable is the value before."""
    ends = [span(n)[1] for n in _walk(statements) if isinstance(n, ast.stmt) and span(n)[0] <= place < span(n)[1]]
    return min(ends, default=place)


def _walk(statements: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    for statement in statements:
        yield from ast.walk(statement)


def _names(statements: Sequence[ast.stmt], context: type) -> dict[str, Position]:
    """The variables that statements store or load, each with its first place."""
    found: dict[str, Position] = {}
    for node in _walk(statements):
        if isinstance(node, ast.Name) and isinstance(node.ctx, context):
            place = (node.lineno, node.col_offset)
            found[node.id] = min(found.get(node.id, place), place)
    return found


def _is_store(node: ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store)


def has_no_other_effect(statement: ast.stmt, in_loop: bool = False) -> bool:
    """Whether a statement does no more than assign variables and items of variables, and change tensors in place."""
    if isinstance(statement, (ast.For, ast.If)):
        inside = in_loop or isinstance(statement, ast.For)
        plain = all(has_no_other_effect(s, inside) for s in [*statement.body, *statement.orelse])
        return plain and is_plain(getattr(statement, "iter", statement))
    if isinstance(statement, (ast.Break, ast.Continue)):
        return in_loop
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        flat = [item for t in targets for item in (t.elts if isinstance(t, (ast.Tuple, ast.List)) else [t])]
        return all(map(_is_variable, flat)) and is_plain(statement)
    if isinstance(statement, ast.Expr):
        value = statement.value
        in_place = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr.endswith("_")
        return (in_place or isinstance(value, ast.Constant)) and is_plain(statement)
    return isinstance(statement, (ast.Pass, ast.Assert))


def _is_variable(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) or (isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name))


def is_plain(node: ast.AST) -> bool:
    """Whether an expression is free of what changes containers or assigns by the way."""
    for part in ast.walk(node):
        if isinstance(part, (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal)):
            return False
        if isinstance(part, ast.Call):
            name = part.func.attr if isinstance(part.func, ast.Attribute) else part.func.id if isinstance(part.func, ast.Name) else ""
            if name in MUTATORS:
                return False
    return True
