"""From the recorded graph to a GraphModule: dead nodes dropped, names counted anew, the user's tensors under their names."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from qcompiler.trace.guards import TraceRemark, is_guard
from qcompiler.trace.tracer import Tracer


def finish(tracer: Tracer) -> tuple[fx.GraphModule, list[TraceRemark]]:
    """The traced model as a module that shares its parameters and leaf modules, and the remarks with its node names."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    constants: dict[str, str] = {}
    taken = {name for name, _ in tracer.model.named_children()} | set(dict(tracer.model.named_parameters(recurse=False)))
    for node in _live(tracer.graph):
        target = node.target
        if node.op == "get_attr" and target in tracer.constants:
            target = constants.setdefault(str(target), _free_name(len(constants), taken))
        args, kwargs = (fx.node.map_arg(part, copies.__getitem__) for part in (node.args, node.kwargs))
        copies[node] = new = graph.create_node(node.op, target, args, kwargs, _name(graph, node, target))  # type: ignore[arg-type]
        new.meta = dict(node.meta)
    module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=type(tracer.model).__name__)
    _attach(module, tracer, graph, {new: tracer.constants[old] for old, new in constants.items()})
    module.graph = graph
    module.training = tracer.model.training
    names = {old.name: new.name for old, new in copies.items()}
    remarks = [replace(r, where=replace(r.where, node=names.get(r.where.node))) if r.where.node else r for r in tracer.remarks]
    return module, remarks


def _live(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the outputs, guards and assertions need, in order.

    An assignment into a copy counts where the copy is read after it.
    """
    wanted: set[fx.Node] = set()
    kept: list[fx.Node] = []
    for node in reversed(list(graph.nodes)):
        needed = node in wanted or node.op in ("placeholder", "output") or is_guard(node) or node.target is torch._assert
        if node.target is operator.setitem and not needed:
            needed = node.args[0] in wanted
        if needed:
            kept.append(node)
            wanted.update(node.all_input_nodes)
    return kept[::-1]


def _free_name(number: int, taken: set[str]) -> str:
    name = f"_constant{number}"
    while name in taken:
        name = "_" + name
    return name


def _name(graph: fx.Graph, node: fx.Node, target: Any) -> str:
    if node.op == "output":
        return "output"
    return graph._target_to_str(str(target).lstrip("*") if node.op == "placeholder" else target)


def _attach(module: fx.GraphModule, tracer: Tracer, graph: fx.Graph, constants: dict[str, torch.Tensor]) -> None:
    """Put every parameter, buffer, constant and leaf module that the graph names into the module."""
    targets = {str(node.target): node.op for node in graph.nodes if node.op in ("get_attr", "call_module")}
    for target in sorted(targets, key=lambda t: t.count(".")):
        if target in constants:
            module.register_buffer(target, constants[target])
            continue
        *path, field = target.split(".")
        owner: nn.Module = module
        original: nn.Module = tracer.model
        for item in path:
            original = getattr(original, item)
            if not isinstance(owner._modules.get(item), nn.Module):
                owner.add_module(item, nn.Module())
                owner._modules[item].training = original.training  # type: ignore[union-attr]
            owner = owner._modules[item]  # type: ignore[assignment]
        value = tracer.replacements.get(target) or getattr(original, field)
        if owner is original or (field in owner._modules and isinstance(value, nn.Module)):
            continue
        if field in original._buffers:
            owner.register_buffer(field, original._buffers[field], persistent=field not in original._non_persistent_buffers_set)
        else:
            setattr(owner, field, value)
