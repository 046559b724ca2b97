"""What each stage allows. The pass manager runs this before and after every pass."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx

from qcompiler.errors import ConfigError, PassError, QCompilerError, Where
from qcompiler.ir.text import format_node
from qcompiler.ir.types import Stage, quant_of, source_of, value_of


def where(node: fx.Node) -> Where:
    """The place of a node, for errors and remarks."""
    source = source_of(node)
    return Where(format_node(node), source.module_path or None, source.location)


def verify(gm: fx.GraphModule, stage: Stage, *, after: str = "") -> None:
    """Raises PassError (after a pass) or ConfigError (a graph handed in) where the graph breaks a rule of its stage."""
    problem = _problem(gm, stage)
    if problem is None:
        return
    text, node = problem
    error: type[QCompilerError] = PassError if after else ConfigError
    by = f"after pass {after}" if after else "in the graph given"
    raise error(f"invalid IR {by}: {text}", code="invalid-ir", where=where(node) if node is not None else None)


def _problem(gm: fx.GraphModule, stage: Stage) -> tuple[str, fx.Node | None] | None:
    seen: set[fx.Node] = set()
    names: set[str] = set()
    outputs = 0
    for node in gm.graph.nodes:
        missing = next((source for source in node.all_input_nodes if source not in seen), None)
        if missing is not None:
            return f"%{missing.name} is used before it is computed", node
        if node.name in names:
            return f"two nodes have the name {node.name}", node
        seen.add(node)
        names.add(node.name)
        outputs += node.op == "output"
        text = _attribute(gm, node) or _qparams(node, stage) or _conversion(node)
        if text:
            return text, node
    if outputs != 1:
        return f"a graph has one output, this one {outputs}", None
    return _observers(gm) if stage is Stage.OBSERVED else None


def _observers(gm: fx.GraphModule) -> tuple[str, fx.Node | None] | None:
    """Each observer is called at one place: one that is not would have no data, one that is twice would mix two ranges."""
    held = gm._modules.get("observers")
    places: dict[str, fx.Node] = {}
    for node in gm.graph.nodes if held is not None else ():
        if node.op == "call_module" and str(node.target).startswith("observers."):
            if str(node.target) in places:
                return f"observer {node.target} watches two values", node
            places[str(node.target)] = node
    orphan = next((name for name in (held._modules if held is not None else ()) if f"observers.{name}" not in places), None)
    return None if orphan is None else (f"observer {orphan} watches nothing", None)


def _conversion(node: fx.Node) -> str | None:
    """A quantize or dequantize (functions with a `converts` mark) uses the qparams and type that are noted at its integers."""
    kind = getattr(node.target, "converts", None)
    if kind is None or not isinstance(node.args[0], fx.Node):
        return None
    integers = node if kind == "quantize" else node.args[0]
    qparams, dtype = quant_of(integers).qparams, value_of(integers).dtype
    if qparams is None:
        return f"%{integers.name} has integers without qparams"
    if tuple(node.args[1:3]) != (qparams.scale, qparams.zero_point):
        return f"%{node.name} uses other qparams than %{integers.name} has"
    return None if dtype in (None, qparams.dtype) else f"%{integers.name} is {dtype}, its qparams are {qparams.dtype}"


def _attribute(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op not in ("get_attr", "call_module"):
        return None
    try:
        value: Any = attrgetter(str(node.target))(gm)
    except AttributeError:
        return f"{node.target} does not exist"
    if node.op == "call_module" and not isinstance(value, torch.nn.Module):
        return f"{node.target} is not a module"
    return None


def _qparams(node: fx.Node, stage: Stage) -> str | None:
    quant, qparams = quant_of(node), quant_of(node).qparams
    if qparams is None:
        lost = stage is Stage.QUANTIZED and quant.int8 and not quant.float_output and node.op == "call_function"
        return f"%{node.name} is int8 and has no qparams" if lost else None
    if stage in (Stage.TRACED, Stage.FUSED):
        return "qparams before anything was observed"
    scales = qparams.scale if isinstance(qparams.scale, tuple) else (qparams.scale,)
    if not all(0 < s < float("inf") for s in scales):
        return f"a scale must be finite and positive, here {min(scales)}"
    zeros = qparams.zero_point if isinstance(qparams.zero_point, tuple) else (qparams.zero_point,)
    if not all(qparams.quant_min <= z <= qparams.quant_max for z in zeros):
        return f"a zero point must lie in {qparams.quant_min}..{qparams.quant_max}"
    return None
