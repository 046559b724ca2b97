"""Results of classes that a forward makes: what they hold, by name or in order. The file has the tensors alone."""

from __future__ import annotations

import dataclasses

from torch import fx

from qcompiler.ops.trees import PutTogether


def fields_of(node: fx.Node) -> dict[str, object] | list[object] | None:
    """The fields of a dict, a dataclass or a named tuple, the parts of a tuple or a registered class; None for any other call."""
    kind = node.target
    if isinstance(kind, PutTogether):
        return list(node.args[0])  # type: ignore[arg-type]
    if not isinstance(kind, type):
        return None
    if issubclass(kind, dict) and not node.kwargs and all(isinstance(arg, dict) for arg in node.args):
        return {key: value for arg in node.args for key, value in arg.items()}  # type: ignore[union-attr]
    if names := _names(kind):
        return {**dict(zip(names, node.args)), **node.kwargs}
    return list(node.args[0]) if issubclass(kind, tuple) and isinstance(node.args[0], (list, tuple)) else None


def _names(kind: type) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init)
    return tuple(getattr(kind, "_fields", ()))
