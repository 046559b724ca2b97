"""The plan of a back end as the last stage of a document."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.debug.document import Node, Stage, delta, stage
from qcompiler.executable import Executable

PLAN = "plan"


def plan_stages(module: Executable, nodes: Sequence[Node]) -> tuple[Stage, ...]:
    """`nodes`: of the stage before. Nothing for a back end without a plan."""
    plan = module._plan(nodes)
    return () if plan is None else (stage(PLAN, "build", delta(nodes, plan.nodes)),)
