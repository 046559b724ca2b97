"""The back end `onnx`: what the passes may decide for a model that becomes an ONNX file. It builds nothing; export_onnx writes the file.

On CPUs of x86 without VNNI, the runtimes multiply uint8 activations by int8 weights and add products in pairs with vpmaddubsw, which
saturates at 16 bits, and say nothing of it. Which weights of a channel are paired is theirs. No pair can overflow if the two largest
positive weights of a channel add up to at most 128, and so do the two most negative ones: 255 * 128 < 2^15. Where they do not, the channel
gets a larger scale, twice its own at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.backends import Backend
from qcompiler.errors import ConfigError
from qcompiler.ir.types import quant_of
from qcompiler.ops.spec import Op
from qcompiler.target import Neutral, WeightLimit

LIMIT = 128  # floor(32767 / 255)
ISAS = ("avx2", "avx512_vnni")


def _peaks(weight: Tensor, axis: int) -> Tensor:
    """By channel the larger of the sums of the two largest weights of each sign."""
    rows = weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    count = min(2, rows.shape[1])
    return torch.maximum(rows.clamp(min=0).topk(count).values.sum(1), (-rows).clamp(min=0).topk(count).values.sum(1))


@dataclass(frozen=True)
class AnyPair:
    """The limit for weights whose channels of the result lie along `axis`."""

    axis: int

    def qparams(self, weight: Tensor, scale: Tensor, zero_point: Tensor, quant_max: int) -> tuple[Tensor, Tensor]:
        """(scale, zero point) at which the int8 weight is safe; symmetric, since the proof is about codes around 0."""
        values = weight.detach().double()
        if bool((zero_point != 0).any()):
            scale = self._by_scale(values.abs().movedim(self.axis, 0).flatten(1).amax(1), scale) / quant_max
            zero_point = torch.zeros_like(zero_point)
        steps = scale.double().reshape(-1, *[1] * (weight.dim() - 1)).movedim(0, self.axis if scale.numel() > 1 else 0)
        safe = self._by_scale(_peaks(torch.round(values / steps), self.axis), scale) <= LIMIT
        return torch.where(safe, scale, torch.maximum(scale, self._by_scale(self.least_scale(weight), scale).to(scale.dtype))), zero_point

    def holds(self, codes: Tensor) -> Tensor:
        """By channel whether no two codes of one sign are more than the limit."""
        return _peaks(codes.double(), self.axis) <= LIMIT

    def least_scale(self, weight: Tensor) -> Tensor:
        """With s = (a + b) / 127, a / s + b / s is 127 at most, and rounding adds at most a half to each: 128."""
        return _peaks(weight.detach().double(), self.axis) / (LIMIT - 1)

    @staticmethod
    def _by_scale(values: Tensor, scale: Tensor) -> Tensor:
        """What belongs to each scale: one a channel, or the largest of all."""
        return values.reshape(scale.shape) if scale.numel() == values.numel() else values.amax().reshape(scale.shape)


@dataclass(frozen=True)
class OnnxTarget(Neutral):
    """`isa`: the oldest CPU that will run the file."""

    isa: str = ISAS[0]

    @property
    def backend(self) -> str:
        return "onnx"

    @property
    def settings(self) -> Mapping[str, str]:
        return {"isa": self.isa}

    def weight_limit(self, row: Op, node: fx.Node) -> WeightLimit | None:
        """None where the activations have 7 bits, as training may have settled them: 127 * (127 + 127) fits."""
        if self.isa != ISAS[0] or row.weight is None or row.macs is None:
            return None
        qparams = next((quant_of(source).qparams for source in node.all_input_nodes if quant_of(source).qparams is not None), None)
        return None if qparams is not None and qparams.quant_max - qparams.quant_min <= 127 else AnyPair(row.weight_axis)


def _target(engine: str | None, isa: str | None) -> OnnxTarget:
    if engine is not None:
        raise ConfigError("the back end onnx has no engines", code="engine", hint="leave engine= out")
    if isa not in (None, *ISAS):
        raise ConfigError(f"the back end onnx has no instruction set {isa!r:.40}", code="isa", hint=f"one of {', '.join(ISAS)}")
    return OnnxTarget(isa or ISAS[0])


BACKEND = Backend("onnx", _target)
