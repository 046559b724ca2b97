"""Statements that cannot be followed become one call each: the statement itself runs, in floats, and the rest of the model is compiled.

Where a line stops the trace, the smallest statement around it is given a switch in the user's code and the trace begins anew
(`NewPart`). When it comes there, the statement is made a function of what it reads, runs on the examples, and is recorded as a call.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import nn

from qcompiler.errors import QCompilerError, TraceError, Where
from qcompiler.ir.types import Value
from qcompiler.ops.float_statements import Statement
from qcompiler.trace import places
from qcompiler.trace.float_arguments import Arguments, RefusedPart, arguments_of
from qcompiler.trace.float_function import indent, kind_of, refused_part, source_of_part, text_of_function
from qcompiler.trace.float_results import FloatResults
from qcompiler.trace.float_source import Function, Part, followed_at, function_at, parts_at
from qcompiler.trace.float_uses import Uses
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.mode import evaluated
from qcompiler.trace.module_calls import ModuleCalls
from qcompiler.trace.nested import map_nested
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.reasons import reason
from qcompiler.trace.rewritten import Switch
from qcompiler.trace.state import untouched
from qcompiler.trace.statements import Place, decides_at, span_at

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
        self.functions: dict[tuple[object, ...], Callable[..., object]] = {}

    def learn(self, new: NewPart) -> None:
        self.chosen = {part: why for part, why in self.chosen.items() if not new.part.covers(part)}
        (self.refused if new.refused else self.chosen)[new.part] = new.why


class FloatParts(FloatResults):
    """The recorder's part for statements that run as they stand."""

    modules: ModuleCalls  # the tracer's

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.parts = Parts()
        self.paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self.held_modules: dict[str, Part] = {}  # paths of the modules that parts call, with the part

    # ---- choosing

    def switches(self, is_traced: Callable[[], bool]) -> list[Switch]:
        return [Switch(part, is_traced, self.run_part, self) for part in self.parts.chosen]

    def try_part(self, error: Exception) -> str:
        """Raise NewPart where a statement around the line that failed may stay float; else why none can, as a clause, or nothing."""
        if isinstance(error, QCompilerError) and not isinstance(error, TraceError):
            return ""
        why = ""
        if len(self.parts.chosen) + len(self.parts.refused) < MOST:
            for part in self._candidates(error):
                if part in self.parts.refused or any(chosen.covers(part) for chosen in self.parts.chosen):
                    why = why or self.parts.refused.get(part, "")
                elif (text := refused_part(part)) is not None:
                    why = why or text
                else:
                    raise NewPart(part, reason(error))
        return why

    def _candidates(self, error: Exception) -> Iterator[Part]:
        """What may be a part so that this does not fail again, the best first."""
        for file, function, place, decides in self._failed_at(error, inside=True):
            yield from followed_at(file, function, place) if decides else ()
        for file, function, place, decides in self._failed_at(error):
            yield from parts_at(file, function, place, decides)

    def _failed_at(self, error: Exception, inside: bool = False) -> Iterator[tuple[str, Function, tuple[Place, Place], bool]]:
        """The functions of the user's in which something failed, from the innermost, each with the place, and whether a
        truth value was asked for. Under a condition on data that is the place of the condition, but for `inside`."""
        closed = getattr(error, "region", None) or next((r for text, r in self.left_open.items() if text in str(error)), None)
        regions = [*self.regions, *([closed] if closed is not None else [])]
        if regions and not inside:
            code, (file, line) = regions[0].frame.f_code, regions[0].place
            place = (int(line or 0), indent(file, line))
            if file is not None and (function := function_at(file, place, [code])) is not None:
                yield file, function, (place, place), True
            return
        at: list[tuple[CodeType, int]] = []
        traceback = error.__traceback__
        while traceback is not None:
            at.append((traceback.tb_frame.f_code, traceback.tb_lasti))
            traceback = traceback.tb_next
        if (owed := getattr(error, "instruction", None)) is not None:
            at.append(owed)
        codes = [code for code, _ in at]
        for code, position in reversed(at):
            at_code = span_at(code, position) if places.is_user_file(code.co_filename) else None
            if at_code is not None and (found := function_at(code.co_filename, at_code[0], codes)) is not None:
                yield code.co_filename, found, at_code, decides_at(code, position)

    # ---- running

    def run_part(self, part: Part, variables: dict[str, object]) -> object:
        """Record a part that the user's code has come to; what its variables hold then, or what it returns."""
        try:
            return self._run_part(part, variables)
        except RefusedPart as refusal:
            raise NewPart(part, str(refusal), refused=True) from None

    def _run_part(self, part: Part, variables: dict[str, object]) -> object:
        self.at_event()
        if self.regions:
            raise RefusedPart("it stands under another condition on data")
        _, statements, uses = source_of_part(part)
        for name in uses.changes:
            self._check_changed(name, uses, variables)
        arguments = arguments_of(statements, uses.reads, variables)
        self._check_modules(arguments)
        self._check_bound(uses, variables)
        call = self._function(part, statements, uses, arguments)
        values = [self._argument(value, part) for value in arguments.values.values()]
        example = self._on_copies(call, arguments, values)
        given = self.record_part(call, values, example, uses, part)
        self._remark(part)
        own = [name in uses.changes and name not in uses.rebinds for name in uses.gives] or [False]
        self.note_shared([value for value, is_own in zip(given, own, strict=True) if not is_own], arguments)
        if part.has_result:
            return given[0]
        return [self.settled_variable(name, value, uses, variables) for name, value in zip(uses.gives, given, strict=True)]

    def _check_modules(self, arguments: Arguments) -> None:
        for name, module in arguments.modules.items():
            path = self.paths.get(id(module))
            if path is None:
                raise RefusedPart(f"`{name}` is a module that is no part of the model")
            if path == "" or any(path == scope for scope, _ in self.scopes):
                raise RefusedPart("it needs `self` as a whole")

    def _check_changed(self, name: str, uses: Uses, variables: Mapping[str, object]) -> None:
        """Refuse what the graph could not see: a list with a second name, a list in a list, a tensor of the model."""
        value: Any = variables.get(name)
        if isinstance(value, nn.Module):
            raise RefusedPart(f"it changes what `{name}` keeps")
        if isinstance(value, torch.Tensor):
            with self._refusing():
                self.check_state(value.example if hasattr(value, "example") else value)
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
    def _check_bound(uses: Uses, variables: Mapping[str, object]) -> None:
        for name in uses.gives:
            if name not in variables and name not in uses.sure:
                raise RefusedPart(f"`{name}` has a value only where a condition holds")

    def _argument(self, value: object, part: Part) -> Any:
        if isinstance(value, nn.Module):
            self.held_modules[self.paths[id(value)]] = part
            self.modules.leaves.append(self.paths[id(value)])  # it keeps what it keeps, as a leaf does
            return self._module_argument(value)
        return Proxy(value.node, self, value.example) if type(value) is Opaque else value

    def _module_argument(self, module: nn.Module) -> Proxy:
        node = self.attributes.node(self.paths[id(module)], Value(None, None))
        return Proxy(node, self, module)

    def _function(self, part: Part, statements: Sequence[ast.stmt], uses: Uses, arguments: Arguments) -> Callable[..., object]:
        """The statement as a function, one for all calls of the same form."""
        kinds = tuple((name, kind_of(value)) for name, value in arguments.values.items())
        key = (part, kinds, tuple(arguments.chains.items()))
        if key not in self.parts.functions:
            frame = places.user_frame(sys._getframe(1))
            assert frame is not None
            code, names = frame.f_code, frame.f_globals
            made = Statement(text_of_function(part, statements, uses, arguments), f"statement_{part.first[0]}", code.co_qualname,
                             str(names.get("__name__")), part.file, part.first[0])  # fmt: skip
            self.parts.functions[key] = made.function(names)
        return self.parts.functions[key]

    def _on_copies(self, call: Callable[..., object], arguments: Arguments, values: Sequence[object]) -> object:
        """Run the function on copies of the examples. Raises RefusedPart where it fails, or changes an argument unseen."""
        copies: list[tuple[torch.Tensor, int]] = []

        def copied(value: object) -> Any:
            value = self.running.concrete(value)
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
                for inner in (part for module in modules for part in module.modules()):
                    stack.enter_context(evaluated(inner))
                example = self.running.on_examples(call, given, {})
        finally:
            self.paused -= 1
        if any(value._version != version for value, version in copies):
            raise RefusedPart("it changes a tensor in place, which its text does not show")
        return example

    # ---- remarks and checks

    def _remark(self, part: Part) -> None:
        line = part.first[0]
        where = Where(None, self.scopes[-1][0] if self.scopes else None, places.spell(part.file, line))
        code = places.text_of(part.file, line)
        text = f"`{code}` runs as it stands, in floats: {self.parts.chosen[part].removesuffix(f' in `{code}`')}"
        remark = TraceRemark("float-statement", where, text)
        if remark not in self.remarks:
            self.remarks.append(remark)

    def check_parts(self) -> None:
        """Refuse parts with modules that are called elsewhere too: there they are int8."""
        held = {path: part for path, part in self.held_modules.items() if self.attributes.read(path) is not None}
        for node in self.graph.nodes if held else ():
            target = str(node.target)
            for path, part in held.items() if node.op in ("get_attr", "call_module") else ():
                if node is not self.attributes.read(path) and (target == path or target.startswith(f"{path}.")):
                    raise NewPart(part, f"`{path}`, which it calls, is used elsewhere as well", refused=True)


def _references(variables: Mapping[str, object], name: str) -> int:
    value = variables[name]
    return sys.getrefcount(value)


def _alone() -> int:
    """The references to what a variable alone holds, and the variables that are looked at."""
    value: list[int] = []
    return _references(locals(), "value")


_ALONE = _alone()
