"""Numbers and truth values that Python asks a traced value for at once."""

from __future__ import annotations

from typing import Any

from qcompiler.trace import places
from qcompiler.trace.either_way import EitherWay
from qcompiler.trace.holding import Holding
from qcompiler.trace.numbers import ask_for_stand_ins
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.recording import Recording
from qcompiler.trace.statements import branch_at


class Truths:
    """What a trace answers: the example's value, held by a guard, or the way that the user's code is to take."""

    def __init__(self, recorder: Recording, holding: Holding, ways: EitherWay) -> None:
        self._recorder, self._holding, self._ways = recorder, holding, ways

    def number(self, proxy: Proxy, how: str) -> Any:
        """The value of a number for a builtin that needs it; Again where a stand-in for the builtin can do without."""
        ask_for_stand_ins(places.calling_frame(), is_size=not (proxy.is_tensor or proxy.node in self._recorder.from_data))
        return self._holding.fix(proxy, how)

    def truth(self, proxy: Proxy) -> bool:
        """Which way the user's code goes at a condition; TraceError where it depends on data and only one way can be recorded."""
        if not proxy.is_tensor and proxy.node not in self._recorder.from_data:
            ask_for_stand_ins(places.calling_frame(), ("min", "max"), is_size=True)
            return bool(self._holding.fix(proxy, "bool()"))
        self._recorder.at_event()
        frame = places.calling_frame()
        branch = branch_at(frame) if frame is not None and places.is_user_file(frame.f_code.co_filename) else None
        if branch is None and frame is not None and not proxy.stale and (answer := self._ways.returns_early(frame, proxy)) is not None:
            return answer
        if branch is None or frame is None or proxy.stale:
            ask_for_stand_ins(frame)
            raise self._recorder.error(proxy.stale or f"bool() of a {'value' if proxy.is_tensor else 'size'} that depends on data")
        holds = self._recorder.record("call_function", bool, (proxy,), {})
        if branch.is_check:
            if holds.example is branch.answer:
                self._holding.hold(holds, "a condition", f"bool() made {branch.answer} concrete")
            return bool(holds.example)
        condition = holds if branch.answer else self._ways.regions.opposite(holds)
        self._ways.regions.enter(branch, frame, condition)
        return branch.answer
