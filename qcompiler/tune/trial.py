"""A trial of corrections on a few batches that they were found on: for what a step chooses among. Held-out data judges the step alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx

from qcompiler.config.corrections import Corrections
from qcompiler.ops.state_nodes import held_names
from qcompiler.tune.diagnose import values_alone
from qcompiler.tune.let_go import let_go, twins_for_now
from qcompiler.tune.score import sqnr_of
from qcompiler.tune.shares import Shares
from qcompiler.workflow.convert import Conversion, reference

Call: TypeAlias = tuple[Sequence[object], Mapping[str, object]]


@dataclass(frozen=True)
class Trial:
    """`calls`: arguments and keywords of each batch; `expected`: what the float model makes of them; `shares`: how results are judged.

    `values_alone`: weights stay float in it, for what is followed by new codes. `least`: dB that a change must gain there.
    """

    prepared: object
    calls: Sequence[Call]
    expected: Sequence[object]
    shares: Shares
    values_alone: bool = False
    least: float = 0.0

    @staticmethod
    def of(prepared: object, floats: fx.GraphModule, calls: Sequence[Call]) -> Trial:
        """`floats`: the float twin. What it keeps between calls stays as it is."""
        floats = copy.deepcopy(floats) if held_names(floats) else floats
        with torch.inference_mode():
            return Trial(prepared, calls, [floats(*args, **kwargs) for args, kwargs in calls], Shares.of(prepared))

    def sqnr(self, corrections: Corrections) -> float:
        """dB of the reference graph with the corrections, over all results."""
        if self.values_alone:
            with twins_for_now(self.prepared, corrections) as made:
                return self._of(values_alone(made[0]))
        gm = reference(self.prepared, (), Conversion(), corrections)
        found = self._of(gm)
        let_go(self.prepared, gm)
        return found

    def _of(self, gm: fx.GraphModule) -> float:
        with torch.inference_mode():
            return sqnr_of(self.expected, [gm(*args, **kwargs) for args, kwargs in self.calls], self.shares)
