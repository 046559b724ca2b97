"""The output node from what forward returned."""

from __future__ import annotations

import dataclasses

from qcompiler.errors import TraceError, Where
from qcompiler.trace.tracer import Tracer

HINT = (
    "register its class with torch.utils._pytree.register_pytree_node (of transformers: register_dynamic_cache_export_support of "
    "transformers.integrations.executorch), or keep it out of the result by the flag that asks for it, in the examples or as "
    "concrete_args (use_cache=False)"
)


def add_output(tracer: Tracer, result: object) -> None:
    """Add the output node. Raises TraceError that says which part of the result no program can build."""
    try:
        made = tracer.create_arg(result)
    except TraceError:
        found = _unwritten(tracer, result, "")
        if found is None:
            raise
        path, value = found
        place = f"at `{path}` of its result" if path else "as its result"
        text = f"forward returns an object of type {type(value).__name__} {place}, which cannot be written into a program"
        raise TraceError(text, where=Where(module_path=""), hint=HINT) from None
    tracer.graph.output(made)


def _unwritten(tracer: Tracer, value: object, path: str) -> tuple[str, object] | None:
    """The first part of a nest of containers that is no argument, and the way to it."""
    parts = _parts(value)
    for spelled, part in parts:
        if (found := _unwritten(tracer, part, path + spelled)) is not None:
            return found
    try:
        tracer.create_arg(None if parts else value)
    except TraceError as error:
        return (path, value) if "cannot be written" in error.message else None
    return None


def _parts(value: object) -> list[tuple[str, object]]:
    """What stands in a container, each with how it is reached."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", part) for name, part in zip(value._fields, value)]
    return [(f"[{i}]", part) for i, part in enumerate(value)] if isinstance(value, (tuple, list)) else []
