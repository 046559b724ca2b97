"""Which steps have a C form: for each op what it refuses, and how it becomes layers. A new op is a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from qcompiler.backends.native.plan import (
    conv,
    float_pointwise,
    float_rows,
    matmul,
    pick,
    pointwise,
    pool,
    prelu,
    rearrange,
    resize,
    shape,
    transposed,
)
from qcompiler.backends.native.plan.places import ALONG_AXES
from qcompiler.backends.native.steps import is_value
from qcompiler.ops.table import OPS

if TYPE_CHECKING:
    from qcompiler.backends.native.plan.planner import Facts, Planner
    from qcompiler.backends.native.steps import Step


@dataclass(frozen=True)
class Family:
    """`refuse`: why a step of this op has no C form, None where it has one. `plan`: adds its layers. `of_codes`: what it computes with,
    or moves, may be codes.
    """

    plan: Callable[[Step, Planner], None]
    refuse: Callable[[Step, Facts], str | None] = lambda step, facts: None
    of_codes: bool = False


def _of_codes(plan: Callable[[Step, Planner], None], refuse: Callable[[Step, Facts], str | None] | None = None) -> Family:
    """A form that takes codes, and makes codes."""

    def refused(step: Step, facts: Facts) -> str | None:
        if not facts.gives_codes(step):
            return "it hands out floats"
        if is_value(step.args[0]) and not facts.is_codes(step.args[0]):
            return "its input is not int8"
        return refuse(step, facts) if refuse is not None else None

    return Family(plan, refused, True)


@cache
def families() -> Mapping[str, tuple[Family, ...]]:
    """By the name of the op's row, or of floats.py's: its forms, of which the first that does not refuse is taken."""
    found: dict[str, tuple[Family, ...]] = {}

    def add(names: Iterable[str], form: Family) -> None:
        found.update({name: (*found.get(name, ()), form) for name in names})

    functions = [name for name, row in OPS.rows.items() if row.elementwise]
    add((*functions, "relu", "clamp"), _of_codes(pointwise.plan_function, pointwise.refuse_function))
    add((*functions, "relu", "clamp"), Family(float_pointwise.plan_float_function, float_pointwise.refuse_float_function))
    add((*shape.VIEWS, *shape.SAME), Family(shape.plan_view, shape.refuse_view, True))
    add(("add", "sub", "mul", "div"), _of_codes(pointwise.plan_pair, pointwise.refuse_pair))
    add(float_pointwise.PAIRS, Family(float_pointwise.plan_float_pair, float_pointwise.refuse_float_pair))
    add((*ALONG_AXES, *pick.FLAT), Family(pick.plan_pick, pick.refuse_pick, True))
    add(rearrange.SPLITS, Family(rearrange.plan_rearranged, shape.refuse_view, True))
    add(["prelu"], _of_codes(prelu.plan_prelu, prelu.refuse_prelu))
    add(["stack"], Family(rearrange.plan_stack, shape.refuse_cat, True))
    add(["cat"], Family(shape.plan_cat, shape.refuse_cat, True))
    add(["linear"], Family(partial(conv.plan_conv, 0), partial(conv.refuse_conv, 0)))
    add(["batch_norm"], _of_codes(conv.plan_batch_norm, conv.refuse_batch_norm))
    add(["interpolate"], _of_codes(resize.plan_resize, resize.refuse_resize))
    add(["mean"], _of_codes(pool.plan_mean, pool.refuse_mean))
    for dims in (1, 2, 3):
        refuse = partial(pool.refuse_pool, dims)
        add([f"conv{dims}d"], Family(partial(conv.plan_conv, dims), partial(conv.refuse_conv, dims)))
        add([f"conv_transpose{dims}d"], _of_codes(partial(transposed.plan_transposed, dims), partial(transposed.refuse_transposed, dims)))
        for kind in ("max", "avg"):
            add([f"{kind}_pool{dims}d"], _of_codes(partial(pool.plan_pool, kind, dims), refuse))
            add([f"adaptive_{kind}_pool{dims}d"], _of_codes(partial(pool.plan_adaptive, kind, dims), refuse))
    for dims in (1, 2, 3):
        form = Family(partial(float_rows.plan_float_average, dims), partial(float_rows.refuse_float_average, dims))
        add([f"adaptive_avg_pool{dims}d"], form)
    add(["softmax"], Family(float_rows.plan_softmax, float_rows.refuse_softmax))
    add(("layer_norm", "rms_norm"), Family(float_rows.plan_layer_norm, float_rows.refuse_norm))
    add(("group_norm", "instance_norm"), Family(float_rows.plan_group_norm, float_rows.refuse_group_norm))
    add(("mean", "sum", "amax", "amin"), Family(float_rows.plan_reduce, float_rows.refuse_reduce))
    add(["matmul"], Family(matmul.plan_matmul, matmul.refuse_matmul))
    add(["scaled_dot_product_attention"], Family(matmul.plan_attention, matmul.refuse_attention))
    return found


def takes_codes(op: str) -> bool:
    """Whether an op has a form that computes with codes, or moves them."""
    return any(form.of_codes for form in families().get(op, ()))


def choose(step: Step, facts: Facts) -> Family | str:
    """The form of a step, or why it has none."""
    forms = families().get(step.op, ())
    reasons = [form.refuse(step, facts) for form in forms]
    return next((form for form, reason in zip(forms, reasons, strict=True) if reason is None), None) or (
        str(reasons[-1]) if reasons else f"{step.op} has no C form yet"
    )


def form_of(step: Step, facts: Facts) -> Family:
    """Raises KeyError for a step without a C form."""
    found = choose(step, facts)
    if isinstance(found, str):
        raise KeyError(found)
    return found
