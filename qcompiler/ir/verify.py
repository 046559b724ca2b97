"""What each stage allows. The pass manager runs this before and after every pass."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx

from qcompiler.errors import ConfigError, PassError, QCompilerError, Where
from qcompiler.ir.text import format_node
from qcompiler.ir.types import Stage, quant_of, source_of


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
    outputs = 0
    for node in gm.graph.nodes:
        missing = next((source for source in node.all_input_nodes if source not in seen), None)
        if missing is not None:
            return f"%{missing.name} is used before it is computed", node
        seen.add(node)
        outputs += node.op == "output"
        text = _attribute(gm, node) or _qparams(node, stage)
        if text:
            return text, node
    return None if outputs == 1 else (f"a graph has one output, this one {outputs}", None)


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
    qparams = quant_of(node).qparams
    if qparams is None:
        return None
    if stage in (Stage.TRACED, Stage.FUSED):
        return "qparams before anything was observed"
    scales = qparams.scale if isinstance(qparams.scale, tuple) else (qparams.scale,)
    if not all(0 < s < float("inf") for s in scales):
        return f"a scale must be finite and positive, here {min(scales)}"
    zeros = qparams.zero_point if isinstance(qparams.zero_point, tuple) else (qparams.zero_point,)
    if not all(qparams.quant_min <= z <= qparams.quant_max for z in zeros):
        return f"a zero point must lie in {qparams.quant_min}..{qparams.quant_max}"
    return None
