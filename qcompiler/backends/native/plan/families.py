"""Which steps have a C form: for each op what it refuses, and how it becomes layers. A new op is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from qcompiler.backends.native.plan import conv, pick, pointwise, pool, prelu, rearrange, resize, shape, transposed
from qcompiler.backends.native.plan.places import ALONG_AXES
from qcompiler.ops.table import OPS

if TYPE_CHECKING:
    from qcompiler.backends.native.plan.planner import Facts, Planner
    from qcompiler.backends.native.steps import Step


@dataclass(frozen=True)
class Family:
    """`refuse`: why a step of this op has no C form, None where it has one. `plan`: adds its layers."""

    plan: Callable[[Step, Planner], None]
    refuse: Callable[[Step, Facts], str | None] = lambda step, facts: None


@cache
def families() -> Mapping[str, Family]:
    """By the name of the op's row."""
    functions = (*(name for name, row in OPS.rows.items() if row.elementwise), "relu", "clamp")
    found = {name: Family(pointwise.plan_function, pointwise.refuse_function) for name in functions}
    found |= {name: Family(shape.plan_view, shape.refuse_view) for name in (*shape.VIEWS, *shape.SAME)}
    found |= {name: Family(pointwise.plan_pair, pointwise.refuse_pair) for name in ("add", "sub", "mul", "div")}
    found |= {name: Family(pick.plan_pick, pick.refuse_pick) for name in (*ALONG_AXES, *pick.FLAT)}
    found |= {name: Family(rearrange.plan_rearranged, shape.refuse_view) for name in rearrange.SPLITS}
    found["prelu"] = Family(prelu.plan_prelu, prelu.refuse_prelu)
    found["stack"] = Family(rearrange.plan_stack, shape.refuse_cat)
    found["cat"] = Family(shape.plan_cat, shape.refuse_cat)
    found["linear"] = Family(partial(conv.plan_conv, 0), partial(conv.refuse_conv, 0))
    found["batch_norm"] = Family(conv.plan_batch_norm, conv.refuse_batch_norm)
    found["interpolate"] = Family(resize.plan_resize, resize.refuse_resize)
    found["mean"] = Family(pool.plan_mean, pool.refuse_mean)
    for dims in (1, 2, 3):
        refuse = partial(pool.refuse_pool, dims)
        found[f"conv{dims}d"] = Family(partial(conv.plan_conv, dims), partial(conv.refuse_conv, dims))
        found[f"conv_transpose{dims}d"] = Family(partial(transposed.plan_transposed, dims), partial(transposed.refuse_transposed, dims))
        for kind in ("max", "avg"):
            found[f"{kind}_pool{dims}d"] = Family(partial(pool.plan_pool, kind, dims), refuse)
            found[f"adaptive_{kind}_pool{dims}d"] = Family(partial(pool.plan_adaptive, kind, dims), refuse)
    return found


def family_of(op: str) -> Family:
    """Raises KeyError for an op without a C form."""
    return families()[op]
