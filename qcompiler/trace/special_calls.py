"""Calls that are recorded as something else than the call itself: attributes, sizes, lists, assertions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from qcompiler.errors import InputError
from qcompiler.trace.asking import ASKING
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
    if name == "_base":
        raise tracer.error("_base, which asks what a tensor is a view of")
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


def _cut_along(dim: int) -> Callable[..., object]:
    """`hsplit`, `vsplit`, `dsplit`: cuts along one dimension, which `tensor_split` makes as well."""

    def cut(tracer: Recording, *args: Any, **named: Any) -> object:
        x, indices_or_sections = (*args, *named.values())  # `sections=`, `indices=`
        along = 0 if dim == 1 and x.example.dim() == 1 else dim
        return tracer.call("call_method", "tensor_split", (x, indices_or_sections, along), {})

    return cut


def _at_least(dims: int) -> Callable[..., object]:
    """`atleast_2d` of one tensor: itself, or with dimensions of length 1."""

    def made(tracer: Recording, *tensors: Any) -> object:
        if len(tensors) != 1 or not isinstance(tensors[0], torch.Tensor) or not isinstance(tensors[0], Proxy):
            return tracer.record("call_function", _AT_LEAST[dims], tensors, {})
        x: Any = tensors[0]
        if x.dim() == 0:
            return x.reshape((1,) * dims)
        x = x.unsqueeze(0) if x.dim() == 1 and dims > 1 else x
        return x.unsqueeze(-1) if x.dim() < dims else x

    return made


_AT_LEAST = {1: torch.atleast_1d, 2: torch.atleast_2d, 3: torch.atleast_3d}


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
    **{key: _cut_along(1) for key in ("hsplit", torch.hsplit)},
    **{key: _cut_along(0) for key in ("vsplit", torch.vsplit)},
    **{key: _cut_along(2) for key in ("dsplit", torch.dsplit)},
    **{function: _at_least(dims) for dims, function in _AT_LEAST.items()},
    torch.is_same_size: is_same_size,
    "tolist": to_list,
    "bfloat16": lambda tracer, owner, **kwargs: tracer.call("call_method", "to", (owner, torch.bfloat16), kwargs),  # nor this
    "bool": lambda tracer, owner, **kwargs: tracer.call("call_method", "to", (owner, torch.bool), kwargs),  # TorchScript has no `bool()`
    "requires_grad_": lambda tracer, owner, *args, **kwargs: owner,
    **ASKING,
    **{name: as_function(getattr(torch, name)) for name in ("norm", "unique", "unique_consecutive")},  # in Python: TorchScript has others
}
