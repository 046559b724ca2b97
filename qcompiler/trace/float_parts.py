"""Statements that cannot be followed become one call each: the statement itself runs, in floats, and the rest of the model is compiled.

Where a line stops the trace, the smallest statement around it is given a switch in the user's code and the trace begins anew
(`NewPart`). When it comes there, the statement is made a function of what it reads, runs on the examples, and is recorded as a call.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qcompiler.errors import QCompilerError, TraceError, Where
from qcompiler.ir.types import Value
from qcompiler.ops.float_statements import Statement
from qcompiler.trace import places
from qcompiler.trace.called_from import Chain, called_from, chains_of
from qcompiler.trace.either_way import EitherWay
from qcompiler.trace.float_arguments import Arguments, RefusedPart, arguments_of
from qcompiler.trace.float_function import held_by, indent, is_harmless, kind_of, refused_part, source_of_part, text_of_function
from qcompiler.trace.float_results import FloatResults
from qcompiler.trace.float_source import Function, Part, followed_at, function_at, parts_at
from qcompiler.trace.float_uses import Uses
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.learned_parts import NewPart, Parts
from qcompiler.trace.memory import stamp
from qcompiler.trace.mode import evaluated
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.nested import any_nested, map_nested
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.reasons import reason
from qcompiler.trace.recording import Recording
from qcompiler.trace.rewritten import Switch
from qcompiler.trace.running import Running
from qcompiler.trace.state import untouched
from qcompiler.trace.statements import decides_at, span_at
from qcompiler.trace.syntax import Position
from qcompiler.trace.watch import Watch, asked_in_script

MOST = 64  # parts of one model, and refusals: each is another trace


class FloatParts:
    """The statements of a trace that run as they stand."""

    def __init__(self, recorder: Recording, running: Running, mutations: Mutations, ways: EitherWay) -> None:
        self._recorder, self._running, self._mutations, self._ways = recorder, running, mutations, ways
        self._results = FloatResults(recorder, mutations)
        self.parts = Parts()
        self._searched = 0  # of the namespaces
        self.held_modules: dict[str, Part] = {}  # paths of the modules that parts call, with the part

    # ---- choosing

    def switches(self, is_traced: Callable[[], bool]) -> list[Switch]:
        def taken(part: Part) -> bool:
            return is_traced() and self.parts.is_taken(part, called_from(sys._getframe(1)))

        return [Switch(part, functools.partial(taken, part), self.run_part, self._ways) for part in self.parts.chosen]

    @property
    def namespaces(self) -> list[dict[str, object]]:
        """Where the functions of the parts are found."""
        self._searched = len(self.parts.namespaces)
        return list(self.parts.namespaces.values())

    def try_part(self, error: Exception) -> str:
        """Raise NewPart where a statement around the line that failed may stay float; else why none can, as a clause, or nothing."""
        if isinstance(error, QCompilerError) and not isinstance(error, TraceError):
            return ""
        why = ""
        if self.parts.count < MOST:
            for part, chain in self._candidates(error):
                covering = next((chosen for chosen in self.parts.chosen if chosen.covers(part)), None)
                if covering is not None and len(self.parts.namespaces) > self._searched:  # the file was run twice: another function of it
                    raise NewPart(covering, self.parts.chosen[covering], chain=chain)
                if covering is not None and not self.parts.is_taken(covering, chain):
                    raise NewPart(covering, self.parts.chosen[covering], chain=chain)
                if part in self.parts.refused or covering is not None:
                    why = why or self.parts.refused.get(part, "")
                elif (text := refused_part(part)) is not None:
                    why = why or text
                else:
                    raise NewPart(part, reason(error), chain=chain)
        return why

    def _candidates(self, error: Exception) -> Iterator[tuple[Part, Chain]]:
        """What may be a part so that this does not fail again, the best first, and from where its function is called."""
        for file, function, place, decides, chain in self._failed_at(error, inside=True):
            yield from ((part, chain) for part in followed_at(file, function, place)) if decides else ()
        for file, function, place, decides, chain in self._failed_at(error):
            yield from ((part, chain) for part in parts_at(file, function, place, decides))

    def _failed_at(self, error: Exception, inside: bool = False) -> Iterator[tuple[str, Function, tuple[Position, Position], bool, Chain]]:
        """The functions of the user's in which something failed, from the innermost, each with the place, whether a truth value
        was asked for, and its calls. Under a condition on data that is the place of the condition, but for `inside`."""
        closed = getattr(error, "region", None) or next((r for text, r in self._ways.regions.left_open.items() if text in str(error)), None)
        regions = [*self._ways.regions.open, *([closed] if closed is not None else [])]
        if regions and not inside:
            code, (file, line) = regions[0].frame.f_code, regions[0].place
            self.parts.add_namespace(regions[0].frame.f_globals)
            place = (int(line or 0), indent(file, line))
            if file is not None and (function := function_at(file, place, [code])) is not None:
                yield file, function, (place, place), True, called_from(regions[0].frame)
            return
        at = [(frame.f_code, position, frame.f_globals, chain) for frame, position, chain in chains_of(error.__traceback__)]
        if (owed := getattr(error, "instruction", None)) is not None:
            at.append(owed)
        codes = [code for code, *_ in at]
        for code, position, namespace, chain in reversed(at):
            at_code = span_at(code, position) if places.is_user_file(code.co_filename) else None
            if at_code is not None:
                self.parts.add_namespace(namespace)
            if at_code is not None and (found := function_at(code.co_filename, at_code[0], codes)) is not None:
                yield code.co_filename, found, at_code, decides_at(code, position), chain

    # ---- running

    def run_part(self, part: Part, variables: dict[str, object]) -> object:
        """Record a part that the user's code has come to; what its variables hold then, or what it returns."""
        try:
            return self._run_part(part, variables)
        except RefusedPart as refusal:
            raise NewPart(part, str(refusal), refused=True) from None

    def _run_part(self, part: Part, variables: dict[str, object]) -> object:
        self._recorder.at_event()
        if self._ways.regions.open:
            raise RefusedPart("it stands under another condition on data")
        _, statements, every = source_of_part(part)
        uses = every.knowing(lambda name: is_harmless(name, variables))
        for name in uses.changes:
            self._check_changed(name, uses, variables)
            if part.kind == "expression" and not isinstance(variables.get(name), torch.Tensor):
                raise RefusedPart(f"it changes `{name}`")
        arguments = arguments_of(statements, uses.reads, variables)
        self._check_modules(arguments)
        self._check_apart(uses, arguments)
        self._check_bound(uses, variables)
        held = held_by(part, uses, variables)
        call = self._function(part, statements, uses, held, arguments)
        values = [self._argument(value, part) for value in arguments.values.values()]
        example = self._on_copies(call, arguments, values)
        names = ["the result"] if part.has_result else [*uses.gives]
        given = self._results.record_part(call, values, example, [*names, *held])
        self._remark(part)
        for name, value in zip(held, given[len(names) :], strict=True):
            self._results.changed_by_part(variables[name], value, name)  # type: ignore[arg-type]
        if part.has_result:
            self._results.note_shared(given[:1], arguments)
            return given[0]
        settled = self._results.settled(given[: len(names)], uses, variables, arguments)
        return [settled.get(name, variables.get(name)) for name in every.gives]

    def _check_apart(self, uses: Uses, arguments: Arguments) -> None:
        """Refuse a change of a tensor that the statement has by another name, too: as arguments of a call they share nothing."""
        for name in uses.changes:
            touched = functools.partial(self._mutations.touches, arguments.values.get(name))
            for other, value in arguments.values.items() if isinstance(arguments.values.get(name), torch.Tensor) else ():
                if other != name and any_nested(touched, value):
                    raise RefusedPart(f"it changes `{name}`, which may share its memory with `{other}`")

    def _check_modules(self, arguments: Arguments) -> None:
        for name, module in arguments.modules.items():
            path = self._recorder.paths.get(id(module))
            if path is None:
                raise RefusedPart(f"`{name}` is a module that is no part of the model")
            if path == "" or any(path == scope for scope, _ in self._recorder.scopes):
                raise RefusedPart("it needs `self` as a whole")

    def _check_changed(self, name: str, uses: Uses, variables: Mapping[str, object]) -> None:
        """Refuse what the graph could not see: a list with a second name, a list in a list, a tensor of the model."""
        value: Any = variables.get(name)
        if isinstance(value, nn.Module):
            raise RefusedPart(f"it changes what `{name}` keeps")
        if isinstance(value, torch.Tensor):
            with self._refusing():
                self._mutations.check_state(value.example if hasattr(value, "example") else value)
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
            self.held_modules[self._recorder.paths[id(value)]] = part
            self._recorder.leaves.append(self._recorder.paths[id(value)])  # it keeps what it keeps, as a leaf does
            return self._module_argument(value)
        return Proxy(value.node, self._recorder, value.example) if type(value) is Opaque else value

    def _module_argument(self, module: nn.Module) -> Proxy:
        node = self._recorder.attributes.node(self._recorder.paths[id(module)], Value(None, None))
        return Proxy(node, self._recorder, module)

    def _function(
        self, part: Part, statements: Sequence[ast.stmt], uses: Uses, held: Sequence[str], arguments: Arguments
    ) -> Callable[..., object]:
        """The statement as a function, one for all calls of the same form."""
        kinds = tuple((name, kind_of(value)) for name, value in arguments.values.items())
        key = (part, kinds, tuple(arguments.chains.items()), uses.gives, tuple(held))
        if key not in self.parts.functions:
            frame = places.user_frame(sys._getframe(1))
            assert frame is not None
            code, names = frame.f_code, frame.f_globals
            made = Statement(text_of_function(part, statements, uses, held, arguments), f"statement_{part.first[0]}", code.co_qualname,
                             str(names.get("__name__")), part.file, part.first[0])  # fmt: skip
            self.parts.functions[key] = made.function(names)
        return self.parts.functions[key]

    def _on_copies(self, call: Callable[..., object], arguments: Arguments, values: Sequence[object]) -> object:
        """Run the function on copies of the examples. Raises RefusedPart where it fails, or changes an argument unseen."""
        copies: list[tuple[torch.Tensor, object]] = []

        def copied(value: object) -> Any:
            value = self._running.concrete(value)
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                value = value.clone()
                copies.append((value, stamp(value)))
            return copy.copy(value) if isinstance(value, (list, dict)) else value

        given = [map_nested(copied, value) for value in values]
        modules, watch = list(arguments.modules.values()), Watch()
        self._recorder.paused += 1
        try:
            with contextlib.ExitStack() as stack, self._refusing():
                for module in modules:
                    stack.enter_context(untouched(module))
                for inner in (part for module in modules for part in module.modules()):
                    stack.enter_context(evaluated(inner))
                example = self._running.on_examples(watch.over(call), given, {})
        finally:
            self._recorder.paused -= 1
        if asked := watch.asked or next(filter(None, map(asked_in_script, modules)), ""):
            raise RefusedPart(f"{asked}() asks how a tensor lies in memory, and an int8 value may lie otherwise than the float one")
        if any(stamp(value) != before for value, before in copies):
            raise RefusedPart("it changes a tensor in place, which its text does not show")
        return example

    # ---- remarks and checks

    def _remark(self, part: Part) -> None:
        line = part.first[0]
        where = Where(None, self._recorder.scopes[-1][0] if self._recorder.scopes else None, places.spell(part.file, line))
        code = places.text_of(part.file, line)
        text = f"`{code}` runs as it stands, in floats: {self.parts.chosen[part].removesuffix(f' in `{code}`')}"
        remark = TraceRemark("float-statement", where, text)
        if remark not in self._recorder.remarks:
            self._recorder.remarks.append(remark)

    def check_parts(self) -> None:
        """Refuse parts with modules that are called elsewhere too: there they are int8."""
        held = {path: part for path, part in self.held_modules.items() if self._recorder.attributes.read(path) is not None}
        for node in self._recorder.graph.nodes if held else ():
            target = str(node.target)
            for path, part in held.items() if node.op in ("get_attr", "call_module") else ():
                if node is not self._recorder.attributes.read(path) and (target == path or target.startswith(f"{path}.")):
                    raise NewPart(part, f"`{path}`, which it calls, is used elsewhere as well", refused=True)


def _references(variables: Mapping[str, object], name: str) -> int:
    value = variables[name]
    return sys.getrefcount(value)


def _alone() -> int:
    """The references to what a variable alone holds, and the variables that are looked at."""
    value: list[int] = []
    return _references(locals(), "value")


_ALONE = _alone()
