"""The stable text form of a graph: same model, same bytes, in any process. Dumps, golden tests and errors use it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qcompiler.ir.types import QParams, Source, quant_of, source_of, value_of
from qcompiler.raw import raw_bits

SHORT = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.uint8: "u8", torch.int8: "i8",
         torch.int32: "i32", torch.int64: "i64", torch.bool: "bool", torch.quint8: "qu8", torch.qint8: "qi8"}  # fmt: skip

LONGEST = 16  # elements of a constant argument that are written out


def format_target(target: object) -> str:
    """A called thing's name: no module paths that depend on the machine, no addresses."""
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return getattr(target, "__name__", type(target).__name__)


def format_arg(arg: object) -> str:
    if isinstance(arg, fx.Node):
        return f"%{arg.name}"
    if isinstance(arg, torch.Tensor) or (isinstance(arg, (tuple, list)) and _long(arg)):
        return _elided(arg)
    if isinstance(arg, tuple):
        return "(" + ", ".join(map(format_arg, arg)) + ("," if len(arg) == 1 else "") + ")"
    if isinstance(arg, list):
        return "[" + ", ".join(map(format_arg, arg)) + "]"
    if isinstance(arg, dict):
        return "{" + ", ".join(f"{k}: {format_arg(v)}" for k, v in arg.items()) + "}"
    if isinstance(arg, slice):
        return ":".join("" if part is None else format_arg(part) for part in (arg.start, arg.stop, arg.step))
    if isinstance(arg, float):
        return f"{arg:.9g}"
    if isinstance(arg, (set, frozenset)):
        return "{" + ", ".join(sorted(map(format_arg, arg))) + "}"
    if isinstance(arg, (type, Callable)):  # type: ignore[arg-type]
        return f"{getattr(arg, '__qualname__', type(arg).__name__)}"
    text = repr(arg)
    return f"<{type(arg).__name__}>" if re.search(r" at 0x[0-9a-fA-F]+", text) else text


def _leaves(arg: object) -> list[object]:
    return [leaf for item in arg for leaf in _leaves(item)] if isinstance(arg, (tuple, list)) else [arg]


def _long(arg: object) -> bool:
    """Whether it is a constant of more elements than are written out."""
    leaves = _leaves(arg)
    return len(leaves) > LONGEST and not any(isinstance(leaf, fx.Node) for leaf in leaves)


def _elided(arg: Any) -> str:
    """Shape and hash of a constant: dumps hold no data, but show that it changed."""
    if isinstance(arg, torch.Tensor):
        raw = raw_bits(arg).numpy().tobytes() if arg.numel() and not arg.is_quantized else b""
        kind = f"tensor {SHORT.get(arg.dtype, str(arg.dtype))}[{','.join(map(str, arg.shape))}]"
        return f"{kind} sha256 {hashlib.sha256(raw).hexdigest()[:12]}"
    text = repr(arg) if not any(callable(leaf) for leaf in _leaves(arg)) else ""
    return f"{type(arg).__name__}[{len(arg)}] sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def format_qparams(qparams: QParams) -> str:
    """scale and zero point, and the range where it is not the full one of the type."""
    full = (qparams.quant_min, qparams.quant_max) in ((0, 255), (-128, 127))
    bits = "" if full else f" in {qparams.quant_min}..{qparams.quant_max}"
    if isinstance(qparams.scale, tuple):
        return f"scale[{len(qparams.scale)}] {min(qparams.scale):.6g}..{max(qparams.scale):.6g}{bits}"
    return f"scale {qparams.scale:.6g} zero_point {qparams.zero_point}{bits}"


def format_value(node: fx.Node) -> str:
    value = value_of(node)
    if value.shape is None or value.dtype is None:
        return ""
    return f": {SHORT.get(value.dtype, str(value.dtype))}[{','.join(map(str, value.shape))}]"


def format_node(node: fx.Node, *, places: bool = True) -> str:
    """One line: result, type, call, then as a comment quantization and, with `places`, where it comes from."""
    if node.op == "placeholder":
        default = f" = {format_arg(node.args[0])}" if node.args else ""
        call = f"input {node.target}{default}"
    elif node.op == "get_attr":
        call = f"attribute {node.target}"
    elif node.op == "output":
        return f"return {format_arg(node.args[0])}"
    else:
        parts = [format_arg(a) for a in node.args] + [f"{k}={format_arg(v)}" for k, v in sorted(node.kwargs.items())]
        call = f"{'module ' if node.op == 'call_module' else '.' if node.op == 'call_method' else ''}{format_target(node.target)}"
        call += f"({', '.join(parts)})"
    return f"%{node.name}{format_value(node)} = {call}{_comment(node, places)}"


def _comment(node: fx.Node, places: bool) -> str:
    quant, source = quant_of(node), source_of(node)
    notes = [format_qparams(quant.qparams)] if quant.qparams else []
    if quant.int8 and not quant.qparams:
        notes.append("int8")
    if quant.mode is not None:
        notes.append(quant.mode.value)
    if quant.float_output:
        notes.append("hands out floats")
    if quant.folded:
        notes.append("folded into the op before it")
    if quant.reason:
        notes.append(f"float: {quant.reason}")
    if quant.group is not None:
        notes.append(f"group {quant.group}")
    notes += _places(source) if places else []
    return "  # " + "; ".join(notes) if notes else ""


def _places(source: Source) -> list[str]:
    notes = []
    if source.module_path or source.module_type:
        notes.append(f"{source.module_path} ({source.module_type})".strip())
    if source.file:
        notes.append(f"{source.file.rsplit('/', 1)[-1]}:{source.line}")
    if len(source.origin) > 1:
        notes.append("from " + ", ".join(source.origin))
    return notes


def format_graph(graph: fx.Graph) -> str:
    """The whole graph in topological order, one node a line."""
    return "\n".join(format_node(node) for node in graph.nodes) + "\n"
