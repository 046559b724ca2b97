"""Programs for XNNPACK, through ExecuTorch: how they are spelled, and what the passes may decide for them (the back end `xnnpack`).

XNNPACK's int8 operators take signed codes on both sides and weights around zero. Of a value it reads scale and zero point alone: where
codes shall end before their dtype does, and where an op took a clamp in, the program says so in relu and hardtanh, which it fuses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.backends import Backend
from qcompiler.errors import ConfigError, UnsupportedOpError
from qcompiler.export.ranges import code_limits
from qcompiler.export.torch_export.arithmetic import Arithmetic, Spelling, decomposed
from qcompiler.ops import reference
from qcompiler.ops.reference import SMALLEST_STEP
from qcompiler.ops.spec import Op
from qcompiler.stages.arguments import bounds_of, held, integers
from qcompiler.target import Neutral

LOW, HIGH = -128, 127


@dataclass(frozen=True)
class XnnpackTarget(Neutral):
    """Results of int8 ops are rounded, those of the last one too: there is no operator that hands out floats of static integers."""

    @property
    def backend(self) -> str:
        return "xnnpack"

    def gives_floats(self, row: Op, node: fx.Node) -> bool:
        return False


def _target(engine: str | None, isa: str | None) -> XnnpackTarget:
    if engine is not None or isa is not None:
        raise ConfigError("the back end xnnpack has no engines and no instruction sets", code="engine", hint="leave engine= and isa= out")
    return XnnpackTarget()


BACKEND = Backend("xnnpack", _target)


def quantize(node: fx.Node, x: Tensor, scale: float, zero_point: int, *_: object) -> Tensor:
    """Behind the clamp that the op in front took in, as far as the ends of int8 are not that clamp."""
    p, source = integers(node).qparams.signed(), node.args[0]
    assert isinstance(p.zero_point, int)
    ends = code_limits(p, bounds_of(source.kwargs) if isinstance(source, fx.Node) else (None, None))
    if ends is not None:
        low, high = ((end - p.zero_point) * scale for end in ends)
        x = torch.ops.aten.hardtanh.default(x, low, high)
    codes: Tensor = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, scale, p.zero_point, LOW, HIGH, torch.int8)
    return codes


def dequantize(node: fx.Node, q: Tensor, scale: float, zero_point: int) -> Tensor:
    p = integers(node.args[0]).qparams.signed()
    floats: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor.default(q, scale, p.zero_point, LOW, HIGH, torch.int8)
    return floats


def dynamic_quantize_dequantize(node: fx.Node, x: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """A scale and a zero point that the values at hand choose; all codes of int8, since XNNPACK uses them all."""
    ops, ends = torch.ops.quantized_decomposed, (LOW, HIGH, torch.int8)
    scale, zero_point = ops.choose_qparams.tensor(x, LOW, HIGH, SMALLEST_STEP, torch.int8)
    codes = ops.quantize_per_tensor.tensor(x, scale, zero_point, *ends)
    floats: Tensor = ops.dequantize_per_tensor.tensor(codes, scale, zero_point, *ends)
    return floats


def xnnpack(gm: fx.GraphModule) -> Arithmetic:
    """Raises UnsupportedOpError for weights whose zero points XNNPACK would pass over."""
    shifted = [name for name, zero_point in _zero_points(gm) if bool((zero_point != 0).any())]
    if shifted:
        raise UnsupportedOpError(f"XNNPACK computes with weights around zero alone, not with {', '.join(shifted):.300}",
                                 code="export-weights", hint="quantize weights symmetrically, as all default qconfigs do")  # fmt: skip
    made = decomposed(gm)
    spelled: dict[Spelling, Spelling] = {**made.spelled, reference.quantize: quantize, reference.dequantize: dequantize,
               reference.dynamic_quantize_dequantize: dynamic_quantize_dequantize}  # fmt: skip
    return Arithmetic(spelled, made.tensors, cuts=True, apart=True)


def _zero_points(gm: fx.GraphModule) -> list[tuple[str, Tensor]]:
    """By name those of int8 weights: tables of embeddings, which no product reads, are uint8."""
    weights = [node for node in gm.graph.nodes if node.target is reference.dequantize_weight and node.args[0].op == "get_attr"]
    found = [(held(gm, node.args[0]), held(gm, node.args[2])[1]) for node in weights]
    return [(name, zero_point) for (name, codes), zero_point in found if codes.dtype is torch.int8]
