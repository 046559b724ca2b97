"""Numbers that a model is called with: values of the graph where they are operands, held fixed by a guard elsewhere."""

from __future__ import annotations

from typing import Any

from qcompiler.trace.nested import map_nested
from qcompiler.trace.proxy import Args, Kwargs, Proxy
from qcompiler.trace.recording import Recording

# Functions and methods that take a number as their first or second operand, in all spellings; in place too.
OPERANDS = frozenset({
    "add", "iadd", "sub", "isub", "subtract", "rsub", "mul", "imul", "multiply", "div", "divide", "true_divide", "truediv", "itruediv",
    "eq", "ne", "lt", "le", "gt", "ge",
})  # fmt: skip
# What an int may say of sizes and places: the graph computes with sizes of tensors there as well.
SIZED = frozenset({"getitem", "view", "reshape", "expand", "zeros", "ones", "arange", "new_zeros", "new_ones"})


def number(tracer: Recording, proxy: Proxy, path: str) -> Proxy:
    """An int or float argument as a value of the graph. What asks for its value (a branch, a range, an index) leaves a guard."""
    bound = tracer.bind(proxy.node, proxy.example)
    tracer.numbers[proxy.node] = path
    return bound


def settled(tracer: Recording, target: Any, args: Args, kwargs: Kwargs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with given numbers made concrete, each behind a guard, where the op does not compute with them.

    The settings of an op (a dropout's share, a kernel's stride) decide how it is compiled; its operands do not.
    """
    if not tracer.numbers:
        return args, kwargs
    name = (target if isinstance(target, str) else getattr(target, "__name__", "")).strip("_")
    if getattr(target, "__module__", "") == "_operator" and _are_numbers(args):
        return args, kwargs

    def fixed(value: object) -> object:
        return tracer.fix(value, f"an argument of {name}") if type(value) is Proxy and value.node in tracer.numbers else value

    def free(value: object) -> object:
        return value if type(value) is Proxy and type(value.example) is int else fixed(value)

    if name in SIZED:
        return map_nested(free, tuple(args)), map_nested(fixed, kwargs)
    operands = tuple(args[:2]) if name in OPERANDS else ()
    named = {key: value for key, value in kwargs.items() if name in OPERANDS and key in ("input", "other")}
    rest = map_nested(fixed, {key: value for key, value in kwargs.items() if key not in named})
    return (*operands, *map_nested(fixed, tuple(args[len(operands) :]))), rest | named


def repeated(tracer: Recording, args: Args) -> object:
    """`[x] * n` for a traced number: the list, its length held by a guard; NotImplemented for other products."""
    if len(args) != 2 or not any(isinstance(a, (list, tuple, str)) for a in args):
        return NotImplemented
    one, other = (tracer.fix(a, "a length") if type(a) is Proxy and not a.is_tensor else a for a in args)
    return one * other


def _are_numbers(args: tuple[object, ...]) -> bool:
    return all(type(a) in (int, float, bool) or (type(a) is Proxy and not a.is_tensor) for a in args)
