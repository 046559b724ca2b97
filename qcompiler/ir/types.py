"""The few types that every stage of the IR is annotated with. Each hangs under one key of `node.meta`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import fx

from qcompiler.ir.form import Form

T = TypeVar("T")
Z = TypeVar("Z")

VALUE = "qc_value"  # node.meta key -> Value
SOURCE = "qc_source"  # node.meta key -> Source
QUANT = "qc_quant"  # node.meta key -> Quant
ONLY_CHILD = "qc_only_child"  # gm.meta key: where the user's model stands if it is one leaf module; its names are the graph's own
MACS = "qc_macs"  # node.meta key of lowered calls -> multiply-accumulates of the op they compute, with the example inputs


class Stage(Enum):
    """How far a graph has come; the verifier knows what each allows."""

    TRACED = "traced"
    FUSED = "fused"
    OBSERVED = "observed"
    QUANTIZED = "quantized"
    LOWERED = "lowered"


class Mode(Enum):
    """How an op with weights computes that takes and gives floats; the value is what explain() shows."""

    DYNAMIC = "int8 dynamic"  # int8 weights; activations are quantized with the range of the values at hand
    HALF = "float16 weights"  # products of float32 activations and float16 weights
    WEIGHT_ONLY = "8-bit weights"  # float arithmetic on 8-bit weights
    FOUR_BIT = "4-bit weights"  # float arithmetic on 4-bit weights, two in a byte


@dataclass(frozen=True)
class Value:
    """Shape and dtype of a node's result as seen with the example inputs; None where it is not a tensor.

    `form`: of an argument of the forward, what it is made of.
    """

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    form: Form | None = field(default=None, compare=False)

    @staticmethod
    def of(example: object) -> Value:
        if isinstance(example, torch.Tensor):
            return Value(tuple(example.shape), example.dtype)
        return Value(None, None)


@dataclass(frozen=True)
class Source:
    """Where a node comes from in the user's model.

    `origin` lists the names of the traced nodes that were fused into this one, first the one it computes.
    """

    file: str | None = None
    line: int | None = None
    module_path: str = ""
    module_type: str = ""
    origin: tuple[str, ...] = ()

    @property
    def location(self) -> str | None:
        return f"{self.file}:{self.line}" if self.file else None


def halved(scale: T, zero_point: Z) -> tuple[T, Z]:
    """Qparams of the same range in half as many steps: numbers, or tensors of them."""
    return 2 * scale, zero_point // 2  # type: ignore[operator, return-value]


def halved_ends(low: int, high: int) -> tuple[int, int]:
    """The ends of half as many steps."""
    return low // 2, (high + 1) // 2 - 1


@dataclass(frozen=True)
class QParams:
    """How real numbers map to integers: real = scale * (q - zero_point), q in [quant_min, quant_max].

    Per tensor: `scale` (real per step) is a float and `zero_point` (in steps) an int. Per channel: tuples along
    `channel_axis`. `dtype` is the storage type: torch.uint8, torch.int8 or torch.int32.
    """

    scale: float | tuple[float, ...]
    zero_point: int | tuple[int, ...]
    quant_min: int
    quant_max: int
    dtype: torch.dtype
    channel_axis: int | None = None

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest real value (per tensor only)."""
        assert isinstance(self.scale, float) and isinstance(self.zero_point, int)
        return self.scale * (self.quant_min - self.zero_point), self.scale * (self.quant_max - self.zero_point)

    def unsigned(self) -> QParams:
        """The same real numbers with uint8 codes, as kernels take activations: int8 codes are counted from quant_min.

        So 7 bits are 0..127, whose products kernels may add in 16 bits, and -128..127 is 0..255.
        """
        return self._shifted(-self.quant_min, torch.uint8) if self.dtype is torch.int8 else self

    def signed(self) -> QParams:
        """The same real numbers with int8 codes, as kernels take weights: the middle of uint8 codes becomes 0."""
        return self._shifted(-((self.quant_min + self.quant_max + 1) // 2), torch.int8) if self.dtype is torch.uint8 else self

    def with_7_bits(self) -> QParams:
        """The range of 0..255 in half as many steps, 0..127, which kernels may add in 16 bits (per tensor only)."""
        assert isinstance(self.scale, float) and isinstance(self.zero_point, int) and (self.quant_min, self.quant_max) == (0, 255)
        scale, zero_point = halved(self.scale, self.zero_point)
        return replace(self, scale=scale, zero_point=zero_point, quant_max=halved_ends(0, 255)[1])

    def _shifted(self, by: int, dtype: torch.dtype) -> QParams:
        zero_point = tuple(z + by for z in self.zero_point) if isinstance(self.zero_point, tuple) else self.zero_point + by
        return replace(self, zero_point=zero_point, quant_min=self.quant_min + by, quant_max=self.quant_max + by, dtype=dtype)


@dataclass(frozen=True)
class Quant:
    """What was decided about one node.

    int8: the op takes and gives integers with qparams that calibration found. `mode`: it takes and gives floats, but its
    weights are quantized. `float_output`: it hands out floats, from its 32-bit sums. `group`: values of one group share
    qparams. `qparams`: known once frozen. `reason`: why a node stays float (None when int8 or with a mode);
    `code`: the same for programs, a key of ops/obstacles.py. `weight`: of a parameter its qparams, where training has settled them.
    `corrected`: what the user's corrections changed of it. `folded`: converting makes the call, a product or sum with a constant, a part of
    the op before it (passes/fold_affine.py).
    """

    int8: bool = False
    mode: Mode | None = None
    reason: str | None = None
    float_output: bool = False
    group: int | None = None
    qparams: QParams | None = None
    qconfig: Any = field(default=None, compare=False)
    weight: QParams | None = None
    code: str | None = None
    corrected: tuple[str, ...] = ()
    folded: bool = False

    def with_(self, **changes: Any) -> Quant:
        return replace(self, **changes)


_NO_VALUE, _NO_SOURCE, _NO_QUANT = Value(None, None), Source(), Quant()  # of nodes without a note; made once, since rules ask often


def value_of(node: fx.Node) -> Value:
    return node.meta.get(VALUE, _NO_VALUE)  # type: ignore[no-any-return]


def source_of(node: fx.Node) -> Source:
    return node.meta.get(SOURCE, _NO_SOURCE)  # type: ignore[no-any-return]


def quant_of(node: fx.Node) -> Quant:
    return node.meta.get(QUANT, _NO_QUANT)  # type: ignore[no-any-return]
