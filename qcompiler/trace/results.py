"""What the user's code gets for the result of a recorded call: proxies, in the result's own containers."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import fx

from qcompiler.ops import trees
from qcompiler.trace.holding import Holding
from qcompiler.trace.nested import has_tensor
from qcompiler.trace.proxy import Proxy, Sizes
from qcompiler.trace.recording import Recording

# What a number in a result is: from sizes, from data where the graph cannot have it, from outside the trace.
Kind = Literal["size", "data", "boundary"]
Make = Callable[[], fx.Node]


class Results:
    """The results of one recorder's calls."""

    def __init__(self, recorder: Recording, holding: Holding) -> None:
        self._recorder, self._holding = recorder, holding

    def wrap(self, make: Make, example: Any, kind: Kind) -> Any:
        """What stands for a result; `make` appends its node."""
        if isinstance(example, (torch.Tensor, bool, int, float)):
            return self._value(make, example, kind)
        if example is None or isinstance(example, (str, torch.dtype, torch.device)):
            make()
            return example
        node = make()
        self._holding.hold_pieces(node, example)
        return self._children(node, example, kind)

    def _value(self, make: Make, example: Any, kind: Kind) -> object:
        is_tensor = isinstance(example, torch.Tensor)
        if not is_tensor and kind == "data":
            raise self._recorder.error(f"a Python {type(example).__name__} is made from a value that depends on data")
        if is_tensor and (example.is_sparse or example.is_nested):
            raise self._recorder.error("a sparse or nested tensor cannot be traced")
        proxy = self._recorder.bind(make(), example)
        return self._holding.fix(proxy, "a number from outside the trace") if kind == "boundary" and not is_tensor else proxy

    def _children(self, node: fx.Node, example: Any, kind: Kind) -> object:
        recorder = self._recorder

        def child(function: Callable[..., object], key: object, item: object) -> object:
            proxy = Proxy(node, recorder, example)
            return self.wrap(lambda: recorder.add_node("call_function", function, (proxy, key), {}, item), item, kind)

        def items(pairs: Iterable[tuple[object, object]]) -> list[object]:
            return [child(operator.getitem, key, item) for key, item in pairs]

        kindred = type(example)
        if isinstance(example, torch.Size):
            return Sizes(items(enumerate(example)))
        if isinstance(example, (tuple, list)):
            values = items(enumerate(example))
            return kindred(*values) if hasattr(kindred, "_fields") else kindred(values)
        if trees.is_tree(example) and not isinstance(example, dict):
            whole, parts = Proxy(node, recorder, example), trees.children(example)
            listed = self.wrap(lambda: recorder.add_node("call_function", trees.children, (whole,), {}, parts), parts, kind)
            return trees.put_together(kindred)(listed, trees.context(example))
        if isinstance(example, dict) and not dataclasses.is_dataclass(example):
            changed = copy.copy(example)
            for key, item in example.items():
                changed[key] = child(operator.getitem, key, item)
            return changed
        if hasattr(example, "__dict__") and has_tensor(vars(example)):
            changed = copy.copy(example)
            for name, item in list(vars(example).items()):
                object.__setattr__(changed, name, child(getattr, name, item))
            return changed
        if kind == "data":
            raise recorder.error(f"a {kindred.__name__} is made from a value that depends on data")
        return example
