"""What any graph must be, whatever its stage: nodes in order, names apart, attributes that exist, one output."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import fx

from qcompiler.errors import Where
from qcompiler.ir.text import format_node
from qcompiler.ir.types import source_of


def where(node: fx.Node) -> Where:
    """The place of a node, for errors and remarks."""
    source = source_of(node)
    return Where(format_node(node), source.module_path or None, source.location)


def form_problem(gm: fx.GraphModule) -> tuple[str, fx.Node | None] | None:
    """What makes this no graph that can run, and where; None where it is one."""
    seen: set[fx.Node] = set()
    names: set[str] = set()
    outputs = 0
    for node in gm.graph.nodes:
        missing = next((source for source in node.all_input_nodes if source not in seen), None)
        if missing is not None:
            return f"%{missing.name} is used before it is computed", node
        if node.name in names:
            return f"two nodes have the name {node.name}", node
        seen.add(node)
        names.add(node.name)
        outputs += node.op == "output"
        text = _target(node) or _attribute(gm, node)
        if text:
            return text, node
    return None if outputs == 1 else (f"a graph has one output, this one {outputs}", None)


def _target(node: fx.Node) -> str | None:
    fits = callable(node.target) if node.op == "call_function" else isinstance(node.target, str)
    return None if fits else f"%{node.name} calls {node.target!r:.80}, which cannot be called so"


def _attribute(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op not in ("get_attr", "call_module"):
        return None
    try:
        value: object = attrgetter(str(node.target))(gm)
    except AttributeError:
        return f"{node.target} does not exist"
    if node.op == "call_module" and not isinstance(value, torch.nn.Module):
        return f"{node.target} is not a module"
    return None
