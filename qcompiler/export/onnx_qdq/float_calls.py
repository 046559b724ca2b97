"""Calls of torch that are no row of the op table, since nothing of them is int8, and have an ONNX form."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import fx

from qcompiler.ops.signature import bind

COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
CASTS = ("to", "type", "type_as", "float", "double", "half", "long", "int", "bool", "byte", "short")
PLACES = ("dtype", "device", "layout", "requires_grad", "pin_memory", "memory_format", "out", "non_blocking", "copy")  # not of values

# The form, and the arguments as a Spelling has them; None: the result's sizes and dtype say all.
_ATTENTION = "query key value attn_mask=None dropout_p=0.0 is_causal=False scale=None enable_gqa=False"
_FUNCTIONS: Mapping[Callable[..., object], tuple[str, str | None]] = {
    F.scaled_dot_product_attention: ("scaled_dot_product_attention", _ATTENTION),
    F.normalize: ("normalize", "input:x p=2.0 dim=1 eps=1e-12"),
    F.log_softmax: ("log_softmax", "input:x dim=None __stacklevel=3"),
    operator.getitem: ("getitem", "x index"), operator.invert: ("not", "x"),
    torch.where: ("where", "condition input:x other"), torch.einsum: ("einsum", "equation *operands"),
    torch.meshgrid: ("meshgrid", "*tensors indexing=None"),
    torch.arange: ("arange", "start end=None step=1"), torch.full: ("full", "size fill_value"),
    torch.full_like: ("full", "input fill_value"),
    **dict.fromkeys((torch.zeros, torch.zeros_like), ("zeros", None)), **dict.fromkeys((torch.ones, torch.ones_like), ("ones", None)),
    **{getattr(operator, f"{name}_" if name != "xor" else name): (name, "x other") for name in ("and", "or", "xor")},
    **{getattr(operator, name): (name, "x other") for name in COMPARED},
}  # fmt: skip
# Functions of torch and methods of tensors of one name and one signature.
_BOTH: Mapping[str, tuple[str, str]] = {
    **{name: (name, "input:x other") for name in COMPARED},
    **{f"{kind}_{name}": (name, "input:x other") for kind in ("logical", "bitwise") for name in ("and", "or", "xor")},
    **dict.fromkeys(("logical_not", "bitwise_not"), ("not", "input:x")),
    "masked_fill": ("masked_fill", "input:x mask value"), "log_softmax": ("log_softmax", "input:x dim"),
    "cumsum": ("cumsum", "input:x dim"), "argmax": ("argmax", "input:x dim=None keepdim=False"),
    "argmin": ("argmin", "input:x dim=None keepdim=False"), "topk": ("topk", "input:x k dim=-1 largest=True sorted=True"),
    "norm": ("norm", "input:x p=2 dim=None keepdim=False"), "logsumexp": ("logsumexp", "input:x dim keepdim=False"),
    "any": ("any", "input:x dim=None keepdim=False"), "prod": ("prod", "input:x dim=None keepdim=False"),
    **{name: (name, "input:x dim=None unbiased=None keepdim=False correction=None") for name in ("var", "std", "var_mean", "std_mean")},
    "outer": ("outer", "input:x vec2:other"), "scatter": ("scatter", "input:x dim index src|value:src reduce=None"),
    "scatter_add": ("scatter_add", "input:x dim index src"), "index_copy": ("index_copy", "input:x dim index source"),
    "index_add": ("index_add", "input:x dim index source alpha=1"),
    "max": ("amax", "input:x"), "min": ("amin", "input:x"), "isnan": ("isnan", "input:x"), "isinf": ("isinf", "input:x"),
}  # fmt: skip
_METHODS: Mapping[str, tuple[str, str | None]] = {
    **_BOTH, "where": ("where", "x condition other"), "new_full": ("full", "x size fill_value"), "new_zeros": ("zeros", None),
    "new_ones": ("ones", None), "__and__": ("and", "x other"), "__or__": ("or", "x other"),
    **{f"{name}_": _BOTH[name] for name in ("masked_fill", "scatter", "scatter_add", "index_add", "index_copy")},
}  # fmt: skip
_OF_TORCH = {function: form for name, form in _BOTH.items() if (function := getattr(torch, name, None)) is not None}

# Of numbers that sizes give, where none of them changes.
NUMBERS: Mapping[Callable[..., object], Callable[..., object]] = {
    function: function
    for function in (operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
                     operator.neg, math.sqrt, math.ceil, math.floor, int, float, max, min, len)
}  # fmt: skip


def bound(node: fx.Node) -> tuple[str, dict[str, object]] | None:
    """Name of the form and arguments by name, as fx has them; None for a call that has no form."""
    if node.op == "call_method" and node.target in CASTS:
        return "cast", {"x": node.args[0]}
    if node.target is getattr and node.args[1:] in (("mT",), ("T",)):
        return "matrix_transpose", {"x": node.args[0]}
    found = _METHODS.get(str(node.target)) if node.op == "call_method" else None
    if node.op == "call_function":
        found = _FUNCTIONS.get(node.target) or _OF_TORCH.get(node.target)  # type: ignore[arg-type]
    if found is None:
        return None
    name, signature = found
    if signature is None:
        return name, {}
    kwargs = {key: value for key, value in node.kwargs.items() if key not in PLACES}
    arguments = bind(signature, tuple(node.args), kwargs)
    return None if arguments is None else (name, arguments)
