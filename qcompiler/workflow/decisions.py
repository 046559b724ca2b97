"""A model that was prepared for one back end, built for another: which of the decisions taken that one cannot have, and what stays float.

Three decisions leave no way back, since calibration or training saw what they made: floats that an op hands out, a residual that a
convolution adds inside, the bits of activations in training. All others hold, but that what the other back end has no form of is float:
`Narrowed` is the target with which a calibrated model is decided again for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from qcompiler.compile.settings import Settings
from qcompiler.config.qconfig import QConfig
from qcompiler.errors import ConfigError
from qcompiler.ir.types import Mode, quant_of
from qcompiler.ir.verify import where
from qcompiler.observers.watch import Watch
from qcompiler.ops.arguments import activations
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Op
from qcompiler.ops.stays_float import reads_sums
from qcompiler.target import Neutral, Target, WeightLimit


def check_decisions(gm: fx.GraphModule, settings: Settings, target: Target) -> None:
    """Raises ConfigError naming the first decision of an OBSERVED graph that the target cannot have. What it only lacks a kernel for is
    none: that op will be float."""
    for node in gm.graph.nodes:
        row = settings.table.of(node)
        if row is None or not quant_of(node).int8:
            continue
        decision = _conflict(gm, node, row, settings, target)
        if decision:
            raise ConfigError(f"prepared for {settings.target.backend}, the model cannot be built for {target.backend}: {decision}",
                              code="backend-decision", where=where(node),
                              hint=f'prepare it for that: prepare_fx(model, ..., backend="{target.backend}")')  # fmt: skip


def _conflict(gm: fx.GraphModule, node: fx.Node, row: Op, settings: Settings, target: Target) -> str | None:
    if target.refuses(row, node) is not None:
        return None  # it will be float
    kept = _kept_sums(node, settings)
    if kept is None and quant_of(node).float_output and not target.gives_floats(row, node):
        return f"%{node.name} was decided to hand out floats from its 32-bit sums"
    if not settings.trains:  # calibration sees values as they are; how many bits hold them is asked at convert
        return None
    bits = target.activation_bits(row, node)
    wide = next((value for value in activations(settings.table, node) if _codes(gm, value) > 2**bits), None)
    return f"%{node.name} was trained on activations of more than the {bits} bits that its kernel takes" if wide is not None else None


def _kept_sums(node: fx.Node, settings: Settings) -> fx.Node | None:
    """The op that takes the sums of an int8 one before they are rounded. Calibration has watched the value for other back ends."""
    users = node.users if quant_of(node).float_output else ()
    return next((user for user in users if reads_sums(user, settings.table)), None)


def _codes(gm: fx.GraphModule, value: fx.Node) -> int:
    """How many integers the fake quantization behind a value rounds to; 0 where there is none."""
    watch = gm.get_submodule(str(value.target)) if value.op == "call_module" else None
    observer: Any = watch.observer if isinstance(watch, Watch) else None
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    return int(high - low) + 1 if low is not None and high is not None else 0


def refused(gm: fx.GraphModule, settings: Settings, target: Target) -> bool:
    """Whether an op that was decided to be quantized has no form in another back end, or one that rounds between two ops."""
    return any(_refuses(node, settings, target) for node in gm.graph.nodes)


def _refuses(node: fx.Node, settings: Settings, target: Target) -> bool:
    row, quant = settings.table.of(node), quant_of(node)
    if row is None or not (quant.int8 or quant.mode):
        return False
    user = _kept_sums(node, settings)
    reader = settings.table.of(user) if user is not None else None
    if user is not None and reader is not None and not quant_of(user).folded and not target.takes_sums(row, node, reader, user):
        return True
    return isinstance(target.mode(row, node, quant.mode) if quant.mode else target.refuses(row, node), Obstacle)


@dataclass(frozen=True)
class Narrowed(Neutral):
    """The decisions of one target, but that what another one has no form of is float."""

    prepared_for: Target = field(default_factory=Neutral)
    built_for: Target = field(default_factory=Neutral)

    @property
    def backend(self) -> str:
        return self.built_for.backend

    @property
    def settings(self) -> Mapping[str, str]:
        return self.built_for.settings

    @property
    def adds_inside(self) -> bool:
        return self.prepared_for.adds_inside

    def refuses(self, row: Op, node: fx.Node) -> Obstacle | None:
        return self.prepared_for.refuses(row, node) or self.built_for.refuses(row, node)

    def lacks(self, what: object) -> str | None:
        return self.prepared_for.lacks(what)

    def computes_float(self, row: Op) -> bool:
        return self.prepared_for.computes_float(row)

    def default_mode(self, row: Op) -> Mode | None:
        return self.prepared_for.default_mode(row)

    def mode(self, row: Op, node: fx.Node, asked: Mode) -> tuple[Mode, str] | Obstacle:
        decided = self.prepared_for.mode(row, node, asked)
        other = decided if isinstance(decided, Obstacle) else self.built_for.mode(row, node, decided[0])
        return other if isinstance(other, Obstacle) else decided

    def slower(self, row: Op, node: fx.Node) -> Obstacle | None:
        return self.prepared_for.slower(row, node)

    def gives_floats(self, row: Op, node: fx.Node) -> bool:
        return self.prepared_for.gives_floats(row, node)

    def takes_sums(self, row: Op, node: fx.Node, reader: Op, user: fx.Node) -> bool:
        return self.prepared_for.takes_sums(row, node, reader, user) and self.built_for.takes_sums(row, node, reader, user)

    def activation_bits(self, row: Op, node: fx.Node) -> int:
        return self.built_for.activation_bits(row, node)

    @property
    def reduces_all(self) -> bool:
        return self.built_for.reduces_all

    def weight_limit(self, row: Op, node: fx.Node) -> WeightLimit | None:
        return self.built_for.weight_limit(row, node)

    def activation_range(self, row: Op, node: fx.Node, qconfig: QConfig) -> tuple[int, int]:
        return self.built_for.activation_range(row, node, qconfig)
