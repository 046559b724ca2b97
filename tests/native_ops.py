"""One op as a native region of its own, beside what the QUANTIZED graph computes: no trace, no calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.native.steps import Region, Step
from qcompiler.ir.nested import rewrite
from qcompiler.ops.reference import dequantize, quantize
from qcompiler.ops.table import OPS

Scale = tuple[float, int]  # scale, zero point


@dataclass
class OneOp:
    """`op(x, *args, **kwargs)` of int8 values x of one shape. `weight`: (codes, scale) of a weight behind x, then a bias or None.

    `given`, `made`: scale and zero point of x and of the result. `tensors`: what "$0", "$1" among the arguments mean.
    """

    op: str
    shape: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    given: Scale = (0.05, 128)
    made: Scale = (0.05, 128)
    weight: tuple[Tensor, Tensor, int | None] | None = None
    bias: Tensor | None = None
    tensors: tuple[Tensor, ...] = ()
    more: tuple[Any, ...] = ()  # arguments behind x, and a weight

    def region(self) -> NativeRegion:
        tensors, steps, args = list(self.tensors), [Step("q", "quantize", ("%x", 0, 0, 255)), Step("d", "dequantize", ("%q",))], ["%d"]
        if self.weight is not None:
            codes, scale, axis = self.weight
            at = len(tensors)
            tensors += [codes, scale, torch.zeros_like(scale, dtype=torch.int64)]
            steps.append(Step("w", "weight", (f"${at}", f"${at + 1}", f"${at + 2}", axis)))
            args.append("%w")
            if self.bias is not None:
                tensors.append(self.bias)
                args.append(f"${len(tensors) - 1}")
        args += self.more
        steps += [
            Step("y", self.op, tuple(args), self.kwargs),
            Step("y_q", "quantize", ("%y", 1, 0, 255)),
            Step("y_d", "dequantize", ("%y_q",)),
        ]
        return NativeRegion(Region((("x", self.shape),), tuple(steps), ("y_d",)), tensors, [self.given, self.made])

    def expected(self, x: Tensor) -> Tensor:
        """What plain torch makes of the same codes."""
        args = [dequantize(quantize(x, *self.given, 0, 255, torch.uint8), *self.given)]
        if self.weight is not None:
            codes, scale, axis = self.weight
            shape = [-1 if d == axis else 1 for d in range(codes.dim())]
            args.append(codes.float() * scale.float().reshape(shape))
            args += [] if self.bias is None else [self.bias]
        args += map(self._tensor, self.more)
        kwargs = rewrite(dict(self.kwargs), self._tensor)
        return dequantize(quantize(OPS.rows[self.op].fn(*args, **kwargs), *self.made, 0, 255, torch.uint8), *self.made)

    def _tensor(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._tensor, value))
        return self.tensors[int(value[1:])] if isinstance(value, str) and value.startswith("$") else value

    def steps_apart(self, region: NativeRegion, x: Tensor) -> int:
        """The largest distance in quanta."""
        (found,), expected = region(x), self.expected(x)
        assert found.shape == expected.shape
        return int(torch.round((found - expected).abs() / self.made[0]).max()) if found.numel() else 0


def floats(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
