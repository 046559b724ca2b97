"""How a torch function that a model calls is written as a node."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch.fx.node import Target

from qcompiler.trace.proxy import Args, Kwargs

AUGMENTED = {
    "__iadd__": "add_", "__isub__": "sub_", "__imul__": "mul_", "__itruediv__": "div_", "__ifloordiv__": "floor_divide_",
    "__imod__": "remainder_", "__ipow__": "pow_", "__iand__": "bitwise_and_", "__ior__": "bitwise_or_", "__ixor__": "bitwise_xor_",
}  # fmt: skip
NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}
_METHODS: dict[object, str] = {}
for _name in dir(torch.Tensor):
    _function = getattr(torch.Tensor, _name)
    if callable(_function) and (_function not in _METHODS or _function.__name__ == _name):
        _METHODS[_function] = _name


def spelling(func: Any, args: Args) -> tuple[str, Target, tuple[object, ...]]:
    """How a torch function is written as a node: operator, attribute, method or function."""
    if getattr(func, "__name__", "") == "__get__":
        return "call_function", getattr, (args[0], func.__self__.__name__)
    name = _METHODS.get(func)
    if name is None:
        return "call_function", func, args
    if not (name.startswith("__") and name.endswith("__")):
        return "call_method", name, args
    if name in AUGMENTED:
        return "call_method", AUGMENTED[name], args
    if (plain := getattr(operator, name, None)) is not None:
        return "call_function", getattr(operator, plain.__name__, plain), args
    swapped = getattr(operator, f"__{name[3:]}", None) if name.startswith("__r") else None
    return ("call_function", swapped, (args[1], args[0])) if swapped else ("call_method", name, args)


def under_torch_names(function: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """The arguments under torch's own names: what torch computes in C++ takes numpy's as well, where they are no names of its own.

    The tensor that a function works on is its first argument by place, whatever the call names it.
    """
    if not any(key in NUMPY or key == "input" for key in kwargs) or not isinstance(function, (BuiltinFunctionType, MethodDescriptorType)):
        return args, kwargs
    known = _arguments(function.__name__)
    named = {_torch_name(key, known, kwargs): value for key, value in kwargs.items()}
    if "input" in known and "input" in named and not args:
        args = (named.pop("input"),)
    return args, named


def _torch_name(key: str, known: frozenset[str], given: Mapping[str, object]) -> str:
    name = NUMPY.get(key, key)
    return name if key not in known and name in known and name not in given else key


@functools.cache
def _arguments(name: str) -> frozenset[str]:
    """The names of all arguments of a function of torch, of any overload; "input" is what comes first."""
    packet = getattr(torch.ops.aten, name, None)
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()] if packet is not None else []
    return frozenset("input" if argument.name == "self" else argument.name for schema in schemas for argument in schema.arguments)
