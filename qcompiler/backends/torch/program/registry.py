"""The operations a program may name: a fixed set, each under one name that is no import path.

| name                    | stands for                                                      |
|-------------------------|-----------------------------------------------------------------|
| quantized::conv2d.new   | an OpOverload of quantized, onednn or (non-mutating) aten       |
| runtime.prepack_conv2d  | a function of the torch back end that the compiler itself wrote |
| ops.quantize            | a reference function of the QUANTIZED stage                     |
| torch.flatten, F.relu   | a function of torch, torch.nn.functional, torch.linalg...       |
| guard.guard_int         | a check of what the trace held fixed                            |
| operator.add, math.sqrt | Python's own; builtins as builtins.len                          |
| method.reshape          | a method of torch.Tensor                                        |
| leaf, submodule         | a call of a float submodule, and the submodule itself           |
| external.NAME           | a callable of the user's, held by the module and never by a file |
| record.NAME             | a class of the user's that a result has (ops/records.py)        |
"""

from __future__ import annotations

import builtins
import collections
import functools
import math
import operator
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from qcompiler.backends.native import runtime as native
from qcompiler.backends.torch.runtime import channels, fit, float_windows, floats, packs, recurrent, tables
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.errors import QCompilerError
from qcompiler.ops import recurrent_float, reference, state, trees
from qcompiler.trace import guards

LEAF = "leaf"  # op name of a call of a submodule; its path is the first argument
RUNTIME = "qcompiler.backends.torch.runtime."
SUBMODULE = "submodule"  # a submodule as an argument; its path is the only argument of this op
EXTERNAL = "external."
METHOD = "method."
RECORD = "record."
NATIVE_REGION, RUN_REGION = "runtime.native_region", "runtime.run_region"
STATE_WRITE = "ops.write_"  # writes what a forward keeps between calls

BUILTINS = ("abs", "bool", "dict", "float", "getattr", "int", "len", "list", "max", "min", "range", "round", "slice", "sum", "tuple")
OPERATORS = (
    "add", "and_", "contains", "eq", "floordiv", "ge", "getitem", "gt", "iadd", "imul", "index", "invert", "isub", "itruediv", "le",
    "lshift", "lt", "matmul", "mod", "mul", "ne", "neg", "not_", "or_", "pos", "pow", "rshift", "setitem", "sub", "truediv", "truth", "xor",
)  # fmt: skip

# What torch.nn.utils.rnn and F.grouped_mm (the experts of transformers) call.
PRIVATE = ("_pack_padded_sequence", "_pad_packed_sequence", "_grouped_mm")

# Reads or writes memory or files outside its tensors, takes code, or changes the process.
REFUSED = frozenset((
    "apply_", "map_", "map2_", "from_file", "from_numpy", "frombuffer", "from_dlpack", "as_strided", "as_strided_", "as_strided_copy",
    "as_strided_scatter", "set_", "resize_", "resize", "resize_as_", "resize_as", "resize_as_sparse_", "register_hook",
    "register_post_accumulate_grad_hook", "backward", "retain_grad", "module_load", "share_memory_", "pin_memory", "cuda", "xpu", "ipu",
    "to_mkldnn", "storage", "untyped_storage", "storage_type", "data_ptr", "numpy", "tolist", "dlpack_device", "eval", "exec",
    "has_torch_function", "has_torch_function_unary", "has_torch_function_variadic", "handle_torch_function", "boolean_dispatch",
    "assert_int_or_pair", "reduce_ex", "reinforce", "requires_grad_", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes",
))  # fmt: skip
AT_REFUSED = REFUSED | {"save", "load", "copy_", "print", "warn"}


RETIRED = {  # operations of older files that this version does not run, with the reason
    **{f"runtime.prepack_conv_transpose{dims}d": "torch's own kernels of transposed convolutions are wrong where in and out channels differ"
       for dims in (1, 2, 3)},
    **dict.fromkeys(("runtime.pad_end", "runtime.requantize"), "it was part of kernels that others have taken the place of"),
}  # fmt: skip


class UnknownOpError(QCompilerError):
    """A program names an operation that is not in the registry."""

    default_code = "unknown-op"


class RetiredOpError(UnknownOpError):
    """A program of an older version names an operation that is run no more."""

    default_code = "retired-op"


def _public(module: Any, kinds: tuple[type, ...], names: Any = None) -> dict[str, object]:
    found = {}
    for name in sorted(names or dir(module)):
        value = getattr(module, name, None)
        if not name.startswith("_") and name not in REFUSED and isinstance(value, kinds) and not isinstance(value, type):
            found[name] = value
    return found


def is_private(target: object) -> bool:
    """Whether it is a function of torch's C++ code that has no public name. A file may not name it."""
    name = getattr(target, "__name__", "")
    return (
        name.startswith("_")
        and isinstance(target, types.BuiltinFunctionType)
        and getattr(torch._C._VariableFunctions, name, None) == target
    )


@functools.cache
def table() -> Mapping[str, Callable[..., Any]]:
    """Every operation but overloads, methods and externals, by name; the first name of a callable is the one it is written with."""
    code, functions = (types.FunctionType, types.BuiltinFunctionType), (types.FunctionType,)
    found: dict[str, Any] = {}
    for module in (runtime, packs, channels, floats, float_windows, recurrent, tables, fit, native):
        found |= {f"runtime.{n}": f for n, f in _public(module, functions).items() if f.__module__ == module.__name__}
    found |= {f"guard.{f.__name__}": f for f in guards.GUARDS}
    for module in (reference, recurrent_float, state):
        found |= {f"ops.{n}": f for n, f in _public(module, functions).items() if f.__module__ == module.__name__}
    found["trees.children"] = trees.children
    found |= {f"torch.{n}": getattr(torch, n) for n in _public(torch._C._VariableFunctions, (object,)) if hasattr(torch, n)}
    found |= {f"torch.{n}": getattr(torch, n) for n in PRIVATE}
    found |= {f"torch.{n}": f for n, f in _public(torch, code, torch.functional.__all__).items()}
    found |= {f"F.{n}": f for n, f in _public(F, (*code, torch._ops.OpOverloadPacket)).items() if "torch" in (f.__module__ or "torch")}
    for space in (torch.special, torch.linalg, torch.fft):
        name = space.__name__.rpartition(".")[2]
        found |= {f"{name}.{n}": f for n, f in _public(space, code).items()}
    found |= {f"operator.{n}": getattr(operator, n) for n in OPERATORS}
    found |= {f"math.{n}": f for n, f in _public(math, code).items()}
    found |= {f"builtins.{n}": getattr(builtins, n) for n in BUILTINS}
    found["collections.OrderedDict"] = collections.OrderedDict
    return found


@functools.cache
def _names() -> Mapping[object, str]:
    found: dict[Any, str] = {}
    for name, target in table().items():
        found.setdefault(target, name)
    return found


def _overload_allowed(op: torch._ops.OpOverload) -> bool:
    name = op._schema.name.partition("::")[2]
    if op.namespace in ("quantized", "onednn"):
        return True
    return op.namespace == "aten" and name not in AT_REFUSED and not op._schema.is_mutable and not name.startswith("_cudnn")


def name_of(target: object) -> str | None:
    """The registry's name of a call target; None where it has none."""
    if isinstance(target, torch._ops.OpOverload):
        overload = target._overloadname or "default"
        return f"{target._schema.name}.{overload}" if _overload_allowed(target) else None
    if isinstance(target, torch._ops.OpOverloadPacket):
        overloads = target.overloads()
        return name_of(getattr(target, overloads[0])) if len(overloads) == 1 else None
    try:
        return _names().get(target)
    except TypeError:  # not hashable
        return None


def method_allowed(name: str) -> bool:
    found = getattr(torch.Tensor, name, None)
    return not name.startswith("_") and name not in REFUSED and callable(found)


def attribute_allowed(name: str) -> bool:
    """Whether a program may read an attribute of this name: no method under another spelling."""
    return not name.startswith("_") and name not in REFUSED


def resolve(name: str) -> Callable[..., Any]:
    """The callable under a name (not methods, leaves and externals).

    Raises UnknownOpError, RetiredOpError for one of an older version.
    """
    if name in RETIRED:
        raise RetiredOpError(f"operation {name!r} is run no more: {RETIRED[name]}")
    if "::" in name:
        found = _overload(name)
        if found is not None:
            return found
    elif name in table():
        return table()[name]
    raise UnknownOpError(f"operation {name!r:.80} is not one that a program may call")


def _overload(name: str) -> Callable[..., object] | None:
    space, _, rest = name.partition("::")
    base, _, overload = rest.partition(".")
    if space not in ("aten", "quantized", "onednn") or not base.isidentifier() or not overload.isidentifier() or base.startswith("__"):
        return None
    found = getattr(getattr(getattr(torch.ops, space), base, None), overload, None)
    ok = isinstance(found, torch._ops.OpOverload) and _overload_allowed(found) and name_of(found) == name
    return found if ok else None


def helpers(function: Callable[..., object]) -> list[Callable[..., object]]:
    """The functions with an underscore that one of ours calls, itself or through others, and that stand in its file with it."""
    code = getattr(function, "__code__", None)
    found: dict[Callable[..., object], None] = {}
    for name in code.co_names if code is not None and function.__module__.startswith(RUNTIME) else ():
        helper = function.__globals__.get(name)
        if name.startswith("_") and isinstance(helper, types.FunctionType) and helper.__module__ == function.__module__:
            found |= dict.fromkeys([*helpers(helper), helper])
    return list(found)


def is_once(name: str) -> bool:
    """Whether the operation runs when a module is built, and not at each call."""
    return name.startswith("runtime.") and bool(getattr(table().get(name), "once", False))


def is_fit(name: str) -> bool:
    """Whether the operation only brings a tensor into a form that the kernel beside it takes, and is no kernel itself."""
    return name.startswith("runtime.") and bool(getattr(table().get(name), "fits", False))


def by_shape(name: str, engine: str) -> bool:
    """Whether the operation makes a pack that is fast at one shape alone."""
    return engine in getattr(table().get(name), "by_shape", ())


@functools.cache
def parameter_names(name: str) -> tuple[str, ...]:
    """Names of an operation's parameters in order; empty where they are not known."""
    target = resolve(name)
    if name == "torch.quantize_per_tensor":
        target = torch.ops.aten.quantize_per_tensor.default
    if isinstance(target, torch._ops.OpOverload):
        return tuple(a.name for a in target._schema.arguments)
    if isinstance(target, types.FunctionType):
        code = target.__code__
        return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return ()
