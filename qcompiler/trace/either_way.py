"""Values that a condition on data chooses where it ends the function, or stands in an expression: both are computed.

A function that returns early is given switches at its returns (`rewritten.py`). At the condition, what the function does up to the early
return is recorded, then its other way; at the end the result is `choose(condition, this one, that one)`, tensor by tensor.
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
from types import FrameType
from typing import Any

import torch

from qcompiler.ops.reference import choose
from qcompiler.trace import places
from qcompiler.trace.early_returns import EarlyReturn, early_return_at
from qcompiler.trace.nested import map_nested
from qcompiler.trace.numbers import user_frame
from qcompiler.trace.proxy import Proxy, Sizes
from qcompiler.trace.regions import Region, Regions
from qcompiler.trace.rewritten import Switch, returned_by, with_returns
from qcompiler.trace.statements import Branch, Place
from qcompiler.trace.untouched import Untouched

_EQUAL = (bool, int, float, str, torch.dtype, torch.device)


class EitherWay(Regions):
    """The recorder's part for early returns, and for `a if condition else b`."""

    # ---- early returns

    def returns_early(self, frame: FrameType, proxy: Proxy) -> bool | None:
        switch = returned_by(frame.f_code)
        found = early_return_at(frame) if switch is not None else None
        if switch is None or found is None:
            return None
        holds = self.record("call_function", bool, (proxy,), {})
        condition = holds if found.answer else self.opposite(holds)
        place = places.user_line(frame, ())
        seen, local = Untouched([self.model, *_given(frame)]), Untouched(frame.f_locals.values())
        value, changed, poisoned = self.aside(lambda: self._snapshot(self._way(frame, found, switch)))
        outside = seen.changed()
        local.put_back()  # what the way did to the function's own containers ends with its return
        if outside:
            seen.put_back()
            raise self.error("what a function does before it returns early, under a condition on data, is seen by others", place)
        self._copies.clear()
        region = Region(Branch(found.answer, found.first, found.last), frame, place, condition, {}, changed, poisoned, *self.now())
        region.ends, region.other, region.kept = "return", value, seen
        self.regions.append(region)
        self.note_branch(place, "both ways are computed to their return, and the one counts that the condition takes")
        return found.answer

    def _way(self, frame: FrameType, found: EarlyReturn, switch: Switch) -> Any:
        """What a function returns early, recorded as code of the same lines."""
        module = ast.parse("def way(): pass")
        function = module.body[0]
        assert isinstance(function, ast.FunctionDef)
        names = [name for name in frame.f_locals if name.isidentifier()]
        function.args.args = [ast.copy_location(ast.arg(name), found.way[0]) for name in names]
        function.body = list(found.way)
        made: dict[str, Any] = {}
        exec(with_returns(module, frame.f_code.co_filename, switch), frame.f_globals, made)
        return made["way"](*(frame.f_locals[name] for name in names))

    def end_function(self, value: Any) -> Any:
        """What a function with early returns gives, at one of its returns."""
        self.at_event()
        frame = user_frame()
        while self.regions and self.regions[-1].frame is frame and self.regions[-1].ends == "return":
            value = self._end(value)
        return value

    def _end(self, value: Any) -> Any:
        """Close the innermost region with the value that counts where its condition holds; the value in any case."""
        region = self.regions[-1]
        try:
            region.ends = "statements"
            self.leave(len(self.regions) - 1)
            if region.kept is not None and region.kept.changed():
                raise self.error("what lists, dicts or objects hold is changed under a condition on data", region.place)
            return self._either(region, value, region.other)
        except Exception as error:
            error.region = region  # type: ignore[attr-defined]
            raise

    def check_end(self, region: Region) -> None:
        if region.ends != "statements":
            raise self.error("a condition on data ends a function in a way that cannot be followed", region.place)

    # ---- `a if condition else b`

    def begin_choice(self, condition: Any, first: Place, last: Place) -> bool:
        """Whether a condition depends on data: then both values are computed."""
        frame = user_frame()
        if not self._is_data(condition) or frame is None:
            return False
        holds = self.record("call_function", bool, (condition,), {})
        place = places.user_line(frame, ())
        region = Region(Branch(True, first, last), frame, place, holds, {}, {}, [], *self.now())
        region.ends, region.kept = "choice", Untouched([self.model, *frame.f_locals.values()])
        self.regions.append(region)
        self.note_branch(place, "both values are computed, and the one counts that the condition takes")
        return True

    def end_choice(self, yes: Any, no: Any) -> Any:
        region = self.regions[-1]
        region.other = no
        self._check_unchanged(region)
        return self._end(yes)

    def _check_unchanged(self, region: Region) -> None:
        if self._first_entries(region.undo, region.start):
            error = self.error("a value that a condition on data chooses changes a tensor in place", region.place)
            error.region = region  # type: ignore[attr-defined]
            raise error

    # ---- `a and b`, `a or b`, `not a`

    def end_logic(self, other: Any, both: bool) -> Any:
        """What the condition that began last and another one are together; the other one is computed in any case."""
        region = self.regions[-1]
        self._check_unchanged(region)
        region.other = None
        holds = region.condition
        self._end(None)
        if self._is_data(other):
            other = self.record("call_function", bool, (other,), {})
            return self.record("call_function", operator.and_ if both else operator.or_, (holds, other), {})
        return holds if bool(other) is both else not both

    def opposite_of(self, condition: Any) -> Any:
        return self.opposite(self.record("call_function", bool, (condition,), {})) if self._is_data(condition) else not condition

    def _is_data(self, value: Any) -> bool:
        return type(value) is Proxy and (value.is_tensor or value.node in self._from_data)

    # ---- values

    def _snapshot(self, value: Any) -> Any:
        """A value as it is now, whatever becomes of the variables that hold it."""

        def copied(leaf: Any) -> Any:
            if type(leaf) is not Proxy:
                return leaf
            if leaf.stale:
                raise self.error(leaf.stale)
            return Proxy(leaf.node, self, leaf.example)

        return map_nested(copied, value)

    def _either(self, region: Region, yes: Any, no: Any) -> Any:
        """The one value or the other, by the condition of a region."""
        kinds = {type(yes), type(no)}
        if yes is no or (Proxy not in kinds and len(kinds) == 1 and isinstance(yes, _EQUAL) and yes == no):
            return yes
        if type(yes) is Proxy and type(no) is Proxy and yes.node is no.node:
            return yes
        if {type(_example(yes)), type(_example(no))} in ({int}, {float}):
            return self._number(region, yes, no)
        if isinstance(_example(yes), torch.Tensor) and isinstance(_example(no), torch.Tensor):
            return self._tensor(region, yes, no)
        if len(kinds) == 1 and isinstance(yes, (tuple, list)) and Sizes not in kinds and len(yes) == len(no):
            items = [self._either(region, a, b) for a, b in zip(yes, no, strict=True)]
            return type(yes)(*items) if hasattr(yes, "_fields") else type(yes)(items)
        if kinds == {dict} and list(yes) == list(no):
            return {key: self._either(region, yes[key], no[key]) for key in yes}
        raise self.error("what one way gives is of another form than what the other gives", region.place)

    def _number(self, region: Region, yes: Any, no: Any) -> Any:
        """The one number or the other, as arithmetic that scripts have as well. (Neither is infinite: 0 * inf is no number.)"""
        if not all(math.isfinite(_example(value)) for value in (yes, no)):
            raise self.error("one way gives a number that is not finite", region.place)
        takes = self.record("call_function", int, (region.condition,), {})
        return takes * yes + (1 - takes) * no

    def _tensor(self, region: Region, yes: Any, no: Any) -> Proxy:
        if _example(yes).dtype != _example(no).dtype:
            raise self.error("what one way gives is of another dtype than what the other gives", region.place)
        made = self.add_node("call_function", choose, (region.condition, yes, no), {}, _example(yes))
        self._from_data.add(made)
        return self.bind(made, _example(yes).clone())


def _given(frame: FrameType) -> list[object]:
    """A function's arguments, which its caller holds as well."""
    code = frame.f_code
    stars = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + stars]
    return [frame.f_locals[name] for name in (*names, *code.co_freevars) if name in frame.f_locals]


def _example(value: Any) -> Any:
    return value.example if type(value) is Proxy else value
