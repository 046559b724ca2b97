"""One call of an op on quantized tensors, the float64 truth it is compared with, and how its tensors are drawn."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qcompiler.ops.spec import Op, Output
from qcompiler.ops.table import OPS

SMALL: dict[int, tuple[int, ...]] = {1: (11,), 2: (9, 7), 3: (5, 6, 5)}


@dataclass(frozen=True)
class Int8:
    """A weight as stored: int8 values, scale and zero point; `axis` None is per tensor."""

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None

    def double(self) -> Tensor:
        if self.axis is None:
            return (self.values.double() - self.zero_point.double()) * self.scale.double()
        shape = [1] * self.values.dim()
        shape[self.axis] = -1
        return (self.values.double() - self.zero_point.double().reshape(shape)) * self.scale.double().reshape(shape)


@dataclass(frozen=True)
class Case:
    """One call of an op: quint8 tensors (and lists of them) are activations, Int8 the weight, float tensors parameters."""

    op: str
    label: str
    args: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> Op:
        return OPS.rows[self.op]

    def truth(self) -> Tensor | tuple[Tensor, ...]:
        """The op on the real values, in float64."""
        result: Any = self.row.fn(*(real(a) for a in self.args), **self.attributes)
        return tuple(result) if isinstance(result, (list, tuple)) else result


@dataclass(frozen=True)
class Recipe:
    """A case before its tensors are drawn: each of `draws` makes one argument.

    They draw from a stream that belongs to this case alone: what other cases draw, or whether there are any, does not change it.
    """

    op: str
    label: str
    draws: tuple[Callable[[], Any], ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def case(self, stream: str) -> Case:
        """The case. `stream`: what tells its random numbers from those of the same case under another setting."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{stream} {self.op} {self.label}".encode()))
            return Case(self.op, self.label, tuple(draw() for draw in self.draws), dict(self.attributes))


def fixed(value: object) -> Callable[[], object]:
    """An argument that is not drawn."""
    return lambda: value


def several(*draws: Callable[[], object]) -> Callable[[], list[object]]:
    """An argument that is a list."""
    return lambda: [draw() for draw in draws]


def real(value: object) -> Any:
    if isinstance(value, Int8):
        return value.double()
    if isinstance(value, list):
        return [real(v) for v in value]
    if isinstance(value, Tensor):
        return ((value.int_repr().double() - value.q_zero_point()) * value.q_scale()) if value.is_quantized else value.double()
    return value


def activation(shape: tuple[int, ...], high: int, extreme: bool = False, scale: float = 0.02, zero_point: int | None = None) -> Tensor:
    """quint8 with codes up to `high`; extreme: all of them `high` or 0 around zero point 0, to provoke saturation."""
    codes = torch.randint(0, high + 1, shape, dtype=torch.uint8)
    if extreme:
        codes = torch.where(torch.rand(shape) < 0.9, high, 0).to(torch.uint8)
    return torch._make_per_tensor_quantized_tensor(codes, scale, (0 if extreme else high // 2) if zero_point is None else zero_point)


def weight(shape: tuple[int, ...], axis: int | None, extreme: bool = False) -> Int8:
    values = torch.randint(-127, 128, shape, dtype=torch.int8)
    if extreme:
        values = torch.where(torch.rand(shape) < 0.5, 127, 121).to(torch.int8)
    count = 1 if axis is None else shape[axis]
    return Int8(values, torch.rand(count) * 0.004 + 0.001, torch.zeros(count, dtype=torch.int64), axis)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values, stored otherwise."""
    if layout == "view":
        return x.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def output_scale(case: Case, truth: Tensor) -> tuple[float, int]:
    """What an observer would choose: full range of the truth; the input's or a fixed one where the op says so."""
    row = case.row
    if row.output is Output.SAME:
        return float(case.args[0].q_scale()), int(case.args[0].q_zero_point())
    if row.fixed is not None:
        assert isinstance(row.fixed.scale, float) and isinstance(row.fixed.zero_point, int)
        return row.fixed.scale, row.fixed.zero_point
    first = case.args[0]
    if isinstance(first, list) and all(t.q_scale() == first[0].q_scale() and t.q_zero_point() == first[0].q_zero_point() for t in first):
        return first[0].q_scale(), first[0].q_zero_point()
    low, high = (min(0.0, truth.min().item()), max(0.0, truth.max().item())) if truth.numel() else (0.0, 1.0)
    scale = max((high - low) / 255, math.ulp(1.0))
    return scale, round(-low / scale)
