"""Parameters and buffers of a graph module by dotted name, and the get_attr nodes that stand for them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from qcompiler.ir.readers import readers
from qcompiler.ir.types import SOURCE, VALUE, Source, Value, source_of


def attribute(root: nn.Module, path: str) -> Tensor:
    """The tensor under a dotted name."""
    owner, _, name = path.rpartition(".")
    value: Tensor = getattr(root.get_submodule(owner), name)
    return value


def has_attribute(root: nn.Module, path: str) -> bool:
    module: object = root
    for part in path.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def container(root: nn.Module, path: str) -> nn.Module:
    """The submodule under a dotted name, made on the way where it is missing."""
    for part in filter(None, path.split(".")):
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root


def set_attribute(root: nn.Module, path: str, value: Tensor, *, parameter: bool = False) -> None:
    """Puts a tensor under a dotted name, in place of what stood there."""
    owner, _, name = path.rpartition(".")
    module = container(root, owner)
    if hasattr(module, name):
        delattr(module, name)
    if parameter:
        module.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))
    else:
        module.register_buffer(name, value)


def get_attr(gm: fx.GraphModule, path: str, source: Source | None = None) -> fx.Node:
    """A new get_attr node at the graph's insertion point."""
    node = gm.graph.create_node("get_attr", path)
    node.meta[VALUE] = Value.of(attribute(gm, path))
    node.meta[SOURCE] = source or Source()
    return node


def free_path(gm: fx.GraphModule, path: str, user: fx.Node) -> str:
    """`path`, or a name beside it where another op than `user` reads that attribute."""
    if not any(u is not user for node in readers(gm, path) for u in node.users):
        return path
    k = 2
    while has_attribute(gm, f"{path}_{k}"):
        k += 1
    return f"{path}_{k}"


def unused_path(root: nn.Module, path: str, mark: str = "_") -> str:
    """`path`, with marks behind it where something of the user's has that name."""
    while has_attribute(root, path):
        path += mark
    return path


def set_parameter(gm: fx.GraphModule, user: fx.Node, path: str, value: Tensor) -> fx.Node:
    """Stores a new parameter for `user` under `path` (or beside it, where the old one has other users) and reads it."""
    path = free_path(gm, path, user)
    set_attribute(gm, path, value.detach().clone(memory_format=torch.contiguous_format), parameter=True)
    return get_attr(gm, path, source_of(user))


def bias_path(bias: object, weight_path: str) -> str:
    """Where the bias of an op stands: under its get_attr node's name, or beside the weight where it had none."""
    if isinstance(bias, fx.Node):
        return str(bias.target)
    prefix, _, name = weight_path.rpartition(".")
    return f"{prefix}.{name.replace('weight', 'bias') if 'weight' in name else name + '_bias'}".lstrip(".")


def drop_unused_modules(gm: fx.GraphModule) -> None:
    """Deletes the submodules that no node calls or reads from; those below a called one stay.

    What GraphModule.delete_all_unused_submodules does, in time that is linear in the number of modules.
    """
    used: set[str] = set()
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    called |= {path for path in read if isinstance(attribute(gm, path), nn.Module)}
    for target in called | read:
        while target and target not in used:
            used.add(target)
            target = target.rpartition(".")[0]
    _drop_below(gm, "", used, called)


def _drop_below(module: nn.Module, prefix: str, used: set[str], called: set[str]) -> None:
    for name, child in list(module._modules.items()):
        path = prefix + name
        if child is None or path in called:
            continue
        if path in used:
            _drop_below(child, f"{path}.", used, called)
        else:
            delattr(module, name)
