"""Runs the fusion rules to a fixpoint; every refused match becomes a remark with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.ir.attributes import drop_unused_modules
from qcompiler.ir.types import Stage
from qcompiler.pass_manager import Context
from qcompiler.patterns import FUSE
from qcompiler.patterns.padding import centre_rule
from qcompiler.rewrite import run_rules


@dataclass(frozen=True)
class Fuse:
    name: str = "fuse"
    stage: Stage = Stage.FUSED

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        fired, refused = run_rules(gm, (*context.rules, *FUSE), context.table)
        if context.target is not None:  # last: it puts an op behind the convolution that fusions must not meet
            run_rules(gm, (centre_rule(context.target.wants_centred),), context.table)
        for rejection in refused:
            context.remark(self.name, rejection.code, f"{rejection.rule}: {rejection.reason}", rejection.node)
        gm.graph.eliminate_dead_code()
        drop_unused_modules(gm)
        return bool(fired)
