"""Nodes as plain data: what every dump, drawing and page shows of one fx.Node, at any stage."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from qcompiler.debug.explain import is_decided, is_int8
from qcompiler.debug.op_steps import mark_steps
from qcompiler.executable.node_data import clipped, compact, rounded
from qcompiler.executable.steps import quantizes
from qcompiler.ir.attributes import attribute, has_attribute
from qcompiler.ir.names import user_path
from qcompiler.ir.text import format_arg, format_node, format_target
from qcompiler.ir.types import MACS, QParams, quant_of, source_of, value_of
from qcompiler.observers.base import ObserverBase
from qcompiler.observers.watch import Watch
from qcompiler.ops import reference
from qcompiler.ops.macs import macs_of
from qcompiler.ops.spec import Op
from qcompiler.ops.table import OPS, Table
from qcompiler.trace.places import text_of

CODE = 160  # characters of a source line
OP_KINDS = {True: "int8", False: "float"}
KINDS = ("input", "output", "attr", "int8", "float", "quantize", "dequantize", "observer", "pack", "other")


def graph_nodes(graph: fx.Graph, table: Table = OPS) -> list[dict[str, object]]:
    """The nodes of a graph in order, as data (see docs/visualization.md for the fields)."""
    found: list[dict[str, Any]] = []
    decided = any(is_decided(node) for node in graph.nodes)
    for node in graph.nodes:
        found.append(node_data(node, table, found[-1]["name"] if found else None, decided))
    if decided:
        mark_steps(found)
    return found


def node_data(node: fx.Node, table: Table, after: str | None, decided: bool = False) -> dict[str, Any]:
    """One node. Fields that are empty are left out, except `after` and `in`.

    `decided`: whether its graph has come so far that each op is known to be int8 or float.
    """
    value, source, quant, row = value_of(node), source_of(node), quant_of(node), table.of(node)
    module = _module(node)
    data = {
        "op": row.name if row is not None else _op(node, module),
        "kind": _kind(node, module, decided),
        "attrs": attributes_text(node, module),
        "path": source.module_path,
        "cls": source.module_type,
        "shape": list(value.shape) if value.shape is not None else None,
        "dtype": str(value.dtype).removeprefix("torch.") if value.dtype is not None else None,
        "file": short_file(source.file) if source.file else None,
        "line": source.line,
        "code": text_of(source.file, source.line)[:CODE] or None,
        "origin": list(source.origin),
        "q": qparams_data(quant.qparams) if quant.qparams is not None else _weight_qparams(node),
        "observer": _observer(module) if isinstance(module, Watch) else None,
        "reason": quant.reason,
        "reason_code": quant.code if quant.reason else None,
        "macs": _macs(node, row),
        "params": _params(node, module),
        "text": format_node(node, places=False),  # the places have fields of their own
    }
    return {"name": node.name, "after": after, "in": [n.name for n in node.all_input_nodes], **compact(data)}


@functools.lru_cache(maxsize=4096)
def short_file(path: str) -> str:
    """A file as it is imported: without the folder of sys.path that holds it, which differs from machine to machine."""
    folders = sorted((os.path.abspath(p).rstrip(os.sep) + os.sep for p in sys.path if isinstance(p, str)), key=len, reverse=True)
    found = next((f for f in folders if os.path.abspath(path).startswith(f)), None) if not path.startswith("<") else None
    return os.path.abspath(path)[len(found) :].replace(os.sep, "/") if found else path


def qparams_data(q: QParams) -> dict[str, object]:
    return {"scale": rounded(q.scale), "zero_point": _one_if_equal(q.zero_point), "min": q.quant_min, "max": q.quant_max,
            "dtype": str(q.dtype).removeprefix("torch."), "axis": q.channel_axis}  # fmt: skip


def _one_if_equal(values: int | Iterable[int]) -> object:
    found = [values] if isinstance(values, (int, float)) else list(values)
    return found[0] if len(set(found)) == 1 else found


def _macs(node: fx.Node, row: Op | None) -> int | None:
    """Multiply-accumulates of a call with the example inputs, as explain counts them; of lowered calls as lowering noted them."""
    if MACS in node.meta:
        return node.meta[MACS]  # type: ignore[no-any-return]
    if not node.op.startswith("call_") or (row is not None and len(node.args) < 2):
        return None
    return macs_of(node, row) or None


def _module(node: fx.Node) -> nn.Module | None:
    root = node.graph.owning_module
    return root.get_submodule(str(node.target)) if node.op == "call_module" and root is not None else None


def _op(node: fx.Node, module: nn.Module | None) -> str:
    if isinstance(module, Watch):
        return "observe"
    if node.op in ("call_function", "call_method"):
        return format_target(node.target)
    return type(module).__name__ if module is not None else node.op


def _kind(node: fx.Node, module: nn.Module | None, decided: bool) -> str:
    fixed = {"placeholder": "input", "output": "output", "get_attr": "attr"}.get(node.op)
    if fixed:
        return fixed
    if isinstance(module, Watch):
        return "observer"
    if getattr(node.target, "once", False):
        return "pack"
    if quantizes(node.target):
        return "quantize"
    if node.target in (reference.dequantize, reference.dequantize_weight, "dequantize", torch.ops.aten.dequantize.self):
        return "dequantize"
    if decided:
        return OP_KINDS[is_int8(node)] if is_decided(node) else "other"
    dtype = value_of(node).dtype
    return "float" if module is not None or (dtype is not None and dtype.is_floating_point) else "other"


def attributes_text(node: fx.Node, module: nn.Module | None = None) -> str:
    """The constant arguments, by name where the name is known."""
    root = node.graph.owning_module
    if node.op == "get_attr":
        return user_path(root, str(node.target)) if root is not None else str(node.target)
    if node.op == "placeholder":
        return str(node.target) + (f" = {format_arg(node.args[0])}" if node.args else "")
    if node.op == "output":
        return ""
    own = module.extra_repr() if module is not None and not isinstance(module, Watch) else ""
    names = argument_names(node.target)
    parts = [own] if own else []
    for index, arg in enumerate(node.args):
        if not _is_wire(arg):
            parts.append(f"{names[index]}={format_arg(arg)}" if index < len(names) else format_arg(arg))
    parts += [f"{k}={format_arg(v)}" for k, v in sorted(node.kwargs.items()) if not _is_wire(v)]
    return clipped(", ".join(parts))


def _is_wire(arg: object) -> bool:
    """Whether an argument is a node, or holds nodes alone: the edges show it."""
    if isinstance(arg, (list, tuple)) and arg:
        return all(map(_is_wire, arg))
    return isinstance(arg, fx.Node)


def argument_names(target: object) -> tuple[str, ...]:
    if isinstance(target, torch._ops.OpOverload):
        return tuple(a.name for a in target._schema.arguments)
    code = getattr(target, "__code__", None)
    return code.co_varnames[: code.co_argcount] if code is not None and not code.co_flags & 4 else ()


def _tensor(node: fx.Node) -> torch.Tensor | None:
    root = node.graph.owning_module
    if node.op != "get_attr" or root is None or not has_attribute(root, str(node.target)):
        return None
    value: Any = attribute(root, str(node.target))
    return value if isinstance(value, torch.Tensor) else None


def _weight_qparams(node: fx.Node) -> dict[str, object] | None:
    """Of an int8 weight, from the tensors that its reader takes behind it, which bear its name."""
    value, beside = _tensor(node), _beside(node)
    if value is None or beside is None:
        return None
    scale, zero_point = beside
    scales, zeros, axis = scale.tolist(), zero_point.tolist(), _axis(node, scale.numel())
    return {"scale": rounded(scales if axis is not None else scales[0]), "zero_point": _one_if_equal(zeros),
            "min": -128, "max": 127, "dtype": str(value.dtype).removeprefix("torch."), "axis": axis}  # fmt: skip


def _beside(node: fx.Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and zero point of a weight; None for what has none. Marks stand behind their names where the user has such a parameter, too."""
    unpacked = (reader for user in node.users if user.target is reference.unpack_4bit for reader in user.users)
    given = {str(arg.target): arg for reader in (*node.users, *unpacked) for arg in reader.all_input_nodes}
    names = (max((n for n in given if n.rstrip("_") == f"{node.target}_{part}"), key=len, default="") for part in ("scale", "zero_point"))
    tensors = [tensor for name in names if name and (tensor := _tensor(given[name])) is not None]
    return (tensors[0], tensors[1]) if len(tensors) == 2 and tensors[0].dtype is torch.float64 else None


def _axis(node: fx.Node, scales: int) -> int | None:
    """The channel axis of a weight with that many scales, from the op that reads it."""
    if scales == 1:
        return None
    user = next(iter(node.users), None)
    if user is not None and user.target is reference.dequantize_weight:
        axis: Any = user.args[3]
        return int(axis)
    return 1 if user is not None and "transpose" in format_target(user.target) else 0


def _observer(watch: Watch) -> dict[str, Any]:
    """Type and range of an observer, or of the one inside a fake-quantize."""
    observer: Any = watch.observer
    inner = next((m for m in watch.modules() if isinstance(m, ObserverBase)), None)
    ends = [getattr(inner, name, None) for name in ("min_val", "max_val")]
    data: dict[str, Any] = {"type": type(observer).__name__}
    if inner is not None and inner.observed and all(isinstance(e, torch.Tensor) and e.numel() for e in ends):
        data |= {"low": rounded(float(ends[0].min())), "high": rounded(float(ends[1].max()))}  # type: ignore[union-attr]
    return data


def _params(node: fx.Node, module: nn.Module | None) -> int | None:
    """Elements of the parameters that a node holds: scales and zero points of weights are none."""
    if module is not None and not isinstance(module, Watch):
        return sum(p.numel() for p in module.parameters()) or None
    value, path = _tensor(node), str(node.target).rstrip("_")
    beside = value is not None and value.dtype in (torch.float64, torch.int64) and path.endswith(("_scale", "_zero_point"))
    return None if value is None or beside else value.numel()
