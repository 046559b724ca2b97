"""Every node knows where it comes from and what it holds: what a pass left out is filled in from its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.ir.types import SOURCE, VALUE, Source, Value, source_of, value_of


def inherit_sources(graph: fx.Graph) -> None:
    """Fills in the sources that passes left out: from the first input, else (constants) from the first user."""
    for node in graph.nodes:
        _inherit(node, node.all_input_nodes)
    for node in reversed(graph.nodes):
        _inherit(node, list(node.users))


def inherit_values(graph: fx.Graph) -> None:
    """Fills in the shapes and dtypes that passes left out, by the node's own function on tensors without data."""
    for node in graph.nodes:
        if VALUE in node.meta or node.op not in ("call_function", "call_method"):
            continue
        if all(value_of(source).shape is not None for source in node.all_input_nodes):
            found = _on_meta(node)
            if isinstance(found, Tensor):
                node.meta[VALUE] = Value(tuple(found.shape), found.dtype)


def _on_meta(node: fx.Node) -> object:
    """The node's result without data; None where that cannot be told."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), _meta)
    function: Callable[..., Any] = node.target if callable(node.target) else getattr(Tensor, str(node.target), lambda *a, **k: None)
    try:
        with torch.no_grad():
            return function(*args, **kwargs)
    except Exception:  # a function that has no such form, or needs data: the verifier says what is missing
        return None


def _meta(node: fx.Node) -> Any:
    value = value_of(node)
    assert value.shape is not None
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _inherit(node: fx.Node, neighbours: list[fx.Node]) -> None:
    own = source_of(node)
    if own.file and own.module_type and own.origin:
        return
    other = next((s for s in map(source_of, neighbours) if s.file or s.module_type or s.origin), None)
    if other is not None:
        node.meta[SOURCE] = _filled(own, other)


def _filled(own: Source, other: Source) -> Source:
    if not own.module_type:
        own = replace(own, module_path=other.module_path, module_type=other.module_type)
    if not own.file:
        own = replace(own, file=other.file, line=other.line)
    return replace(own, origin=own.origin or other.origin)
