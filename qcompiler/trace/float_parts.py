"""Statements that cannot be followed become one call each: the statement itself runs, in floats, and the rest of the model is compiled.

Where a line stops the trace, the smallest statement around it is given a switch in the user's code and the trace begins anew
(`NewPart`). When it comes there, the statement is made a function of what it reads, runs on the examples, and is recorded as a call.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import linecache
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from qcompiler.errors import QCompilerError, TraceError, Where
from qcompiler.ir.types import SOURCE, VALUE, Value
from qcompiler.ops.float_statements import Statement
from qcompiler.trace import places
from qcompiler.trace.float_arguments import Arguments, RefusedPart, arguments_of
from qcompiler.trace.float_source import (
    Function,
    Part,
    Replaced,
    Uses,
    expression_of,
    function_at,
    parts_at,
    refused,
    statements_of,
    uses_of,
    within_part,
)  # fmt: skip
from qcompiler.trace.guards import TraceRemark, guard_length
from qcompiler.trace.hits import Hits
from qcompiler.trace.mode import Training, evaluated
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.reasons import reason
from qcompiler.trace.recorder import map_nested
from qcompiler.trace.rewritten import Switch
from qcompiler.trace.state import untouched
from qcompiler.trace.statements import Place, decides_at, span_at, tree_of

MOST = 64  # parts of one model, and refusals: each is another trace


class NewPart(BaseException):
    """The trace has to begin anew: with a part more, or, where `refused` says why, without it. (No `except Exception` of the user's
    code takes it.)"""

    def __init__(self, part: Part, why: str, refused: bool = False) -> None:
        super().__init__(part)
        self.part, self.why, self.refused = part, why, refused


class Parts:
    """What the traces of one model have learned: the parts with the reasons, what cannot be one, and the functions made so far."""

    def __init__(self) -> None:
        self.chosen: dict[Part, str] = {}
        self.refused: dict[Part, str] = {}
        self.functions: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def learn(self, new: NewPart) -> None:
        self.chosen = {part: why for part, why in self.chosen.items() if not new.part.covers(part)}
        (self.refused if new.refused else self.chosen)[new.part] = new.why


class FloatParts(Hits):
    """The recorder's part for statements that run as they stand."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.parts = Parts()
        self.paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self.held_modules: dict[str, Part] = {}  # paths of the modules that parts call, with the part

    # ---- choosing

    def switches(self, is_traced: Callable[[], bool]) -> list[Switch]:
        return [Switch(part, is_traced, self.run_part) for part in self.parts.chosen]

    def try_part(self, error: Exception) -> str:
        """Raise NewPart where a statement around the line that failed may stay float; else why none can, as a clause, or nothing."""
        if isinstance(error, QCompilerError) and not isinstance(error, TraceError):
            return ""
        why = ""
        if len(self.parts.chosen) + len(self.parts.refused) < MOST:
            for file, function, place, decides in self._failed_at(error):
                for part in parts_at(file, function, place, decides):
                    if part in self.parts.refused or part in self.parts.chosen:
                        why = why or self.parts.refused.get(part, "")
                    elif (text := _refused(part)) is not None:
                        why = why or text
                    else:
                        raise NewPart(part, reason(error))
        return why

    def _failed_at(self, error: Exception) -> Iterator[tuple[str, Function, tuple[Place, Place], bool]]:
        """The functions of the user's in which something failed, from the innermost, each with the place, and whether a
        truth value was asked for."""
        closed = getattr(error, "region", None) or next((r for text, r in self.left_open.items() if text in str(error)), None)
        regions = [*self.regions, *([closed] if closed is not None else [])]
        if regions:
            code, (file, line) = regions[0].frame.f_code, regions[0].place
            place = (int(line or 0), _indent(file, line))
            if file is not None and (function := function_at(file, place, [code])) is not None:
                yield file, function, (place, place), True
            return
        at: list[tuple[CodeType, int]] = []
        traceback = error.__traceback__
        while traceback is not None:
            at.append((traceback.tb_frame.f_code, traceback.tb_lasti))
            traceback = traceback.tb_next
        codes = [code for code, _ in at]
        for code, position in reversed(at):
            at_code = span_at(code, position) if places.is_user_file(code.co_filename) else None
            if at_code is not None and (found := function_at(code.co_filename, at_code[0], codes)) is not None:
                yield code.co_filename, found, at_code, decides_at(code, position)

    # ---- running

    def run_part(self, part: Part, variables: dict[str, Any]) -> Any:
        """Record a part that the user's code has come to; what its variables hold then, or what it returns."""
        try:
            return self._run_part(part, variables)
        except RefusedPart as refusal:
            raise NewPart(part, str(refusal), refused=True) from None

    def _run_part(self, part: Part, variables: dict[str, Any]) -> Any:
        self.at_event()
        if self.regions:
            raise RefusedPart("it stands under another condition on data")
        _, statements, uses = _source(part)
        for name in uses.changes:
            self._check_changed(name, uses, variables)
        arguments = arguments_of(statements, uses.reads, variables)
        self._check_modules(arguments)
        self._check_bound(uses, variables)
        call = self._function(part, statements, uses, arguments)
        values = [self._argument(value, part) for value in arguments.values.values()]
        example = self._on_copies(call, arguments, values)
        given = self._recorded(call, values, example, uses, part)
        self._remark(part)
        own = [name in uses.changes and name not in uses.rebinds for name in uses.gives] or [False]
        self._note_shared([value for value, is_own in zip(given, own, strict=True) if not is_own], arguments)
        if part.has_result:
            return given[0]
        return [self._settled(name, value, uses, variables) for name, value in zip(uses.gives, given, strict=True)]

    def _check_modules(self, arguments: Arguments) -> None:
        for name, module in arguments.modules.items():
            path = self.paths.get(id(module))
            if path is None:
                raise RefusedPart(f"`{name}` is a module that is no part of the model")
            if path == "" or any(path == scope for scope, _ in self.scopes):
                raise RefusedPart("it needs `self` as a whole")

    def _check_changed(self, name: str, uses: Uses, variables: Mapping[str, Any]) -> None:
        """Refuse what the graph could not see: a list with a second name, a list in a list, a tensor of the model."""
        value = variables.get(name)
        if isinstance(value, nn.Module):
            raise RefusedPart(f"it changes what `{name}` keeps")
        if isinstance(value, torch.Tensor):
            with self._refusing():
                self.check_state(value.example if type(value) is Proxy else value)
        elif isinstance(value, (list, dict)):
            if name in uses.deep:
                raise RefusedPart(f"it changes what stands in `{name}`")
            if _references(variables, name) > _ALONE + 1:  # this function has one
                raise RefusedPart(f"it changes `{name}`, which has a second name")
        elif value is not None and name in uses.deep and not isinstance(value, (int, float, str, Opaque)):
            raise RefusedPart(f"it changes what stands in `{name}`")

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except QCompilerError as error:
            raise RefusedPart(error.message) from None

    @staticmethod
    def _check_bound(uses: Uses, variables: Mapping[str, Any]) -> None:
        for name in uses.gives:
            if name not in variables and name not in uses.sure:
                raise RefusedPart(f"`{name}` has a value only where a condition holds")

    def _argument(self, value: Any, part: Part) -> Any:
        if isinstance(value, nn.Module):
            self.held_modules[self.paths[id(value)]] = part
            self.leaves.append(self.paths[id(value)])  # it keeps what it keeps, as a leaf does
            return self._module_argument(value)
        return Proxy(value.node, self, value.example) if type(value) is Opaque else value

    def _module_argument(self, module: nn.Module) -> Proxy:
        path = self.paths[id(module)]
        node = self._attributes.get(path)
        if node is None or node._erased:
            node = self._attributes[path] = self.graph.create_node("get_attr", path)
            node.meta[VALUE], node.meta[SOURCE] = Value(None, None), self.source()
        return Proxy(node, self, module)

    def _function(self, part: Part, statements: Sequence[ast.stmt], uses: Uses, arguments: Arguments) -> Callable[..., Any]:
        """The statement as a function, one for all calls of the same form."""
        kinds = tuple((name, _kind(value)) for name, value in arguments.values.items())
        key = (part, kinds, tuple(arguments.chains.items()))
        if key not in self.parts.functions:
            frame = places.user_frame(sys._getframe(1))
            assert frame is not None
            code, names = frame.f_code, frame.f_globals
            made = Statement(_text(part, statements, uses, arguments), f"statement_{part.first[0]}", code.co_qualname,
                             str(names.get("__name__")), part.file, part.first[0])  # fmt: skip
            self.parts.functions[key] = made.function(names)
        return self.parts.functions[key]

    def _on_copies(self, call: Callable[..., Any], arguments: Arguments, values: Sequence[Any]) -> Any:
        """Run the function on copies of the examples. Raises RefusedPart where it fails, or changes an argument unseen."""
        copies: list[tuple[torch.Tensor, int]] = []

        def copied(value: Any) -> Any:
            value = self.concrete(value)
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                value = value.clone()
                copies.append((value, value._version))
            return copy.copy(value) if isinstance(value, (list, dict)) else value

        given = [map_nested(copied, value) for value in values]
        modules = list(arguments.modules.values())
        self.paused += 1
        try:
            with contextlib.ExitStack() as stack, self._refusing():
                for module in modules:
                    stack.enter_context(untouched(module))
                for module in (inner for module in modules for inner in module.modules()):
                    stack.enter_context(evaluated(module))
                example = self.on_examples(call, given, {})
        finally:
            self.paused -= 1
        if any(value._version != version for value, version in copies):
            raise RefusedPart("it changes a tensor in place, which its text does not show")
        return example

    # ---- what comes out

    def _recorded(self, call: Callable[..., Any], values: Sequence[Any], example: Any, uses: Uses, part: Part) -> list[Any]:
        """The call in the graph, and what stands for each value that it gives."""
        node = self.add_node("call_function", call, tuple(values), {}, example)
        self._from_data.add(node)
        if part.has_result or len(uses.gives) == 1:
            return [self._standing_for(node, example, uses.gives[0] if uses.gives else "the result")]
        if not uses.gives:
            return []
        whole = Proxy(node, self, example)
        return [self._item(whole, i, item, name) for i, (name, item) in enumerate(zip(uses.gives, example, strict=True))]

    def _item(self, whole: Proxy, key: int, example: Any, name: str) -> Any:
        node = self.add_node("call_function", operator.getitem, (whole, key), {}, example)
        self._from_data.add(node)
        return self._standing_for(node, example, name)

    def _standing_for(self, node: fx.Node, example: Any, name: str) -> Any:
        if isinstance(example, torch.Tensor):
            if example.is_sparse or example.is_nested:
                raise RefusedPart(f"{name} is a sparse or nested tensor")
            return self.bind(node, example.clone())
        if type(example) in (bool, int, float):
            return self.bind(node, example)
        if type(example) is tuple:
            whole = Proxy(node, self, example)
            self.add_node("call_function", guard_length, (whole, len(example), f"what `{name}` is made of"), {}, None)
            return tuple(self._item(whole, i, item, f"{name}[{i}]") for i, item in enumerate(example))
        if isinstance(example, (list, dict, set)):
            return Opaque(node, self, example)
        if example is None and name == "the result":
            return None
        raise RefusedPart(f"{name} may be a {type(example).__name__}, which no graph has as a value")

    def _settled(self, name: str, value: Any, uses: Uses, variables: Mapping[str, Any]) -> Any:
        """What a variable holds behind the statement; tensors that were changed in place are changed for all who hold them."""
        old = variables.get(name)
        if name not in uses.changes or not isinstance(old, torch.Tensor):
            return value
        if type(value) is not Proxy or not value.is_tensor:
            raise RefusedPart(f"`{name}` is a tensor that is changed in place, or another value")
        owner = self.variable(old)
        if name in uses.rebinds:  # the old one may be changed, or not
            for other in (owner, *self.aliases(owner)):
                self.poison(other, "use of a tensor that a statement may have changed in place")
            return value
        self.mutate(owner, value.node, value.example)
        return owner

    def _note_shared(self, given: Sequence[Any], arguments: Arguments) -> None:
        """What a statement gives may be what it was given, or a view of it: nobody knows at the next call."""
        found: list[Proxy] = []

        def look(value: Any) -> Any:
            if type(value) is Proxy and value.is_tensor:
                found.append(value)
            return value

        map_nested(look, (tuple(given), tuple(v for v in arguments.values.values() if not isinstance(v, nn.Module))))
        self.may_share(found)

    def _remark(self, part: Part) -> None:
        line = part.first[0]
        where = Where(None, self.scopes[-1][0] if self.scopes else None, places.spell(part.file, line))
        text = f"`{places.text_of(part.file, line)}` runs as it stands, in floats, with what belongs to the statement: {self.parts.chosen[part]}"
        remark = TraceRemark("float-statement", where, text)
        if remark not in self.remarks:
            self.remarks.append(remark)

    def check_parts(self) -> None:
        """Refuse parts with modules that are called elsewhere too: there they are int8."""
        held = {path: part for path, part in self.held_modules.items() if not self._attributes[path]._erased}
        for node in self.graph.nodes if held else ():
            target = str(node.target)
            for path, part in held.items() if node.op in ("get_attr", "call_module") else ():
                if node is not self._attributes[path] and (target == path or target.startswith(f"{path}.")):
                    raise NewPart(part, f"`{path}`, which it calls, is used elsewhere as well", refused=True)


def _references(variables: Mapping[str, Any], name: str) -> int:
    value = variables[name]
    return sys.getrefcount(value)


def _alone() -> int:
    """The references to what a variable alone holds, and the variables that are looked at."""
    value: list[int] = []
    return _references(locals(), "value")


_ALONE = _alone()


def _source(part: Part) -> tuple[Function, list[ast.stmt], Uses]:
    tree = tree_of(part.file)
    assert tree is not None
    if part.kind == "expression":
        found = expression_of(tree, part)
        assert found is not None
        function, statements = found[0], [ast.copy_location(ast.Return(found[1]), found[1])]
        return function, list(statements), uses_of(function, statements, True)
    at = statements_of(tree, part)
    assert at is not None
    function, block, index = at
    statements = within_part(block[index:], part)
    return function, statements, uses_of(function, statements, part.has_result)


def _refused(part: Part) -> str | None:
    _, statements, uses = _source(part)
    if part.kind == "expression" and (uses.changes or uses.rebinds):
        return "it changes a variable"
    return refused(statements)


def _indent(file: str | None, line: int | None) -> int:
    text = linecache.getline(file, line) if file and line else ""
    return len(text) - len(text.lstrip())


def _text(part: Part, statements: Sequence[ast.stmt], uses: Uses, arguments: Arguments) -> str:
    """The source of the function."""
    names = {int: "int", float: "float", bool: "bool", Training: "bool", str: "str"}
    typed = [f"{name}: {names[kind]}" if (kind := _kind(value)) in names else name for name, value in arguments.values.items()]
    lines = [f"def statement_{part.first[0]}({', '.join(typed)}):"]
    lines += [f"    {name} = {how.format(name)}" for name in uses.changes if (how := _copying(arguments.values.get(name)))]
    replaced = [Replaced(dict(arguments.chains)).visit(copy.deepcopy(statement)) for statement in statements]
    lines += [f"    {line}" for statement in replaced for line in ast.unparse(ast.fix_missing_locations(statement)).splitlines()]
    lines += [] if part.has_result else [f"    return {', '.join(uses.gives) or None}"]
    return "\n".join(lines) + "\n"


def _copying(value: Any) -> str:
    """How a function copies an argument that it may change."""
    kind = _kind(value)
    if kind is torch.Tensor:
        return "{}.clone()"
    return {list: "list({})", dict: "dict({})", set: "set({})"}.get(kind, "")


def _kind(value: Any) -> type:
    if type(value) in (Proxy, Opaque):
        return torch.Tensor if isinstance(value.example, torch.Tensor) else type(value.example)
    return torch.Tensor if isinstance(value, torch.Tensor) else type(value)
