"""An interpreter of QUANTIZED graphs that sees them through `stages.quantized` alone, in plain torch: what a back end does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.ops.reference import dequantize, dequantize_weight, dynamic_quantize_dequantize, quantize
from qcompiler.stages.arguments import Constant, HalfWeight, Integers, Rounded, Weight
from qcompiler.stages.quantized import Call, Dequantize, Float, Input, Load, Quantize, Result, steps


class Interpreter:
    """Runs a graph step by step. `values`: of each node that a step names, its floats, integers, or what else it gives."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.values: dict[fx.Node, Any] = {}

    def run(self, *inputs: Any) -> Any:
        given = iter(inputs)
        for step in steps(self.gm):
            if isinstance(step, Input):
                self.values[step.node] = next(given, *step.node.args)
            elif isinstance(step, Result):
                return fx.node.map_arg(step.value, self.values.__getitem__)
            else:
                self._compute(step)
        raise AssertionError("no result")

    def _compute(self, step: Any) -> None:
        if isinstance(step, Quantize):
            self.values[step.node] = codes_of(self.values[step.value], step.qparams)
        elif isinstance(step, Dequantize):
            self.values[step.node] = floats_of(self.values[step.codes.codes], step.codes.qparams)
        elif isinstance(step, Load):
            self.values[step.node] = step.constant.values
        elif isinstance(step, Float):
            self.values[step.node] = self._float(step.node)
        elif isinstance(step, Call):
            self._call(step)

    def _float(self, node: fx.Node) -> Any:
        interpreter = fx.Interpreter(self.gm)
        interpreter.env = {n: self._any(n) for n in node.all_input_nodes}
        return interpreter.run_node(node)

    def _any(self, node: fx.Node) -> Any:
        """A value that may be asked for its size alone: then no step makes its floats."""
        if node in self.values or node.target is not dequantize:
            return self.values[node]
        return self.values[node.args[0]].float()

    def _call(self, step: Call) -> None:
        attributes = {name: fx.node.map_arg(value, self._any) for name, value in step.attributes.items()}
        if step.bounds != (None, None):
            attributes["bounds"] = step.bounds
        if step.rounding is not None:
            attributes["activation_range"] = step.rounding
        made = step.op.fn(*self._inputs(step), **attributes)
        if step.result is None or step.output is None:
            self.values[step.node] = made
        else:
            self.values[step.result] = torch.utils._pytree.tree_map(lambda x: codes_of(x, step.output), made)

    def _inputs(self, step: Call) -> list[Any]:
        inputs = [self._argument(given) for given in step.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        return inputs

    def _argument(self, given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(self._argument(part) for part in given)
        if isinstance(given, Integers):
            return torch.utils._pytree.tree_map(lambda codes: floats_of(codes, given.qparams), self.values[given.codes])
        if isinstance(given, Weight):
            return dequantize_weight(given.codes, given.scale, given.zero_point, given.axis)
        if isinstance(given, HalfWeight):
            return given.values.float()
        if isinstance(given, Rounded):
            return dynamic_quantize_dequantize(self._argument(given.value), given.quant_min, given.quant_max)
        if isinstance(given, Constant):
            return given.values
        return self._any(given) if isinstance(given, fx.Node) else given


def codes_of(x: Tensor, p: Any) -> Tensor:
    return quantize(x, p.scale, p.zero_point, p.quant_min, p.quant_max, p.dtype)


def floats_of(codes: Tensor, p: Any) -> Tensor:
    assert codes.dtype in (torch.uint8, torch.int8)
    return dequantize(codes, p.scale, p.zero_point)
