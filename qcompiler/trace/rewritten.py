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
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from qcompiler.trace.float_source import Part, expression_of, function_of, key_of_code, statements_of, within_part
from qcompiler.trace.float_uses import uses_of
from qcompiler.trace.functions_of import functions_of
from qcompiler.trace.statements import replaced_span
from qcompiler.trace.syntax import Position, span, tree_of

_Key = tuple[str, int, int]  # of a function, as `key_of` says
_NAME = "qcompiler float part"


class Either(Protocol):
    """Who computes both ways at a condition."""

    def end_function(self, value: Any) -> Any: ...
    def begin_choice(self, condition: Any, first: Position, last: Position) -> bool: ...
    def end_choice(self, yes: Any, no: Any) -> Any: ...
    def end_logic(self, other: Any, both: bool) -> Any: ...
    def opposite_of(self, condition: Any) -> Any: ...


class Switch:
    """Stands in the code of a function as a constant. `run`: of the variables, what the statement gives."""

    def __init__(self, part: Part, is_traced: Callable[[], bool], run: Callable[[Part, dict[str, Any]], Any], either: Either) -> None:
        self.part, self.is_traced, self._run, self._either = part, is_traced, run, either
        self._asked = threading.local()  # other threads run the same code
        self.whole = part.first if part.kind == "logic" else None  # where what it replaces is one condition

    def run(self, variables: dict[str, Any]) -> Any:
        return self._run(self.part, variables)

    def returned(self, value: Any) -> Any:
        """What a function returns, in place of what one of its returns gives."""
        return self._either.end_function(value) if self.is_traced() else value

    def asks(self, condition: Any) -> bool:
        """Whether both values of a choice are computed; else the next call of `answer` is the condition."""
        if self.is_traced() and self._either.begin_choice(condition, self.part.first, self.part.last):
            return True
        vars(self._asked).setdefault("conditions", []).append(condition)
        return False

    def answer(self) -> Any:
        return self._asked.conditions.pop()

    def either(self, yes: Any, no: Any) -> Any:
        return self._either.end_choice(yes, no)

    def both(self, other: Any) -> Any:
        """`a and b` of the condition that was asked for and another one."""
        return self._either.end_logic(other, both=True)

    def one(self, other: Any) -> Any:
        """`a or b` of these."""
        return self._either.end_logic(other, both=False)

    def it(self, condition: Any) -> Any:
        return condition

    def opposite(self, condition: Any) -> Any:
        """`not condition`."""
        return self._either.opposite_of(condition) if self.is_traced() else not condition


def returned_by(code: types.CodeType) -> Switch | None:
    """The switch that the returns of a function go through."""
    return next((c for c in code.co_consts if isinstance(c, Switch) and c.part.kind == "returns"), None)


def with_returns(function: ast.FunctionDef, module: ast.Module, file: str, switch: Switch) -> types.CodeType:
    """Code of a module that defines a function, whose returns go through a switch. (The statements are changed.)"""
    _Returns(_NAME).visit_body(function)
    return _with_switches(compile(module, file, "exec", dont_inherit=True), {_NAME: switch})


@contextlib.contextmanager
def rewritten(switches: Sequence[Switch], namespaces: Sequence[dict[str, object]] = ()) -> Iterator[None]:
    """Let the functions with these parts ask the switches. Other threads that call them run what stands there. `namespaces`: the globals
    of functions of these files; those of functions that are not among them, all objects are searched for."""
    files: dict[str, list[Switch]] = {}
    for switch in switches:
        files.setdefault(switch.part.file, []).append(switch)
    codes = {file: _codes(file, own) for file, own in files.items()}
    with contextlib.ExitStack() as stack:  # none of our lines runs where it takes back: Ctrl-C between two of them would leave the rest
        for function in functions_of(codes, namespaces):
            old = function.__code__
            new = codes[old.co_filename].get(key_of_code(old))
            if new is not None and new.co_freevars == old.co_freevars:
                stack.callback(setattr, function, "__code__", old)
                function.__code__ = new
        yield


def _codes(file: str, switches: Sequence[Switch]) -> dict[_Key, types.CodeType]:
    """The new code of each function that has a part, and of the functions around it, which make it."""
    whole_file = tree_of(file)
    assert whole_file is not None
    tree = copy.deepcopy(standing_around(whole_file, [s.part for s in switches]))
    names: dict[str, Switch] = {}
    for switch in sorted(switches, key=lambda s: s.part.kind == "returns"):  # in the end: what the others return goes through these
        names[f"{_NAME} {len(names)}"] = switch
        _replace(tree, switch.part, f"{_NAME} {len(names) - 1}")
    whole = _with_switches(compile(tree, file, "exec", dont_inherit=True), names)
    found: dict[_Key, types.CodeType] = {}
    _collect(whole, {s.part.key for s in switches}, found)
    return found


def standing_around(tree: ast.Module, parts: Iterable[Part]) -> ast.Module:
    """A file with nothing but the statements that hold these parts, which give the same codes: a file may be long."""
    held = {next(i for i, s in enumerate(tree.body) if part.last <= span(s)[1]) for part in parts}  # decorators stand before their span
    wanted = [s for i, s in enumerate(tree.body) if i in held or (isinstance(s, ast.ImportFrom) and s.module == "__future__")]
    return ast.Module(wanted, tree.type_ignores)


def _replace(tree: ast.AST, part: Part, name: str) -> None:
    if part.kind in ("expression", "choice", "logic"):
        _Expression(tree, part, name)
        return
    if part.kind == "returns":
        function = function_of(tree, part)
        assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        _Returns(name).visit_body(function)
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
            node.end_lineno, node.end_col_offset = replaced_span(first)[1]


class _Returns(ast.NodeTransformer):
    """Puts `return <switch>.returned(<value>)` in place of each return of a function, and at its end."""

    def __init__(self, name: str) -> None:
        self.name = name

    def visit_body(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        end = ast.copy_location(ast.Return(None), function.body[-1])
        end.lineno, end.col_offset = end.end_lineno, end.end_col_offset = function.end_lineno or 0, function.end_col_offset or 0
        function.body = [*map(self.visit, function.body), self.visit(end)]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        value = node.value or ast.copy_location(ast.Constant(None), node)
        called = ast.parse(f"{self.name!r}.returned(0)", mode="eval").body
        _place(ast.walk(called), node)
        assert isinstance(called, ast.Call)
        called.args = [value]
        return ast.copy_location(ast.Return(called), node)


class _Expression(ast.NodeTransformer):
    """Puts `<switch>.run(locals()) if <switch>.is_traced() else <expression>` in place of an expression; in place of a choice
    `<switch>.either(a, b) if <switch>.asks(condition) else a if <switch>.answer() else b`."""

    def __init__(self, tree: ast.AST, part: Part, name: str) -> None:
        at = expression_of(tree, part)
        assert at is not None
        self.wanted, self.name, self.kind = at[1], name, part.kind
        self.visit(tree)

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.wanted:
            return self.generic_visit(node)
        if self.kind == "choice":
            return self._choice()
        if self.kind == "logic":
            return self._logic(self.wanted)
        test, call = _calls(self.name)
        made = ast.IfExp(test, call, self.wanted)
        _place((made, *ast.walk(test), *ast.walk(call)), self.wanted)
        return made

    def _call(self, method: str, *arguments: ast.expr) -> ast.Call:
        made = ast.parse(f"{self.name!r}.{method}()", mode="eval").body
        assert isinstance(made, ast.Call)
        _place(ast.walk(made), self.wanted)
        made.args = list(arguments)
        return made

    def _if(self, test: ast.expr, yes: ast.expr, no: ast.expr) -> ast.IfExp:
        made = ast.IfExp(test, yes, no)
        _place((made,), self.wanted)
        return made

    def _choice(self) -> ast.AST:
        old = self.wanted
        assert isinstance(old, ast.IfExp)
        plain = self._if(self._call("answer"), old.body, old.orelse)
        return self._if(self._call("asks", old.test), self._call("either", old.body, old.orelse), plain)

    def _logic(self, node: ast.expr) -> ast.expr:
        """A condition that is data where one of its operands is: `<switch>.both(b) if <switch>.asks(a) else b if <switch>.answer() else
        False` for `a and b`."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self._call("opposite", self._logic(node.operand))
        if not isinstance(node, ast.BoolOp):
            return node
        *others, made = map(self._logic, node.values)
        is_and = isinstance(node.op, ast.And)
        for value in reversed(others):
            known = ast.Constant(not is_and)
            _place((known,), self.wanted)
            ways = (self._call("it", made), known) if is_and else (known, self._call("it", made))
            plain = self._if(self._call("answer"), *ways)
            made = self._if(self._call("asks", value), self._call("both" if is_and else "one", copy.deepcopy(made)), plain)
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
            key = key_of_code(constant)
            if inside or key in wanted:
                found[key] = constant
                has = True
    return has
