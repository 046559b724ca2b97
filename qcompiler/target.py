"""What a pass may ask of a back end: the protocol Target, and Neutral, which answers for no kernels at all.

All answers are in neutral terms: which ops have an int8 form, how many bits an activation may use, what an op's result may be. A back
end's target is a subclass of Neutral, or any other object with these members; it must be immutable, compare by value and pickle, since
a prepared module holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, fx

from qcompiler.config.qconfig import QConfig
from qcompiler.config.qconfig_of_op import dynamic_codes
from qcompiler.ir.types import Mode
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Op


class WeightLimit(Protocol):
    """What a kernel's partial sums allow of an int8 weight: from which scales on no activation overflows them."""

    def qparams(self, weight: Tensor, scale: Tensor, zero_point: Tensor, quant_max: int) -> tuple[Tensor, Tensor]:
        """(scale, zero point) at which the weight is safe: those given where they are, larger scales where they are not."""

    def holds(self, codes: Tensor) -> Tensor:
        """Of each output channel of int8 codes, whether no activation overflows the sums: a bool tensor of one dimension."""

    def least_scale(self, weight: Tensor) -> Tensor:
        """Scales by channel from which on the symmetric weight is safe, in closed form: training moves weights all the time."""


@runtime_checkable
class Target(Protocol):
    """A back end on one machine, as the passes up to QUANTIZED see it."""

    @property
    def backend(self) -> str:
        """The name of the back end in the registry."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What was chosen of the back end, such as its instruction set: for dumps and messages."""

    @property
    def qconfigs(self) -> str:
        """Which default qconfigs fit: x86, fbgemm, onednn or qnnpack, as get_default_qconfig takes them."""

    @property
    def adds_inside(self) -> bool:
        """Whether the kernel of a convolution adds a residual."""

    def refuses(self, row: Op, node: fx.Node) -> Obstacle | None:
        """Why the back end has no int8 form of the op at all; None where it has one."""

    def lacks(self, what: object) -> str | None:
        """A word on a function, method name or module class that has no row: why there is no int8 form of it; None: nothing to say."""

    def computes_float(self, row: Op) -> bool:
        """Whether the op's int8 form computes in float inside, so that int8 in front of it saves nothing and costs accuracy."""

    def default_mode(self, row: Op) -> Mode | None:
        """What a static qconfig means for an op that takes no int8 activations, only quantized weights; None for all other ops."""

    def mode(self, row: Op, node: fx.Node, asked: Mode) -> tuple[Mode, str] | Obstacle:
        """How an op with quantized weights and float activations runs, with why that is not as asked; or why it stays float."""

    def slower(self, row: Op, node: fx.Node) -> Obstacle | None:
        """What measurements say where int8 takes longer than float at the op's size (a recurrent layer's int8 dynamic); else None.

        It is about the op alone: an answer that depended on what else is float would change with it.
        """

    def gives_floats(self, row: Op, node: fx.Node) -> bool:
        """Whether the op takes int8 and can hand out the floats of its 32-bit sums."""

    def takes_sums(self, row: Op, node: fx.Node, reader: Op, user: fx.Node) -> bool:
        """Whether the kernel of an op with a weight also computes `user`, which alone reads its result, before anything is rounded."""

    def activation_bits(self, row: Op, node: fx.Node) -> int:
        """How many bits the activations of an int8 op may use: 8, or 7 where partial sums could overflow with no way to prevent it."""

    @property
    def reduces_all(self) -> bool:
        """Whether any convolution or linear may overflow: what is not followed to its consumers then has 7 bits."""

    def weight_limit(self, row: Op, node: fx.Node) -> WeightLimit | None:
        """What the kernel's partial sums ask of the op's weight; None where they hold every weight."""

    def activation_range(self, row: Op, node: fx.Node, qconfig: QConfig) -> tuple[int, int]:
        """(quant_min, quant_max) of activations that are quantized at run time."""


@dataclass(frozen=True)
class Neutral:
    """No kernels: every row has its int8 form, sums never overflow. For exporters, and to derive from."""

    @property
    def backend(self) -> str:
        return "reference"

    @property
    def settings(self) -> Mapping[str, str]:
        return {}

    @property
    def qconfigs(self) -> str:
        return "x86"

    @property
    def adds_inside(self) -> bool:
        return False

    def refuses(self, row: Op, node: fx.Node) -> Obstacle | None:
        return None

    def lacks(self, what: object) -> str | None:
        return None

    def computes_float(self, row: Op) -> bool:
        return row.float_inside

    def default_mode(self, row: Op) -> Mode | None:
        if row.rounds_inside:  # recurrent: only at run time are the ranges of a step's products known
            return Mode.DYNAMIC
        return Mode.WEIGHT_ONLY if row.reads_table else None

    def mode(self, row: Op, node: fx.Node, asked: Mode) -> tuple[Mode, str] | Obstacle:
        if asked is Mode.DYNAMIC and row.reads_table:
            return Mode.WEIGHT_ONLY, "it has no activations, and its result is float"
        return asked, "its activations are no int8 values" if row.reads_table else ""

    def slower(self, row: Op, node: fx.Node) -> Obstacle | None:
        return None

    def gives_floats(self, row: Op, node: fx.Node) -> bool:
        return row.settled.name == "linear"

    def takes_sums(self, row: Op, node: fx.Node, reader: Op, user: fx.Node) -> bool:
        return False

    def activation_bits(self, row: Op, node: fx.Node) -> int:
        return 8

    @property
    def reduces_all(self) -> bool:
        return False

    def weight_limit(self, row: Op, node: fx.Node) -> WeightLimit | None:
        return None

    def activation_range(self, row: Op, node: fx.Node, qconfig: QConfig) -> tuple[int, int]:
        return dynamic_codes(qconfig, node)


__all__ = ["Neutral", "Target", "WeightLimit"]
