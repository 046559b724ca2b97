"""Calls of torch that are no row of the op table, since nothing of them is int8, and yet have a C form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx

# The names of the arguments in order; a * stands before those that are settings.
_CALLS: Mapping[Callable[..., Any], tuple[str, str]] = {
    F.scaled_dot_product_attention: (
        "scaled_dot_product_attention", "query key value *attn_mask=None dropout_p=0.0 is_causal=False scale=None enable_gqa=False"),
}  # fmt: skip


def bound(node: fx.Node) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    """Name, arguments and settings of a call; None for any other node."""
    if node.op != "call_function" or node.target not in _CALLS:
        return None
    name, signature = _CALLS[node.target]  # type: ignore[index]
    names = [entry.removeprefix("*").partition("=")[0] for entry in signature.split()]
    values = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    values = {key: value for key, value in values.items() if value is not None}
    settings = next((i for i, entry in enumerate(signature.split()) if entry.startswith("*")), len(names))
    return name, tuple(values.get(key) for key in names[:settings]), {key: values[key] for key in names[settings:] if key in values}
