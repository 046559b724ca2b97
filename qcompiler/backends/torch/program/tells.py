"""What a compiled module tells of itself: drawings, plans, times and integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qcompiler.backends.native.regions import plan_of
from qcompiler.backends.native.times import native_times
from qcompiler.backends.native.watched_steps import LAYER
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.drawing import program_nodes
from qcompiler.backends.torch.program.scales import scales_of
from qcompiler.executable import Executable, LayerTimes, Plan
from qcompiler.executable.integers import Scales
from qcompiler.executable.noted import LARGEST, ROWS

if TYPE_CHECKING:
    from qcompiler.backends.torch.program.program import Program


class TellsOfItself(Executable):
    """The part of a CompiledModule that reports ask."""

    if TYPE_CHECKING:

        @property
        def program(self) -> Program: ...

    def _nodes(self) -> list[dict[str, Any]]:
        return program_nodes(self, self.program)

    def _plan(self, nodes: Sequence[dict[str, Any]]) -> Plan | None:
        return plan_of(self, nodes)

    def _layer_times(self, *args: Any, **kwargs: Any) -> LayerTimes | None:
        if not self.program.is_native:
            return None
        inside = {step.name for step in self._steps().steps if step.op == registry.RUN_REGION or step.op.startswith(LAYER)}
        return LayerTimes({name: one["ms"] for name, one in native_times(self, *args, **kwargs).items()}, frozenset(inside))

    def _scales(self) -> Scales:
        return scales_of(self, self.program, self.__dict__.get(LARGEST, {}), {row["node"] for row in self.__dict__.get(ROWS, ())})
