"""What a statement that runs as it stands gives, as values of the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from qcompiler.trace.float_arguments import Arguments, RefusedPart
from qcompiler.trace.float_uses import Uses
from qcompiler.trace.guards import guard_length
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.nested import map_nested
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.recording import Recording


class FloatResults:
    """The results of such statements."""

    def __init__(self, recorder: Recording, mutations: Mutations) -> None:
        self._recorder, self._mutations = recorder, mutations

    def record_part(self, call: Callable[..., Any], values: Sequence[Any], example: Any, names: Sequence[str]) -> list[object]:
        """The call in the graph, and what stands for each value that it gives."""
        node = self._recorder.add_node("call_function", call, tuple(values), {}, example)
        self._recorder.from_data.add(node)
        if len(names) == 1:
            return [self._standing_for(node, example, names[0])]
        if not names:
            return []
        whole = Proxy(node, self._recorder, example)
        return [self._item(whole, i, item, name) for i, (name, item) in enumerate(zip(names, example, strict=True))]

    def _item(self, whole: Proxy, key: int, example: object, name: str) -> object:
        node = self._recorder.add_node("call_function", operator.getitem, (whole, key), {}, example)
        self._recorder.from_data.add(node)
        return self._standing_for(node, example, name)

    def _standing_for(self, node: fx.Node, example: object, name: str) -> object:
        if isinstance(example, torch.Tensor):
            if example.is_sparse or example.is_nested:
                raise RefusedPart(f"{name} is a sparse or nested tensor")
            return self._recorder.bind(node, example.clone())
        if type(example) in (bool, int, float):
            return self._recorder.bind(node, example)
        if type(example) is tuple:
            whole = Proxy(node, self._recorder, example)
            self._recorder.add_node("call_function", guard_length, (whole, len(example), f"what `{name}` is made of"), {}, None)
            return tuple(self._item(whole, i, item, f"{name}[{i}]") for i, item in enumerate(example))
        if isinstance(example, (list, dict, set)):
            return Opaque(node, self._recorder, example)
        if example is None and name == "the result":
            return None
        raise RefusedPart(f"{name} may be a {type(example).__name__}, which no graph has as a value")

    def settled(self, given: Sequence[object], uses: Uses, variables: Mapping[str, object], arguments: Arguments) -> dict[str, object]:
        """What the variables hold behind the statement that it gives; a tensor that was changed in place is changed for all who hold it."""
        found, new = dict(zip(uses.gives, given, strict=True)), []
        for name, value in found.items():
            old = variables.get(name)
            if name in uses.changes and name not in uses.rebinds and isinstance(old, torch.Tensor):
                found[name] = self.changed_by_part(old, value, name)
            else:
                new.append(value)
        self.note_shared(new, arguments)
        return found

    def changed_by_part(self, tensor: torch.Tensor, value: object, name: str) -> Proxy:
        """Let all who hold a tensor see what the statement has left in it."""
        if type(value) is not Proxy or not value.is_tensor:
            raise RefusedPart(f"`{name}` is a tensor that is changed in place, or another value")
        owner = self._mutations.variable(tensor)
        self._mutations.mutate(owner, value.node, value.example)
        return owner

    def note_shared(self, given: Sequence[object], arguments: Arguments) -> None:
        """What a statement gives may be what it was given, or a view of it: nobody knows at the next call."""
        found: list[Proxy] = []

        def look(value: object) -> object:
            if type(value) is Proxy and value.is_tensor:
                found.append(value)
            return value

        map_nested(look, (tuple(given), tuple(v for v in arguments.values.values() if not isinstance(v, nn.Module))))
        self._mutations.may_share(found)
