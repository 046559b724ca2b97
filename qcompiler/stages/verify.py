"""Checks a graph against the rules of its stage. The pass manager runs this before and after every pass."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from qcompiler.errors import ConfigError, PassError, QCompilerError
from qcompiler.ir.types import Stage
from qcompiler.ir.verify import form_problem, where
from qcompiler.ops.table import OPS, Table
from qcompiler.stages.rule import Breach, Place, Seen
from qcompiler.stages.rules import RULES

OF_STAGE = {stage: tuple(rule for rule in RULES if stage in rule.stages) for stage in Stage}
CHECKS = {stage: tuple((rule.code, rule.check) for rule in rules if rule.check is not None) for stage, rules in OF_STAGE.items()}


def verify(gm: fx.GraphModule, stage: Stage, *, after: str = "", table: Table = OPS) -> None:
    """Raises PassError (after a pass) or ConfigError (a graph handed in) where the graph breaks a rule of its stage.

    The error's code is the rule's, `invalid-ir` where it is no graph at all. One walk over the nodes.
    """
    found = next(_breaches(gm, stage, table), None)
    if found is None:
        return
    code, breach = found
    error: type[QCompilerError] = PassError if after else ConfigError
    by = f"after pass {after}" if after else "in the graph given"
    raise error(f"invalid IR {by}: {breach.text}", code=code, where=where(breach.node) if breach.node is not None else None)


def _breaches(gm: fx.GraphModule, stage: Stage, table: Table) -> Iterator[tuple[str, Breach]]:
    """What breaks a rule, one by one, each with the rule's code."""
    form = form_problem(gm)
    if form is not None:
        yield "invalid-ir", Breach(*form)
    seen, checks = Seen(), CHECKS[stage]
    for node in gm.graph.nodes:
        at = Place(gm, node, stage, table, seen)
        for code, check in checks:
            text = check(at)
            if text is not None:
                yield code, Breach(text, node)
    for rule in OF_STAGE[stage]:
        breach = rule.finish(gm, seen) if rule.finish is not None else None
        if breach is not None:
            yield rule.code, breach
