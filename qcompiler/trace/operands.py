"""A value of the user's as argument of a node: what a graph can hold, and calls that build the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from qcompiler.errors import TraceError
from qcompiler.ir.types import Value
from qcompiler.ops import trees
from qcompiler.trace.mode import Training
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy, Sizes
from qcompiler.trace.recording import Recording

# What torch.fx and codegen write into source.
LITERALS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)


class Elsewhere(BaseException):
    """A later trace met a value of an earlier one. (No `except Exception`, of the user's code or of what tries a statement on its own,
    takes it: nothing of the model can run as it stands any more.)"""

    def __init__(self, error: TraceError) -> None:
        super().__init__(str(error))
        self.error = error


class Operands:
    """Arguments of the nodes of one recorder."""

    def __init__(self, recorder: Recording) -> None:
        self._recorder = recorder

    def of(self, value: Any) -> object:
        """A value as argument of a node: proxies and tensors become nodes, objects that carry them calls that build them."""
        kind = type(value)
        if kind is Proxy:
            return self._of_proxy(value)
        if issubclass(kind, torch.Tensor):
            return self._recorder.attribute_node(value)
        if kind is Training:  # a module's flag is read at each call
            return self._recorder.attributes.node(value.path, Value(None, None))
        if kind is Opaque:
            return value.node
        if kind in (tuple, list, Sizes):
            return (list if kind is list else tuple)(self.of(item) for item in value)
        if kind is dict:
            return {self._literal(key): self.of(item) for key, item in value.items()}
        if kind is slice:
            return slice(*map(self.of, (value.start, value.stop, value.step)))
        return self._of_object(value, kind)

    def _of_proxy(self, value: Proxy) -> fx.Node:
        if value.stale:
            raise self._recorder.error(value.stale)
        if value.tracer is not self._recorder:
            raise Elsewhere(self._recorder.error("use of a value of an earlier call, which is kept where the trace does not find it"))
        return value.node

    def _of_object(self, value: object, kind: Callable[..., object]) -> object:
        """A call that builds an object which carries values, or a plain value."""
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._built(kind, tuple(value), {}, value)
        if isinstance(value, tuple) and kind is not torch.Size:
            return self._built(kind, (tuple(value),), {}, value)
        if dataclasses.is_dataclass(value):
            return self._built(kind, (), {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}, value)
        if isinstance(value, dict):
            return self._built(kind, (dict(value),), {}, value)
        if trees.is_tree(value) and not isinstance(value, LITERALS):
            return self._built(trees.put_together(type(value)), (trees.children(value), trees.context(value)), {}, value)
        return self._literal(value)

    def _built(self, kind: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object], value: object) -> fx.Node:
        return self._recorder.add_node("call_function", kind, args, kwargs, value)

    def _literal(self, value: Any) -> object:
        """A plain value as it may stand in code; TraceError for other objects, whose repr is any text."""
        if type(value) in LITERALS or value is Ellipsis:
            return value
        if type(value) in (tuple, frozenset):
            return type(value)(map(self._literal, value))
        if isinstance(value, np.generic):
            return self._literal(value.item())
        if isinstance(value, str):
            return str.__str__(value)  # of a subclass, such as an enum's member: the text
        plain = next((base for base in (int, float, complex) if isinstance(value, base)), None)
        if plain is None:
            raise self._recorder.error(f"an argument of type {type(value).__name__}, which cannot be written into a program")
        return plain(value)
