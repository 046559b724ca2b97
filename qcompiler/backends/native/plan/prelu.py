"""PReLU: a function of single codes; with a slope for each channel a table for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qcompiler.backends.native.plan.pointwise import Map
from qcompiler.backends.native.steps import is_tensor

if TYPE_CHECKING:
    from qcompiler.backends.native.plan.planner import Facts, Planner
    from qcompiler.backends.native.steps import Step


def refuse_prelu(step: Step, facts: Facts) -> str | None:
    if not is_tensor(step.args[1]):
        return "its slopes are computed at run time"
    rank = facts.rank(step.args[0])
    return None if rank <= 5 else f"its input has {rank} dimensions"


def plan_prelu(step: Step, planner: Planner) -> None:
    slopes, name = planner.tensor(step.args[1]).float().reshape(-1), planner.value(step.args[0])
    out, codes = planner.result(step)
    assert codes is not None
    rank = planner.rank(name)
    if len(slopes) > 1:
        if rank < 2 or planner.example.shape(name)[1] != len(slopes):
            raise ValueError(f"{len(slopes)} slopes for a value of shape {planner.example.shape(name)}")
        name = planner.pixels(step.args[0], (), rank - 2) if rank > 2 else planner.rows(step.args[0])
    x = planner.codes[name].floats()
    tables = codes.of(torch.where(x > 0, x, x * slopes[:, None]))
    planner.add(Map(out, planner.label(step), name, tables if len(slopes) > 1 else tables[0], "prelu"), codes)
