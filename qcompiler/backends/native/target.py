"""What the passes ask of the native back end: 8 bits everywhere, since no sum of its kernels overflows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from qcompiler.backends.native import isa
from qcompiler.backends.native.plan.bend import takes_sums
from qcompiler.backends.native.plan.forms import takes_codes
from qcompiler.backends.torch.site import host_isa
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.config.qconfig import QConfig
from qcompiler.errors import ConfigError
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Family, Op
from qcompiler.target import WeightLimit

DYNAMIC = ("linear", "lstm", "gru", "lstm_cell", "gru_cell")  # have a C form


@dataclass(frozen=True)
class NativeTarget(TorchTarget):
    """`engine` and `isa` are those of torch's kernels, which run what has no C form. The C holds all instruction sets of the machine."""

    isa: str = field(default_factory=host_isa)

    @property
    def backend(self) -> str:
        return "native"

    @property
    def settings(self) -> Mapping[str, str]:
        return {"machine": isa.architecture()}

    @property
    def adds_inside(self) -> bool:
        """Sums are fused where the plan is made, so QUANTIZED keeps them apart."""
        return False

    def refuses(self, row: Op, node: fx.Node) -> Obstacle | None:
        """What torch has no int8 kernel for may have a C form."""
        found = super().refuses(row, node)
        has_form = found is not None and found.code == "no-kernel" and takes_codes(row.settled.name)
        return None if has_form else found

    def gives_floats(self, row: Op, node: fx.Node) -> bool:
        return row.settled.family is Family.LINEAR

    def takes_sums(self, row: Op, node: fx.Node, reader: Op, user: fx.Node) -> bool:
        return takes_sums(row, node, reader, user)

    def activation_bits(self, row: Op, node: fx.Node) -> int:
        return 8

    def activation_range(self, row: Op, node: fx.Node, qconfig: QConfig) -> tuple[int, int]:
        """Of what is quantized at run time: all codes where the C computes it."""
        return (0, 255) if row.settled.name in DYNAMIC else super().activation_range(row, node, qconfig)

    @property
    def reduces_all(self) -> bool:
        return False

    def weight_limit(self, row: Op, node: fx.Node) -> WeightLimit | None:
        return None

    def limit_of(self, family: Family, weight: Any, attributes: Mapping[str, Any]) -> WeightLimit | None:
        return None

    def slower(self, row: Op, node: fx.Node) -> Obstacle | None:
        """Torch's times hold where torch's kernels run; the C's are below float's at every size (docs/native.md)."""
        is_torchs = row.family is Family.RECURRENT and row.settled.name not in DYNAMIC
        return super().slower(row, node) if is_torchs else None


def native_target(engine: str | None, isa_name: str | None) -> NativeTarget:
    """Raises ConfigError for settings: which instruction set runs is decided where the library is loaded."""
    if isa_name is not None:
        raise ConfigError("the native back end compiles for all instruction sets of a machine", code="isa",
                          hint="leave isa= out; the environment variable QCOMPILER_ISA caps what runs")  # fmt: skip
    return NativeTarget() if engine is None else NativeTarget(engine)
