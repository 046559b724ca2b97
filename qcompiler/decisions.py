"""Whether a model that was prepared for one back end can be built for another: which of the decisions taken that one cannot have."""

from __future__ import annotations

from typing import Any

from torch import fx

from qcompiler.errors import ConfigError
from qcompiler.ir.types import quant_of
from qcompiler.ir.verify import where
from qcompiler.observers.watch import Watch
from qcompiler.ops.arguments import activations
from qcompiler.ops.spec import Op
from qcompiler.settings import Settings
from qcompiler.target import Target


def check_decisions(gm: fx.GraphModule, settings: Settings, target: Target) -> None:
    """Raises ConfigError naming the first decision of an OBSERVED graph that the target cannot have. What it only lacks a kernel for is
    none: that op will be float."""
    for node in gm.graph.nodes:
        row = settings.table.of(node)
        if row is None or not quant_of(node).int8:
            continue
        decision = _conflict(gm, node, row, settings, target)
        if decision:
            raise ConfigError(f"prepared for {settings.target.backend}, the model cannot be built for {target.backend}: {decision}",
                              code="backend-decision", where=where(node),
                              hint=f'prepare it for that: prepare_fx(model, ..., backend="{target.backend}")')  # fmt: skip


def _conflict(gm: fx.GraphModule, node: fx.Node, row: Op, settings: Settings, target: Target) -> str | None:
    if target.refuses(row, node) is not None:
        return None  # it will be float
    if quant_of(node).float_output and not target.gives_floats(row, node):
        return f"%{node.name} was decided to hand out floats from its 32-bit sums"
    if not settings.trains:  # calibration sees values as they are; how many bits hold them is asked at convert
        return None
    bits = target.activation_bits(row, node)
    wide = next((value for value in activations(settings.table, node) if _codes(gm, value) > 2**bits), None)
    return f"%{node.name} was trained on activations of more than the {bits} bits that its kernel takes" if wide is not None else None


def _codes(gm: fx.GraphModule, value: fx.Node) -> int:
    """How many integers the fake quantization behind a value rounds to; 0 where there is none."""
    watch = gm.get_submodule(str(value.target)) if value.op == "call_module" else None
    observer: Any = watch.observer if isinstance(watch, Watch) else None
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    return int(high - low) + 1 if low is not None and high is not None else 0
