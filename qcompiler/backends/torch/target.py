"""What the passes ask of the torch back end: an engine, an instruction set, and what its kernels can take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.backends.torch.kernels import conv, depthwise, modes, slower
from qcompiler.backends.torch.kernels.centring import Centring, centring_of
from qcompiler.backends.torch.kernels.speed import MARGIN, recurrent_times
from qcompiler.backends.torch.kernels.table import TABLE, TO_FLOAT
from qcompiler.backends.torch.reasons import REASONS
from qcompiler.backends.torch.site import ENGINES, INSTRUCTION_SETS, host_isa
from qcompiler.config.qconfig import QConfig
from qcompiler.errors import ConfigError
from qcompiler.ir.types import Mode, value_of
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Family, Op
from qcompiler.target import Neutral, Target, WeightLimit


@dataclass(frozen=True)
class PairsOfTaps:
    """The WeightLimit of fbgemm's depthwise kernel, which adds neighbouring taps in 16 bits."""

    def qparams(self, weight: Tensor, scale: Tensor, zero_point: Tensor, quant_max: int) -> tuple[Tensor, Tensor]:
        return depthwise.safe_qparams(weight, scale, zero_point, quant_max)

    def holds(self, codes: Tensor) -> Tensor:
        return depthwise.safe_channels(codes)

    def least_scale(self, weight: Tensor) -> Tensor:
        return depthwise.least_safe_scale(weight)


@dataclass(frozen=True)
class TorchTarget(Neutral):
    """One of torch's quantized engines on one instruction set. Raises ConfigError for an engine this torch lacks, or no such set."""

    engine: str = "x86"
    isa: str = field(default_factory=host_isa)

    def __post_init__(self) -> None:
        supported = [e for e in torch.backends.quantized.supported_engines if e in ENGINES]
        if self.engine not in supported:
            raise ConfigError(f"engine {self.engine!r} is not available here", code="engine", hint=f"this torch has {', '.join(supported)}")
        if self.isa not in INSTRUCTION_SETS and self.isa != host_isa():
            known = f"one of {', '.join(INSTRUCTION_SETS)}; this machine's is {host_isa()}"
            raise ConfigError(f"no instruction set is called {self.isa!r:.40}", code="isa", hint=known)

    @staticmethod
    def of(target: Target) -> TorchTarget:
        """The target of a compile, which the passes of this back end alone may take for what it is."""
        assert isinstance(target, TorchTarget)
        return target

    @property
    def backend(self) -> str:
        return "torch"

    @property
    def settings(self) -> Mapping[str, str]:
        return {"engine": self.engine, "isa": self.isa}

    @property
    def qconfigs(self) -> str:
        return self.engine

    @property
    def adds_inside(self) -> bool:
        """oneDNN's kernel wants its engine to be torch's current one at each call."""
        return self.engine == "onednn"

    def refuses(self, row: Op, node: fx.Node) -> Obstacle | None:
        """Why no kernel at all exists for the op; sites are looked at one by one when they are lowered."""
        row = row.settled
        if any(row.takes(name) and _is_computed(value) for name, value in node.kwargs.items()) and _is_packed(row):
            return Obstacle("computed-setting", "its settings are computed at run time")  # such as groups=x.shape[1]
        return None if row.name in TABLE or row.elementwise else Obstacle("no-kernel", f"no int8 kernel for {row.name}")

    def lacks(self, what: object) -> str | None:
        return REASONS.get(what)

    def gives_floats(self, row: Op, node: fx.Node) -> bool:
        """Such a kernel wants at least two dimensions."""
        kernel, flat = TO_FLOAT.get(row.settled.name), len(value_of(node).shape or (0, 0)) < 2
        return kernel is not None and self.engine in kernel.engines and not flat

    def centring(self, row: Op, node: fx.Node, before: object) -> Centring | None:
        """How an op behind the node `before` is centred for fbgemm's fast depthwise kernel; None where it need not be, or cannot."""
        groups: Any = node.kwargs.get("groups", 1)
        if row.settled.name != "conv2d" or groups % 8 or not conv.fbgemm_packs(self.engine, self.isa, groups):
            return None
        return centring_of(before, _weight_shape(row, node), node.kwargs)

    def _saturation(self, row: Op, node: fx.Node) -> str | None:
        if row.weight is None:  # matmul computes in float
            return None
        centring = self.centring(row, node, node.args[0])
        settings = node.kwargs if centring is None else centring.settings(node.kwargs)
        return conv.saturation(row.settled.family, _weight_shape(row, node), settings, self.engine, self.isa)

    def activation_bits(self, row: Op, node: fx.Node) -> int:
        return 7 if self._saturation(row, node) == "any" else 8

    @property
    def reduces_all(self) -> bool:
        """Whether any convolution or linear may overflow: what is not followed to its consumers then has 7 bits."""
        return conv.saturation(Family.LINEAR, (), {}, self.engine, self.isa) == "any"

    def weight_limit(self, row: Op, node: fx.Node) -> WeightLimit | None:
        return PairsOfTaps() if self._saturation(row, node) == "pairs" else None

    def limit_of(self, family: Family, weight: Tensor, attributes: Mapping[str, object]) -> WeightLimit | None:
        """`weight_limit`, for an op by its family, its weight and its attributes."""
        return PairsOfTaps() if conv.saturation(family, tuple(weight.shape), attributes, self.engine, self.isa) == "pairs" else None

    def mode(self, row: Op, node: fx.Node, asked: Mode) -> tuple[Mode, str] | Obstacle:
        return modes.choose(row, asked)

    def slower(self, row: Op, node: fx.Node) -> Obstacle | None:
        """What the committed times say."""
        if row.family is not Family.RECURRENT:
            found = slower.of_call(row.settled, node, self.engine, self.isa)
            return Obstacle("slower-than-float", found) if found is not None else None
        sizes = [math.prod(value_of(w).shape or ()) for w in row.weights(node)]
        cells = len(sizes) // 2
        times = recurrent_times(row.name, sum(sizes) // cells, self.engine, self.isa) if cells else None
        if times is None or times[1] * MARGIN <= times[0]:
            return None
        text = f"int8 dynamic takes {times[1] / times[0]:.1f} times as long as float at this size on {self.engine}, by measurement"
        return Obstacle("slower-than-float", text)

    def activation_range(self, row: Op, node: fx.Node, qconfig: QConfig) -> tuple[int, int]:
        return modes.activation_range(node, qconfig, self.engine, self.isa)


def _is_packed(row: Op) -> bool:
    """Whether a kernel needs the settings as numbers: to pack a weight, to check a window, to make a table, to scale."""
    return row.weight is not None or row.elementwise or any(row.takes(name) for name in ("kernel_size", "eps", "alpha"))


def _is_computed(setting: object) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(setting, found.append)  # type: ignore[type-var]
    return bool(found)


def _weight_shape(row: Op, node: fx.Node) -> tuple[int, ...]:
    weight = node.args[row.weight] if row.weight is not None else None
    return (value_of(weight).shape if isinstance(weight, fx.Node) else None) or ()
