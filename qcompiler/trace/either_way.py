"""Values that a condition on data chooses where it ends the function, or stands in an expression: both are computed.

A function that returns early is given switches at its returns (`rewritten.py`). At the condition, what the function does up to the early
return is recorded, then its other way; at the end the result is `choose(condition, this one, that one)`, tensor by tensor.
"""

from __future__ import annotations

import inspect
import math
import operator
from types import FrameType
from typing import Any

import torch

from qcompiler.ops.reference import choose
from qcompiler.trace import places
from qcompiler.trace.early_returns import EarlyReturn, early_return_at
from qcompiler.trace.in_frame import call_in_frame
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.nested import map_nested
from qcompiler.trace.proxy import Proxy, Sizes
from qcompiler.trace.recording import Recording
from qcompiler.trace.regions import Region, Regions
from qcompiler.trace.rewritten import Switch, returned_by, with_returns
from qcompiler.trace.statements import Branch
from qcompiler.trace.syntax import Position
from qcompiler.trace.untouched import Untouched

_EQUAL = (bool, int, float, str, torch.dtype, torch.device)


class EitherWay:
    """Early returns under conditions on data, and `a if condition else b`."""

    def __init__(self, recorder: Recording, mutations: Mutations, regions: Regions) -> None:
        self._recorder, self._mutations, self.regions = recorder, mutations, regions

    # ---- early returns

    def returns_early(self, frame: FrameType, proxy: Proxy) -> bool | None:
        """The truth value with which a function goes on that returns early else; None where it cannot be said."""
        switch = returned_by(frame.f_code)
        found = early_return_at(frame) if switch is not None else None
        if switch is None or found is None:
            return None
        holds = self._recorder.record("call_function", bool, (proxy,), {})
        condition = holds if found.answer else self.regions.opposite(holds)
        place = places.user_line(frame, ())
        seen, local = Untouched([self._recorder.model, *_given(frame)]), Untouched(frame.f_locals.values())
        value, changed, poisoned = self.regions.aside(lambda: self._snapshot(self._way(frame, found, switch)))
        outside = seen.changed()
        local.put_back()  # what the way did to the function's own containers ends with its return
        if outside:
            seen.put_back()
            raise self._recorder.error("what a function does before it returns early, under a condition on data, is seen by others", place)
        self._mutations.forget_copies()
        region = Region(Branch(found.answer, found.first, found.last), frame, place, condition, {}, changed, poisoned, *self.regions.now())
        region.ends, region.other, region.kept = "return", value, seen
        self.regions.open.append(region)
        self.regions.note_branch(place, "both ways are computed to their return, and the one counts that the condition takes")
        return found.answer

    def _way(self, frame: FrameType, found: EarlyReturn, switch: Switch) -> Any:
        """What a function returns early, recorded as code of the same lines."""
        file = frame.f_code.co_filename
        return call_in_frame(frame, found.way, lambda function, module: with_returns(function, module, file, switch))

    def end_function(self, value: Any) -> Any:
        """What a function with early returns gives, at one of its returns."""
        self._recorder.at_event()
        frame = places.calling_frame()
        while self.regions.open and self.regions.open[-1].frame is frame and self.regions.open[-1].ends == "return":
            value = self._end(value)
        return value

    def _end(self, value: Any) -> Any:
        """Close the innermost region with the value that counts where its condition holds; the value in any case."""
        region = self.regions.open[-1]
        try:
            region.ends = "statements"
            self.regions.leave(len(self.regions.open) - 1)
            if region.kept is not None and region.kept.changed():
                raise self._recorder.error("what lists, dicts or objects hold is changed under a condition on data", region.place)
            return self._either(region, value, region.other)
        except Exception as error:
            error.region = region  # type: ignore[attr-defined]
            raise

    # ---- `a if condition else b`

    def begin_choice(self, condition: Any, first: Position, last: Position) -> bool:
        """Whether a condition depends on data: then both values are computed."""
        frame = places.calling_frame()
        if not self._is_data(condition) or frame is None:
            return False
        holds = self._recorder.record("call_function", bool, (condition,), {})
        place = places.user_line(frame, ())
        region = Region(Branch(True, first, last), frame, place, holds, {}, {}, [], *self.regions.now())
        region.ends, region.kept = "choice", Untouched([self._recorder.model, *frame.f_locals.values()])
        self.regions.open.append(region)
        self.regions.note_branch(place, "both values are computed, and the one counts that the condition takes")
        return True

    def end_choice(self, yes: Any, no: Any) -> Any:
        region = self.regions.open[-1]
        region.other = no
        self._check_unchanged(region)
        return self._end(yes)

    def _check_unchanged(self, region: Region) -> None:
        if self.regions.first_entries(region.undo, region.start):
            error = self._recorder.error("a value that a condition on data chooses changes a tensor in place", region.place)
            error.region = region  # type: ignore[attr-defined]
            raise error

    # ---- `a and b`, `a or b`, `not a`

    def end_logic(self, other: Any, both: bool) -> Any:
        """What the condition that began last and another one are together; the other one is computed in any case."""
        region = self.regions.open[-1]
        self._check_unchanged(region)
        region.other = None
        holds = region.condition
        self._end(None)
        if self._is_data(other):
            other = self._recorder.record("call_function", bool, (other,), {})
            return self._recorder.record("call_function", operator.and_ if both else operator.or_, (holds, other), {})
        return holds if bool(other) is both else not both

    def opposite_of(self, condition: Any) -> Any:
        if not self._is_data(condition):
            return not condition
        return self.regions.opposite(self._recorder.record("call_function", bool, (condition,), {}))

    def _is_data(self, value: Any) -> bool:
        return type(value) is Proxy and (value.is_tensor or value.node in self._recorder.from_data)

    # ---- values

    def _snapshot(self, value: Any) -> Any:
        """A value as it is now, whatever becomes of the variables that hold it."""

        def copied(leaf: Any) -> Any:
            if type(leaf) is not Proxy:
                return leaf
            if leaf.stale:
                raise self._recorder.error(leaf.stale)
            return Proxy(leaf.node, self._recorder, leaf.example)

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
        raise self._recorder.error("what one way gives is of another form than what the other gives", region.place)

    def _number(self, region: Region, yes: Any, no: Any) -> Any:
        """The one number or the other, as arithmetic that scripts have as well. (Neither is infinite: 0 * inf is no number.)"""
        if not all(math.isfinite(_example(value)) for value in (yes, no)):
            raise self._recorder.error("one way gives a number that is not finite", region.place)
        takes = self._recorder.record("call_function", int, (region.condition,), {})
        return takes * yes + (1 - takes) * no

    def _tensor(self, region: Region, yes: Any, no: Any) -> Proxy:
        if _example(yes).dtype != _example(no).dtype:
            raise self._recorder.error("what one way gives is of another dtype than what the other gives", region.place)
        made = self._recorder.add_node("call_function", choose, (region.condition, yes, no), {}, _example(yes))
        self._recorder.from_data.add(made)
        return self._recorder.bind(made, _example(yes).clone())


def _given(frame: FrameType) -> list[object]:
    """A function's arguments, which its caller holds as well."""
    code = frame.f_code
    stars = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + stars]
    return [frame.f_locals[name] for name in (*names, *code.co_freevars) if name in frame.f_locals]


def _example(value: Any) -> Any:
    return value.example if type(value) is Proxy else value
