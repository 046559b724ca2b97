"""The plan of a back end as the last stage of a document."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.debug.document import Node, Stage, delta, stage
from qcompiler.debug.explain_nodes import explain_nodes, explanation_on
from qcompiler.executable import Executable

PLAN = "plan"


def plan_stages(module: Executable, nodes: Sequence[Node]) -> tuple[Stage, ...]:
    """`nodes`: of the stage before. Nothing for a back end without a plan."""
    plan = module._plan(nodes)
    if plan is None:
        return ()
    layers = [dict(node) for node in plan.nodes]
    explain_nodes(layers, explanation_on(module))
    return (stage(PLAN, "build", delta(nodes, layers)),)
