"""How a torch function that a model calls is written as a node."""

from __future__ import annotations

import operator
from typing import Any

import torch

from qcompiler.trace.proxy import Args

AUGMENTED = {
    "__iadd__": "add_", "__isub__": "sub_", "__imul__": "mul_", "__itruediv__": "div_", "__ifloordiv__": "floor_divide_",
    "__imod__": "remainder_", "__ipow__": "pow_", "__iand__": "bitwise_and_", "__ior__": "bitwise_or_", "__ixor__": "bitwise_xor_",
}  # fmt: skip
_METHODS: dict[object, str] = {}
for _name in dir(torch.Tensor):
    _function = getattr(torch.Tensor, _name)
    if callable(_function) and (_function not in _METHODS or _function.__name__ == _name):
        _METHODS[_function] = _name


def spelling(func: Any, args: Args) -> tuple[str, object, tuple[object, ...]]:
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
