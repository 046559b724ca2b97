"""What a statement that runs as it stands gives, as values of the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from qcompiler.trace.float_arguments import Arguments, RefusedPart
from qcompiler.trace.float_source import Part
from qcompiler.trace.float_uses import Uses
from qcompiler.trace.guards import guard_length
from qcompiler.trace.hits import Hits
from qcompiler.trace.nested import map_nested
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy


class FloatResults(Hits):
    """The recorder's part for what such statements give."""

    def record_part(self, call: Callable[..., Any], values: Sequence[Any], example: Any, uses: Uses, part: Part) -> list[object]:
        """The call in the graph, and what stands for each value that it gives."""
        node = self.add_node("call_function", call, tuple(values), {}, example)
        self._from_data.add(node)
        if part.has_result or len(uses.gives) == 1:
            return [self._standing_for(node, example, uses.gives[0] if uses.gives else "the result")]
        if not uses.gives:
            return []
        whole = Proxy(node, self, example)
        return [self._item(whole, i, item, name) for i, (name, item) in enumerate(zip(uses.gives, example, strict=True))]

    def _item(self, whole: Proxy, key: int, example: object, name: str) -> object:
        node = self.add_node("call_function", operator.getitem, (whole, key), {}, example)
        self._from_data.add(node)
        return self._standing_for(node, example, name)

    def _standing_for(self, node: fx.Node, example: object, name: str) -> object:
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

    def settled_variable(self, name: str, value: Any, uses: Uses, variables: Mapping[str, Any]) -> object:
        """What a variable holds behind the statement; tensors that were changed in place are changed for all who hold them."""
        old = variables.get(name)
        if name not in uses.changes or not isinstance(old, torch.Tensor):
            return value
        if type(value) is not Proxy or not value.is_tensor:
            raise RefusedPart(f"`{name}` is a tensor that is changed in place, or another value")
        owner = self.variable(old)
        if name in uses.rebinds:  # the old one may be changed, or not
            for other in (owner, *self.memory.aliases(owner)):
                self.poison(other, "use of a tensor that a statement may have changed in place")
            return value
        self.mutate(owner, value.node, value.example)
        return owner

    def note_shared(self, given: Sequence[object], arguments: Arguments) -> None:
        """What a statement gives may be what it was given, or a view of it: nobody knows at the next call."""
        found: list[Proxy] = []

        def look(value: object) -> object:
            if type(value) is Proxy and value.is_tensor:
                found.append(value)
            return value

        map_nested(look, (tuple(given), tuple(v for v in arguments.values.values() if not isinstance(v, nn.Module))))
        self.may_share(found)
