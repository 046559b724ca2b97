"""From the recorded graph to a GraphModule: dead nodes dropped, names counted anew, the user's tensors under their names."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Target

from qcompiler.ir.graph_module import OwnGraphModule
from qcompiler.ir.names import keep_names, safe_parts, safe_path
from qcompiler.ir.types import SOURCE, Source, source_of
from qcompiler.ops.state_nodes import is_read, is_write
from qcompiler.trace import places
from qcompiler.trace.guards import TraceRemark, is_guard
from qcompiler.trace.state_reads import held_by
from qcompiler.trace.tracer import Tracer

_NOTHING = nn.Module()


def finish(tracer: Tracer, states: Iterable[str] = ()) -> tuple[fx.GraphModule, list[TraceRemark]]:
    """The traced model as a module that shares its parameters and leaf modules, and the remarks with its node names. `states`: those
    of `tracer.held` that are kept."""
    graph, root = fx.Graph(), _root(tracer.model)
    names = safe_parts([*(path for path, _ in _named(tracer.model)), *tracer.held])
    paths: dict[str, str] = {}  # in the graph -> in the model
    copies: dict[fx.Node, fx.Node] = {}
    constants: dict[str, str] = {}
    taken = {name for name, _ in tracer.model.named_children()} | set(dict(tracer.model.named_parameters(recurse=False)))
    for node in live_nodes(tracer.graph, states):
        target = node.target
        if node.op == "get_attr" and target in tracer.attributes.constants and target not in tracer.held:
            target = constants.setdefault(str(target), _free_name(len(constants), taken))
        elif node.op in ("get_attr", "call_module"):
            target = safe_path(names, str(target))
            paths[target] = str(node.target)
        args, kwargs = (fx.node.map_arg(part, copies.__getitem__) for part in (node.args, node.kwargs))
        copies[node] = new = graph.create_node(node.op, target, args, kwargs, _name(graph, node, target))  # type: ignore[arg-type]
        new.meta = node.meta | {SOURCE: _placed(new.name, source_of(node), root)}
    module = OwnGraphModule(nn.Module(), fx.Graph(), class_name=type(tracer.model).__name__)
    for old_name, new_name in constants.items():
        module.register_buffer(new_name, tracer.attributes.constants[old_name])
    for path in sorted(paths, key=lambda path: path.count(".")):
        _attach(module, tracer, path, paths[path])
    module.graph = graph
    module.training = tracer.model.training
    keep_names(module, names)
    new_names = {old.name: new.name for old, new in copies.items()}
    remarks = [replace(r, where=replace(r.where, node=new_names.get(r.where.node))) if r.where.node else r for r in tracer.remarks]
    return module, remarks


def _root(model: nn.Module) -> Source:
    """Where inputs and outputs come from, and calls that stand on no line of the user's: the forward of the model itself."""
    file, line = places.definition(type(model).forward)
    return Source(file, line, "", type(model).__name__)


def _placed(name: str, source: Source, root: Source) -> Source:
    """The source of a traced node: every later node made from it has this name in its origin."""
    if source.file is None:
        source = replace(source, file=root.file, line=root.line)
    if not source.module_type:
        source = replace(source, module_path=root.module_path, module_type=root.module_type)
    return replace(source, origin=(name,))


def live_states(graph: fx.Graph, always: Iterable[str]) -> list[str]:
    """The states that the outputs, guards and assertions need, by way of other states too, and those that are kept `always`."""
    found = dict.fromkeys(always)
    while True:
        more = dict.fromkeys(held_by(node) for node in live_nodes(graph, found) if is_read(node) or is_write(node))
        if all(name in found for name in more):
            return list(found)
        found |= more


def live_nodes(graph: fx.Graph, states: Iterable[str] = ()) -> list[fx.Node]:
    """The nodes that the outputs, guards, assertions and writes of these states need, in order.

    An assignment into a copy counts where the copy is read after it.
    """
    kept_states = dict.fromkeys(states)
    wanted: set[fx.Node] = set()
    kept: list[fx.Node] = []
    for node in reversed(list(graph.nodes)):
        needed = node in wanted or node.op in ("placeholder", "output") or is_guard(node) or node.target is torch._assert
        if node.target is operator.setitem and not needed:
            needed = node.args[0] in wanted
        needed = needed or (is_write(node) and held_by(node) in kept_states)
        if needed:
            kept.append(node)
            wanted.update(node.all_input_nodes)
    return kept[::-1]


def _free_name(number: int, taken: set[str]) -> str:
    name = f"_constant{number}"
    while name in taken:
        name = "_" + name
    return name


def _name(graph: fx.Graph, node: fx.Node, target: Target) -> str:
    if node.op == "output":
        return "output"
    return graph._target_to_str(str(target).lstrip("*") if node.op == "placeholder" else target)


def _named(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_modules(remove_duplicate=False)
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _attach(module: fx.GraphModule, tracer: Tracer, path: str, user: str) -> None:
    """Put the parameter, buffer or leaf module that the user calls `user` into the module under `path`."""
    *scopes, field = path.split(".")
    *users, user_field = user.split(".")
    owner: nn.Module = module
    original: nn.Module = tracer.model
    for item, user_item in zip(scopes, users, strict=True):
        child = original._modules.get(user_item)
        original = child if child is not None else _NOTHING  # a state may stand under the name of a dict
        if not isinstance(owner._modules.get(item), nn.Module):
            owner.add_module(item, nn.Module())
            owner._modules[item].training = original.training  # type: ignore[union-attr]
        owner = owner._modules[item]  # type: ignore[assignment]
    if user in tracer.held:
        owner.register_buffer(field, tracer.held[user], persistent=user_field not in original._non_persistent_buffers_set)
        return
    if owner is original:
        return
    leaf = tracer.leaf_calls.replacements.get(user) or original._modules.get(user_field)
    if leaf is not None:
        owner.add_module(field, leaf)
    elif user_field in original._buffers:
        owner.register_buffer(field, original._buffers[user_field], persistent=user_field not in original._non_persistent_buffers_set)
    else:
        setattr(owner, field, getattr(original, user_field))
