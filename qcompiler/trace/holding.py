"""What a trace makes concrete is held: by a guard that each call checks, or not at all (TraceError)."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

from torch import fx

from qcompiler.errors import TraceError, Where
from qcompiler.trace import places
from qcompiler.trace.called_from import called_from
from qcompiler.trace.guards import TraceRemark, guard_for
from qcompiler.trace.pieces import count_varies
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.recording import Recording
from qcompiler.trace.state_reads import state_behind


class Holding:
    """The numbers, flags and structures that the user's Python code gets to see."""

    def __init__(self, recorder: Recording) -> None:
        self._recorder = recorder
        self._owed: tuple[FrameType, int, TraceError] | None = None  # for a number of data that was handed out as an index
        self._guarded: dict[tuple[fx.Node, object], fx.Node] = {}
        self._indexed: tuple[FrameType | None, int, list[fx.Node]] = (None, -1, [])
        self._worded: list[tuple[FrameType, int, fx.Node]] = []  # guards for text: the frame, its instruction, the guard
        self.shows = 0  # > 0 while text is made for people

    def fix(self, proxy: Proxy, how: str, frame: FrameType | None = None) -> Any:
        """The concrete value of a proxy that was computed from sizes, held by a guard; TraceError where it depends on data."""
        if proxy.is_tensor:
            raise self._recorder.error(f"{how} of a value that depends on data")
        if proxy.stale:
            raise self._recorder.error(proxy.stale)
        if proxy.node in self._recorder.from_data:
            raise self._recorder.error(f"{how} of a size that depends on data")
        if (kept := state_behind(proxy.node)) is not None:
            raise self._recorder.error(f"{how} of a number that follows from what forward keeps in `{kept}` between calls")
        node = self._guarded.get((proxy.node, proxy.example))
        if node is None or node._erased:
            what = f"the argument {self._recorder.numbers[proxy.node]!r}" if proxy.node in self._recorder.numbers else "a size"
            node = self.hold(proxy, what, f"{how} made {proxy.example} concrete")
            if frame is not None:
                self._note_index(frame, node)
        return proxy.example

    def hold(self, proxy: Proxy, what: str, why: str) -> fx.Node:
        """A guard on a number or flag, and the remark that names it."""
        value = proxy.example
        file, line = places.user_line(sys._getframe(1), places.BOUNDARY)
        text = places.text_of(file, line)
        place = f" at {self._place()}" if self._recorder.scopes else ""
        message = f"the traced model holds {what} fixed{place}"
        node = self._recorder.add_node("call_function", guard_for(value), (proxy, value, message), {}, None)
        self._guarded[(proxy.node, value)] = node
        where = Where(node.name, self._recorder.scopes[-1][0] if self._recorder.scopes else None, places.spell(file, line))
        self._recorder.remarks.append(TraceRemark("guard", where, why + (f" in `{text}`" if text else "")))
        return node

    def _place(self) -> str:
        """The user's line in the words of a guard, which goes into generated code: without paths of this machine."""
        file, line = places.user_line(sys._getframe(1), places.BOUNDARY)
        if text := places.text_of(file, line):
            return f"`{text}` ({places.spell(os.path.basename(file or ''), line)})"
        return f"module {self._recorder.scopes[-1][0]!r}"

    def hold_pieces(self, node: fx.Node, example: Any) -> None:
        """Hold the number of values in a result, where another call may give another one."""
        if count_varies(node, example, self._recorder.fixed_sizes):
            if node in self._recorder.from_data:
                raise self._recorder.error("the number of pieces of a result depends on data")
            length = self._recorder.add_node("call_function", len, (Proxy(node, self._recorder, example),), {}, len(example))
            held = Proxy(length, self._recorder, len(example))
            if self._recorder.scopes:
                self.hold(held, "the number of pieces", f"a result of {len(example)} pieces was taken apart")
            else:
                self.hold(held, f"the number of values in {node.name!r}", f"{node.name!r} is fixed at {len(example)} values")

    # ---- text

    def word(self, proxy: Proxy, how: str, frame: FrameType | None) -> object:
        """What a size is spelled as in a text: it is held, unless the text is shown to people alone (`forget_words`)."""
        if self._recorder.paused or self.shows:
            return proxy.example
        remarks = len(self._recorder.remarks)
        value = self.fix(proxy, how)
        if len(self._recorder.remarks) > remarks and (frame := places.user_frame(frame)) is not None:
            self._worded.append((frame, frame.f_lasti, self._guarded[(proxy.node, value)]))
        return value

    def forget_words(self, frame: FrameType | None) -> None:
        """Drop the guards on what a text names that was made for the call which `frame` is in: a message, not a value."""
        for known, position, node in self._worded:
            if known is frame and position < frame.f_lasti and _same_call(frame, position):
                self._drop(node)
        self._worded.clear()

    def _drop(self, node: fx.Node) -> None:
        self._recorder.remarks = [remark for remark in self._recorder.remarks if remark.where.node != node.name]
        self._recorder.graph.erase_node(node)

    # ---- indices

    def index(self, proxy: Proxy, frame: FrameType) -> Any:
        """The number for a caller that needs one at once: torch's argument parser, which then passes the call to us (`revoke`)."""
        if proxy.is_tensor or proxy.node not in self._recorder.from_data:
            return self.fix(proxy, "an index", frame)
        error = self._recorder.error("an index from a number that depends on data")
        error.instruction = (frame.f_code, frame.f_lasti, frame.f_globals, called_from(frame))  # type: ignore[attr-defined]
        self._owed = (frame, frame.f_lasti, error)
        return proxy.example

    def settle(self) -> None:
        """Raise for a number of data that was handed out as an index and became no argument of a call."""
        if self._owed is not None:
            error, self._owed = self._owed[2], None
            raise error

    def _note_index(self, frame: FrameType, node: fx.Node) -> None:
        known, position, nodes = self._indexed
        if known is frame and position == frame.f_lasti:
            nodes.append(node)
        else:
            self._indexed = (frame, frame.f_lasti, [node])

    def revoke(self, frame: FrameType | None) -> None:
        """Drop the guards that torch's argument parser caused by asking for an index, now that it passes the call to us.

        The parser tries `__index__` on each argument before it dispatches; both happen within one instruction of one frame.
        """
        if self._owed is not None and self._owed[0] is frame and self._owed[1] == frame.f_lasti:
            self._owed = None
        known, position, nodes = self._indexed
        if known is not None and known is frame and position == frame.f_lasti:
            for node in reversed(nodes):
                self._drop(node)
        self._indexed = (None, -1, [])

    def forget_index(self) -> None:
        """Forget what was asked for as an index: what was recorded for it is taken back."""
        self._indexed, self._owed = (None, -1, []), None


def _same_call(frame: FrameType, position: int) -> bool:
    """Whether an earlier instruction of a frame stands within the call that the frame is in now."""
    spans = list(frame.f_code.co_positions())
    first, last, *columns = spans[frame.f_lasti // 2]
    line, _, *column = spans[position // 2]
    if None in (first, last, line, *columns, *column):
        return False
    inside = (first, columns[0]) <= (line, column[0]) <= (last, columns[1])  # type: ignore[operator]
    return inside
