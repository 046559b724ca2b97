"""Multiply-accumulates of a function that no formula knows: it runs on shapes alone, and torch counts its operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from qcompiler.ir.nested import walk
from qcompiler.ir.types import value_of

OURS = frozenset({"aten", "prims", "prim"})  # namespaces whose products torch's counter knows
METHODS = "call_method"


def counted_by_torch(node: fx.Node) -> int | None:
    """None where torch cannot tell: a function of the user's, a call that does not run on shapes, operators of other libraries.

    A product takes two tensors: what is given fewer is not run. Numbers that the forward computes are not known here, so 1 stands
    for them, and the count holds only where the result has its shape all the same.
    """
    if not _is_torchs(node):
        return None
    operands = [value for value in walk((node.args, node.kwargs)) if isinstance(value, fx.Node)]
    if sum(value_of(operand).dtype is not None for operand in operands) < 2:
        return 0
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), _stand_in)  # type: ignore[misc]
    counted = _Operators()
    try:
        result = _run(node, args, kwargs, counted)
    except Exception:  # shapes alone may not be enough for it, and it may be anything of the user's
        return None
    wanted = value_of(node).shape
    if counted.foreign or (wanted is not None and isinstance(result, Tensor) and tuple(result.shape) != wanted):
        return None
    return counted.products


def _is_torchs(node: fx.Node) -> bool:
    """Whether running it once more does nothing but compute; a function of the user's may print or count."""
    module = str(getattr(node.target, "__module__", None) or "torch")  # methods are names, and torch's own builtins have no module
    return node.op == METHODS or module.partition(".")[0] in ("torch", "torchvision", "_operator", "math", "builtins", "qcompiler")


def _stand_in(node: fx.Node) -> Any:
    value = value_of(node)
    return 1 if value.shape is None or value.dtype is None else torch.empty(value.shape, dtype=value.dtype, device="meta")


def _run(node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, object], counted: _Operators) -> object:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    target: Any = getattr(type(args[0]), str(node.target)) if node.op == METHODS else node.target
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counted:
        return target(*args, **kwargs)


class _Operators(TorchDispatchMode):
    """Adds up the products of the operators that run below it; `foreign`: whether others than torch's own did."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.foreign = 0, False

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> object:
        from torch.utils.flop_counter import flop_registry

        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        self.foreign |= func.namespace not in OURS
        if packet in flop_registry:
            self.products += flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2  # two operations each
        elif packet in VECTORS:
            self.products += VECTORS[packet](args)
        return result


VECTORS = {  # products of vectors, which torch's counter leaves out
    torch.ops.aten.mv: lambda args: args[0].numel(),
    torch.ops.aten.addmv: lambda args: args[1].numel(),
    torch.ops.aten.dot: lambda args: args[0].numel(),
    torch.ops.aten.vdot: lambda args: args[0].numel(),
}
