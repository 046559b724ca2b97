"""What code that nobody follows does with the tensors that it is given: it runs on copies of the examples, which show it."""

from __future__ import annotations

from typing import TypeVar

import torch

from qcompiler.ops.reference import own_copy
from qcompiler.trace.memory import stamp
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.nested import map_nested
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.recording import Recording
from qcompiler.trace.running import Running

T = TypeVar("T")


class Borrowed:
    """The arguments of one such call."""

    def __init__(self, recorder: Recording, running: Running, mutations: Mutations) -> None:
        self._recorder, self._running, self._mutations = recorder, running, mutations
        self._given: list[tuple[Proxy, torch.Tensor, object]] = []  # each with its copy, and how that was

    def copies(self, arguments: T) -> T:
        """Examples in place of proxies, tensors among them copied."""
        return map_nested(self._copied, arguments)  # type: ignore[no-any-return]

    def _copied(self, value: object) -> object:
        if type(value) is not Proxy or not value.is_tensor:
            return self._running.concrete(value)
        if (known := next((copied for proxy, copied, _ in self._given if proxy is value), None)) is not None:
            return known
        copied = value.example.clone()
        self._given.append((value, copied, stamp(copied)))
        return copied

    def changed(self, arguments: T) -> T:
        """Behind the run: the arguments of the call in the graph, with a copy in place of each that it changed. What it left in them is no
        value of the graph, since a value may be read as int8 before the call: whoever reads one of them later gets an error."""
        changed = {id(proxy): proxy for proxy, copied, before in self._given if stamp(copied) != before}
        if not changed:
            return arguments
        made: dict[int, Proxy] = {}
        for proxy in changed.values():
            if any(other is not proxy and self._mutations.touches(proxy, other) for other, _, _ in self._given):
                raise self._recorder.error("a tensor is changed in place by code that is given another view of it")
            self._mutations.check_state(proxy.example)
            made[id(proxy)] = self._recorder.record("call_function", own_copy, (proxy,), {})
        for proxy in changed.values():
            for other in (proxy, *self._recorder.memory.kin(proxy)):
                self._mutations.poison(other, "use of a tensor that was changed in place by code that is not followed")
        return map_nested(lambda value: made.get(id(value), value) if type(value) is Proxy else value, arguments)  # type: ignore[no-any-return]

    def note_lent(self, result: object) -> None:
        """Let what the call gives of an argument's memory know it: nobody knows what it gives at the next call."""
        map_nested(self._note_lent, result)

    def _note_lent(self, part: object) -> object:
        if type(part) is not Proxy or not part.is_tensor:
            return part
        start = part.example.untyped_storage().data_ptr()  # by address: what numpy and dlpack give is a storage of its own
        for proxy, copied, _ in self._given:
            memory = copied.untyped_storage()
            if memory.data_ptr() <= start < memory.data_ptr() + memory.nbytes():
                self._mutations.may_share((part, proxy))
        return part
