"""Calls of torch that are no row of the op table, since nothing of them is int8, and yet have a C form."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from qcompiler.ir.types import value_of

FIRST, PAIRED = ("argmax", "argmin"), ("topk", "sort")  # give a place, and elements with their places
SORTED = (*PAIRED, "argsort")
LENGTHS, VARIANCES = ("norm", "vector_norm"), ("var", "std")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_OF_ROWS = {
    **dict.fromkeys(FIRST, "input *dim=None keepdim=False"),
    "topk": "input *k dim=-1 largest=True _sorted=True",
    **dict.fromkeys(("sort", "argsort"), "input *dim=-1 descending=False _stable=False"),
    "cumsum": "input *dim dtype=None",
    "norm": "input *p=fro dim=None keepdim=False",
    **dict.fromkeys(VARIANCES, "input *dim=None unbiased=True keepdim=False correction=1"),
}
# The names of the arguments in order; a * stands before those that are settings, a _ before what changes no value.
_CALLS: Mapping[Callable[..., Any], tuple[str, str]] = {
    F.scaled_dot_product_attention: (
        "scaled_dot_product_attention", "query key value *attn_mask=None dropout_p=0.0 is_causal=False scale=None enable_gqa=False"),
    F.grid_sample: ("grid_sample", "input grid *mode=bilinear padding_mode=zeros align_corners=None"),
    F.fold: ("fold", "input *output_size kernel_size dilation=1 padding=0 stride=1"),
    F.normalize: ("normalize", "input *p=2.0 dim=1 eps=1e-12 out=None"),
    F.log_softmax: ("log_softmax", "input *dim=None _stacklevel=3 dtype=None"),
    torch.log_softmax: ("log_softmax", "input *dim=None dtype=None"),
    F.softmax: ("softmax", "input *dim=None _stacklevel=3 dtype=None"),
    torch.softmax: ("softmax", "input *dim=None dtype=None"),
    **{getattr(torch, name): (name, signature) for name, signature in _OF_ROWS.items()},
    torch.linalg.vector_norm: ("vector_norm", "input *ord=2 dim=None keepdim=False"),
    torch.where: ("where", "condition input other"),
    torch.masked_fill: ("masked_fill", "input mask value"),
    torch.logical_not: ("not", "input"), operator.invert: ("not", "input"),
    **{function: (name, "input other") for name in ("and", "or", "xor") for function in (
        getattr(torch, f"logical_{name}"), getattr(operator, f"{name}_" if name != "xor" else name), getattr(torch, f"bitwise_{name}"))},
    **{function: (name, "input other") for name in COMPARISONS for function in (getattr(torch, name), getattr(operator, name))},
}  # fmt: skip


_METHODS: Mapping[str, tuple[str, str]] = {  # a function of torch's is a method of its first argument as well
    **{function.__name__: form for function, form in _CALLS.items() if getattr(torch, function.__name__, None) is function},
    "where": ("where", "input condition other"),
}
_CASTS = {"float": torch.float32, "bool": torch.bool}  # methods without arguments


VISIBLE = "visible"  # the setting of attention whose mask says which keys are seen: within a region nothing else tells it from one to add


def _is_bool(argument: object) -> bool:
    return isinstance(argument, fx.Node) and value_of(argument).dtype is torch.bool


def _is_float(argument: object) -> bool:
    return isinstance(argument, fx.Node) and value_of(argument).dtype is torch.float32


def _form(node: fx.Node) -> tuple[str, str] | None:
    """Name and arguments of a call that is no row."""
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    return _CALLS.get(node.target) if node.op == "call_function" and callable(node.target) else None


def cast(node: fx.Node) -> torch.dtype | None:
    """The dtype that a call gives its first argument, on the CPU; None for any other node."""
    if node.op != "call_method" or node.target not in (*_CASTS, "to", "type"):
        return None
    given = [*node.args[1:], *node.kwargs.values()]
    dtypes = [value for value in given if isinstance(value, torch.dtype)]
    others = [value for value in given if not isinstance(value, (torch.dtype, bool))]
    if node.target in _CASTS:
        return None if given else _CASTS[str(node.target)]
    on_cpu = all(str(value) == "cpu" for value in others)
    return dtypes[0] if len(dtypes) == 1 and on_cpu and "memory_format" not in node.kwargs else None


def bound(node: fx.Node) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    """Name, arguments and settings of a call; None for any other node."""
    if node.target is operator.getitem:  # of several values that stand in one
        return "getitem", node.args[:1], {"index": node.args[1]}
    if node.target is torch.einsum:
        return "einsum", tuple(node.args), {}
    dtype = cast(node)
    if dtype is torch.float32:
        return "as_float", node.args[:1], {}
    if dtype is torch.bool:  # what is not 0
        return "ne", (node.args[0], 0), {}
    form = _form(node)
    if form is None:
        return None
    name, signature = form
    entries = signature.split()
    names = [entry.removeprefix("*").partition("=")[0] for entry in entries]
    if len(node.args) > len(names) or not {*names, *(name.removeprefix("_") for name in names)}.issuperset(node.kwargs):
        return None  # another overload, or a setting as `out` that no form knows
    values = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    values = {key: value for key, value in values.items() if value is not None and not key.startswith("_")}
    if values.get("dtype") is torch.float32 and _is_float(node.args[0] if node.args else None):
        del values["dtype"]  # it has that already
    if _is_bool(values.get("attn_mask")):
        values[VISIBLE] = values.pop("attn_mask")
        names.append(VISIBLE)
    settings = next((i for i, entry in enumerate(entries) if entry.startswith("*")), len(names))
    operands = [key for key in names[:settings] if not key.startswith("_")]
    if name == "where":  # the method is one of the second operand
        operands.sort()
    return name, tuple(map(values.get, operands)), {key: values[key] for key in names[settings:] if key in values}
