"""How a program spells what stands between the ops of a QUANTIZED graph: in plain ops of aten, or in those of quantized_decomposed.

Each function takes the node, then its arguments as they are. What aten spells has the bits of ops/reference.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from qcompiler.ops import reference, state
from qcompiler.ops.reference import SMALLEST_STEP, per_axis
from qcompiler.stages.arguments import held, integers
from qcompiler.trace import guards

Spelling: TypeAlias = Callable[..., Any]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, without the asserts on dtype and device that torch.export puts in front of that."""
    made: Tensor = torch.ops.aten._to_copy.default(x, dtype=dtype)
    return made


def quantize(node: fx.Node, x: Tensor, scale: float, zero_point: int, *_: object) -> Tensor:
    p = integers(node).qparams
    return cast(torch.clamp(torch.round(x * (1.0 / scale)) + zero_point, p.quant_min, p.quant_max), p.dtype)


def dequantize(node: fx.Node, q: Tensor, scale: float, zero_point: int) -> Tensor:
    return (cast(q, torch.float32) - zero_point) * scale


def dequantize_weight(node: fx.Node, w: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    s, z = (scale, zero_point) if axis is None else (per_axis(scale, axis, w.dim()), per_axis(zero_point, axis, w.dim()))
    return cast((cast(w, torch.float64) - z) * s, torch.float32)


def dynamic_quantize_dequantize(node: fx.Node, x: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """As reference.py has it, with tensors in float64 for Python's numbers: a program cannot look at a number of its data."""
    ends = torch.aminmax(x.detach())
    low, high = cast(ends.min, torch.float64).clamp(max=0.0), cast(ends.max, torch.float64).clamp(min=0.0)
    scale = (high - low) / (quant_max - quant_min)
    scale = torch.where(scale == 0, 0.1, scale)
    small = scale < SMALLEST_STEP
    low, high = (torch.where(small, end * SMALLEST_STEP / scale, end) for end in (low, high))
    scale = torch.where(small, SMALLEST_STEP, scale)
    loses_less = abs(quant_min) + (low / scale).abs() < abs(quant_max) + (high / scale).abs()
    zero_point = torch.where(loses_less, quant_min - low / scale, quant_max - high / scale)
    zero_point = torch.round(zero_point.clamp(quant_min, quant_max))
    codes = torch.round(cast(x, torch.float32) * cast(1.0 / scale, torch.float32))
    return cast(torch.clamp(codes + zero_point, quant_min, quant_max) - zero_point, x.dtype) * scale


def widen(node: fx.Node, w: Tensor) -> Tensor:
    return cast(w, torch.float32)


def _check(node: fx.Node, value: Any, expected: Any, message: str) -> None:
    """A guard on a size or a condition: decided now where it can be, else checked by the program at each call."""
    fits = (value if expected else torch.sym_not(value)) if isinstance(expected, bool) else value == expected
    torch._check(fits, lambda: message)


def _write_state(node: fx.Node, held: Tensor, value: Tensor) -> None:
    if held.shape != value.shape:
        raise ValueError("what the model keeps between calls changes its shape")
    held.copy_(value.detach())


def _write_number(node: fx.Node, held: Tensor, value: float) -> None:
    held.fill_(value)


ATEN: Mapping[Spelling, Spelling] = MappingProxyType({
    reference.quantize: quantize,
    reference.dequantize: dequantize,
    reference.dequantize_weight: dequantize_weight,
    reference.dynamic_quantize_dequantize: dynamic_quantize_dequantize,
    reference.widen: widen,
    **dict.fromkeys((guards.guard_int, guards.guard_bool, guards.guard_float), _check),
    state.read_state: lambda node, held: held.clone(),
    state.write_state: _write_state,
    **dict.fromkeys((state.write_int, state.write_float, state.write_bool), _write_number),
})  # fmt: skip


def quantize_decomposed(node: fx.Node, x: Tensor, scale: float, zero_point: int, *ends: object) -> Any:
    return torch.ops.quantized_decomposed.quantize_per_tensor.default(x, scale, zero_point, *ends)


def dequantize_decomposed(node: fx.Node, q: Tensor, scale: float, zero_point: int) -> Any:
    p = integers(node.args[0]).qparams
    return torch.ops.quantized_decomposed.dequantize_per_tensor.default(q, scale, zero_point, p.quant_min, p.quant_max, q.dtype)


def dynamic_decomposed(node: fx.Node, x: Tensor, quant_min: int, quant_max: int) -> Any:
    """A scale and a zero point that the values at hand choose."""
    ops = torch.ops.quantized_decomposed
    ends = quant_min, quant_max, torch.uint8
    scale, zero_point = ops.choose_qparams.tensor(x, quant_min, quant_max, SMALLEST_STEP, torch.uint8)
    return ops.dequantize_per_tensor.tensor(ops.quantize_per_tensor.tensor(x, scale, zero_point, *ends), scale, zero_point, *ends)


@dataclass(frozen=True)
class Arithmetic:
    """`spelled`: by function what is called in its place. `tensors`: by path those that take the place of a graph's own. `cuts`: whether
    its `quantize` cuts at the clamp that the op in front took in. `apart`: whether each reader of codes reads them for itself."""

    spelled: Mapping[Spelling, Spelling]
    tensors: Mapping[str, Tensor]
    cuts: bool = False
    apart: bool = False


def decomposed(gm: fx.GraphModule) -> Arithmetic:
    """In ops of quantized_decomposed. Scales are float32 there, and those of a weight that has one are numbers."""
    weights = [node for node in gm.graph.nodes if node.target is reference.dequantize_weight]
    numbers = {node: _numbers(gm, node) for node in weights if node.args[3:] in ((), (None,))}
    scales = {str(node.args[1].target): held(gm, node.args[1])[1].float() for node in weights if node not in numbers}

    def dequantize_weight(node: fx.Node, w: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Any:
        ops, ends = torch.ops.quantized_decomposed, torch.iinfo(w.dtype)
        if axis is None:
            return ops.dequantize_per_tensor.default(w, *numbers[node], ends.min, ends.max, w.dtype)
        return ops.dequantize_per_channel.default(w, scale, zero_point, axis, ends.min, ends.max, w.dtype)

    spelled: dict[Spelling, Spelling] = {
        **ATEN,
        reference.quantize: quantize_decomposed,
        reference.dequantize: dequantize_decomposed,
        reference.dequantize_weight: dequantize_weight,
        reference.dynamic_quantize_dequantize: dynamic_decomposed,
    }
    return Arithmetic(spelled, scales)


def _numbers(gm: fx.GraphModule, node: fx.Node) -> tuple[float, int]:
    scale, zero_point = (held(gm, source)[1].item() for source in node.args[1:3])
    return scale, int(zero_point)


__all__ = ["ATEN", "Arithmetic", "Spelling", "decomposed"]
