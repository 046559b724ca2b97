"""Runs the fusion rules to a fixpoint; every refused candidate becomes a remark with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.ir.attributes import drop_unused_modules
from qcompiler.ir.types import Stage
from qcompiler.pass_manager import Context
from qcompiler.patterns import FUSE, FUSE_TRAINING
from qcompiler.patterns.padding import centre_rule


@dataclass(frozen=True)
class Fuse:
    name: str = "fuse"
    stage: Stage = Stage.FUSED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        fired = context.apply_rules(gm, (*context.settings.rules, *(FUSE_TRAINING if context.trains else FUSE)))
        if context.target is not None:  # last: it puts an op behind the convolution that fusions must not meet
            fired += context.apply_rules(gm, (centre_rule(context.target.wants_centred),))
        gm.graph.eliminate_dead_code()
        drop_unused_modules(gm)
        return bool(fired)
