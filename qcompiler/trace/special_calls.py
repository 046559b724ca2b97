"""Calls that are recorded as something else than the call itself: attributes, sizes, lists, assertions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from qcompiler.errors import InputError
from qcompiler.trace.guards import guard_bool
from qcompiler.trace.proxy import Method, Proxy
from qcompiler.trace.recording import Recording


def attribute(tracer: Recording, owner: object, name: str, *default: object) -> object:
    """`owner.name` of a traced tensor, or of a number made from sizes, which becomes concrete."""
    if not isinstance(owner, Proxy):
        return tracer.record("call_function", getattr, (owner, name), {})
    if not owner.is_tensor:
        return getattr(tracer.fix(owner, f"`{name}`"), name)
    if name == "shape":
        return tracer.sizes(owner)
    if name == "nbytes":
        return tracer.sizes(owner).numel() * owner.example.itemsize
    if callable(getattr(torch.Tensor, name, None)):
        return Method(owner, name)
    if name in ("T", "mT") and owner.example.dim() >= 2:
        dims = list(range(owner.example.dim()))
        return tracer.call("call_method", "permute", (owner, dims[::-1] if name == "T" else [*dims[:-2], dims[-1], dims[-2]]), {})
    with torch._C.DisableTorchFunction():
        value = getattr(owner.example, name, *default)
    return tracer.record("call_function", getattr, (owner, name), {}) if isinstance(value, torch.Tensor) else value


def size(tracer: Recording, owner: Any, dim: Any = None) -> object:
    """`owner.size()` and `owner.size(dim)`."""
    sizes = tracer.sizes(owner)
    return sizes if dim is None else sizes[dim]


def to_list(tracer: Recording, owner: Proxy) -> object:
    """`owner.tolist()`: a list of numbers of the graph, as long as the example's."""
    if not owner.example.dim():
        return owner.item()
    hits = tracer.hit_list(owner)
    return [to_list(tracer, one) for one in owner.unbind(0)] if hits is None else hits


def assertion(tracer: Recording, condition: Any, message: str = "") -> None:
    """`torch._assert`: a guard where the condition is about sizes, a call where it is about data."""
    if isinstance(condition, torch.Tensor):
        tracer.add_node("call_function", torch._assert, (condition, str(message)), {}, None)
    elif not condition.example:
        raise InputError(str(message) or "an assertion of the model fails", where=tracer.error("").where)
    else:
        tracer.add_node("call_function", guard_bool, (condition, True, str(message)), {}, None)


def is_same_size(tracer: Recording, owner: Any, other: Any) -> object:
    return owner.shape == other.shape


def as_function(function: Callable[..., object]) -> Callable[..., object]:
    """A method as the function of torch that it calls."""
    return lambda tracer, owner, *args, **kwargs: tracer.call("call_function", function, (owner, *args), kwargs)


SPECIAL: Mapping[object, Callable[..., object]] = {
    getattr: attribute,
    torch._assert: assertion,
    operator.setitem: lambda tracer, target, index, value: tracer.set_item(target, index, value),
    "size": size,
    "is_same_size": is_same_size,
    torch.is_same_size: is_same_size,
    "tolist": to_list,
    "bfloat16": lambda tracer, owner, **kwargs: tracer.call("call_method", "to", (owner, torch.bfloat16), kwargs),  # nor this
    "bool": lambda tracer, owner, **kwargs: tracer.call("call_method", "to", (owner, torch.bool), kwargs),  # TorchScript has no `bool()`
    "requires_grad_": lambda tracer, owner, *args, **kwargs: owner,
    **{name: as_function(getattr(torch, name)) for name in ("norm", "unique", "unique_consecutive")},  # in Python: TorchScript has others
}
