"""Runs the fusion rules to a fixpoint; every near miss becomes a remark with its reason.

A rule that makes one op of several that compute (`joins_ops`) asks whether the user wants all of them in int8, or all in float.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from qcompiler.compile.matching import check_ops
from qcompiler.compile.pass_manager import Context
from qcompiler.compile.rewrite import Match, Reject, Rule
from qcompiler.config.qconfig_of_call import rule_of_call
from qcompiler.ir.attributes import drop_unused_modules
from qcompiler.ir.types import Stage
from qcompiler.patterns import FUSE, FUSE_TRAINING


def _as_the_user_says(rule: Rule, context: Context) -> Rule:
    """The rule, refused where qconfigs leave some of its ops float and others not."""

    settings = context.settings

    def stays_float(match: Match, node: fx.Node) -> bool:
        return rule_of_call(settings.mapping, node, match.row(node).settled, settings.module_types).qconfig is None

    def check(match: Match, **known: object) -> None:
        floats = [node for node in match.nodes if stays_float(match, node)]
        if 0 < len(floats) < len(match.nodes):
            raise Reject("other-qconfig", f"the qconfig of %{floats[0].name} is None, and not that of all its ops")
        if rule.check is not None:
            rule.check(match, **known)

    return replace(rule, check=check)


@dataclass(frozen=True)
class Fuse:
    name: str = "fuse"
    stage: Stage = Stage.FUSED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        for rule in context.settings.rules:
            check_ops(rule.name, rule.pattern, context.table)
        rules = (*context.settings.rules, *(FUSE_TRAINING if context.trains else FUSE))
        fired = context.apply_rules(gm, [_as_the_user_says(rule, context) if rule.joins_ops else rule for rule in rules])
        gm.graph.eliminate_dead_code()
        drop_unused_modules(gm)
        return bool(fired)
