"""Which steps have a C form: for each op what it refuses, and how it becomes layers. A new op is a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial

from qcompiler.backends.native.float_ops import COMPARISONS, FIRST, LENGTHS, SORTED, VARIANCES
from qcompiler.backends.native.plan import (
    attention,
    batch_norm,
    conv,
    dynamic,
    einsum,
    embedding,
    float_conv,
    float_pointwise,
    float_rows,
    fold,
    masks,
    matmul,
    order,
    pick,
    pointwise,
    pool,
    prelu,
    rearrange,
    recurrent,
    reduce,
    resize,
    shape,
    statistics,
    taken,
    transposed,
    warp,
)
from qcompiler.backends.native.plan.float_rows import CumSum, Softmax
from qcompiler.backends.native.plan.on_sums import plan_on_sums
from qcompiler.backends.native.plan.places import ALONG_AXES
from qcompiler.backends.native.plan.planning import NOT_INT8, OTHER_KIND, Facts, Planning
from qcompiler.backends.native.steps import Step, is_value
from qcompiler.ops.table import OPS


@dataclass(frozen=True)
class CForm:
    """`refuse`: why a step of this op has no C form, None where it has one. `plan`: adds its layers. `of_codes`: what it computes with,
    or moves, may be codes.
    """

    plan: Callable[[Step, Planning], None]
    refuse: Callable[[Step, Facts], str | None] = lambda step, facts: None
    of_codes: bool = False


def _of_codes(plan: Callable[[Step, Planning], None], refuse: Callable[[Step, Facts], str | None] | None = None) -> CForm:
    """A form that takes codes, and makes codes."""

    def refused(step: Step, facts: Facts) -> str | None:
        if not facts.gives_codes(step):
            return "it hands out floats"
        if is_value(step.args[0]) and not facts.is_codes(step.args[0]):
            return NOT_INT8
        return refuse(step, facts) if refuse is not None else None

    return CForm(plan, refused, True)


Add = Callable[[Iterable[str], CForm], None]


@cache
def c_forms() -> Mapping[str, tuple[CForm, ...]]:
    """By the name of the op's row, or of float_ops.py's: its forms, of which the first that does not refuse is taken."""
    found: dict[str, tuple[CForm, ...]] = {}

    def add(names: Iterable[str], form: CForm) -> None:
        found.update({name: (*found.get(name, ()), form) for name in names})

    for part in (_of_integers, _of_windows, _that_move, _of_floats, _of_masks, _of_places):
        part(add)
    return found


FUNCTIONS = (*(name for name, row in OPS.rows.items() if row.elementwise), "relu", "clamp")


def _of_integers(add: Add) -> None:
    add(FUNCTIONS, _of_codes(pointwise.plan_function, pointwise.refuse_function))
    add(("add", "sub", "mul", "div"), _of_codes(pointwise.plan_pair, pointwise.refuse_pair))
    add(["prelu"], _of_codes(prelu.plan_prelu, prelu.refuse_prelu))
    add(["linear"], CForm(partial(conv.plan_conv, 0), conv.refuse_conv))
    add(["linear"], CForm(dynamic.plan_dynamic_linear, dynamic.refuse_dynamic_linear))
    add(recurrent.KINDS, CForm(recurrent.plan_recurrent, recurrent.refuse_recurrent))
    add(["batch_norm"], _of_codes(batch_norm.plan_batch_norm, batch_norm.refuse_batch_norm))
    add(["mean"], _of_codes(pool.plan_mean, pool.refuse_mean))


def _of_windows(add: Add) -> None:
    add(["interpolate"], CForm(resize.plan_resize, resize.refuse_resize, True))
    add(["grid_sample"], CForm(warp.plan_warp, warp.refuse_warp))
    add(["fold"], CForm(fold.plan_fold, fold.refuse_fold))
    for dims in (1, 2, 3):
        refuse = partial(pool.refuse_pool, dims)
        add([f"conv{dims}d"], CForm(partial(conv.plan_conv, dims), conv.refuse_conv))
        add([f"conv_transpose{dims}d"], CForm(partial(transposed.plan_transposed, dims), partial(transposed.refuse_transposed, dims), True))
        for kind in ("max", "avg"):
            add([f"{kind}_pool{dims}d"], CForm(partial(pool.plan_pool, kind, dims), refuse, True))
            add([f"adaptive_{kind}_pool{dims}d"], CForm(partial(pool.plan_adaptive, kind, dims), refuse, True))


def _that_move(add: Add) -> None:
    add(["getitem"], CForm(rearrange.plan_part, rearrange.refuse_part, True))
    add((*shape.VIEWS, *shape.SAME), CForm(shape.plan_view, shape.refuse_view, True))
    add((*ALONG_AXES, *pick.FLAT), CForm(pick.plan_pick, pick.refuse_pick, True))
    add(rearrange.SPLITS, CForm(rearrange.plan_rearranged, shape.refuse_view, True))
    add(["stack"], CForm(rearrange.plan_stack, shape.refuse_cat, True))
    add(["cat"], CForm(shape.plan_cat, shape.refuse_cat, True))


def _plan_float_function(step: Step, planner: Planning) -> None:
    if not plan_on_sums(step, planner):
        float_pointwise.plan_float_function(step, planner)


def _of_floats(add: Add) -> None:
    add(["clamp"], CForm(float_pointwise.plan_between, float_pointwise.refuse_between))
    add(FUNCTIONS, CForm(_plan_float_function, float_pointwise.refuse_float_function))
    add(float_pointwise.PAIRS, CForm(float_pointwise.plan_float_pair, float_pointwise.refuse_float_pair))
    add(["prelu"], CForm(prelu.plan_float_prelu, prelu.refuse_float_prelu))
    add(["linear"], CForm(float_conv.plan_float_linear, float_conv.refuse_float_linear))
    for dims in (1, 2, 3):
        add([f"conv{dims}d"], CForm(partial(float_conv.plan_float_conv, dims), partial(float_conv.refuse_float_conv, dims)))
    add(["batch_norm"], CForm(batch_norm.plan_float_batch_norm, batch_norm.refuse_float_batch_norm))
    add(["einsum"], CForm(einsum.plan_einsum, einsum.refuse_einsum))
    add(["normalize"], CForm(float_rows.plan_normalize, float_rows.refuse_normalize))
    for name, kind in (("softmax", Softmax), ("log_softmax", partial(Softmax, log=True)), ("cumsum", CumSum)):
        add([name], CForm(partial(float_rows.plan_along, kind), float_rows.refuse_along))
    add(("layer_norm", "rms_norm"), CForm(float_rows.plan_layer_norm, float_rows.refuse_norm))
    add(("group_norm", "instance_norm"), CForm(float_rows.plan_group_norm, float_rows.refuse_group_norm))
    add(("mean", "sum", "amax", "amin"), CForm(reduce.plan_reduce, reduce.refuse_reduce))
    add(LENGTHS, CForm(statistics.plan_norm, statistics.refuse_norm))
    add(VARIANCES, CForm(statistics.plan_variance, statistics.refuse_variance))
    add(["matmul"], CForm(matmul.plan_matmul, matmul.refuse_matmul))
    add(["scaled_dot_product_attention"], CForm(attention.plan_attention, attention.refuse_attention))


def _of_masks(add: Add) -> None:
    add(COMPARISONS, CForm(masks.plan_pair_of_masks, masks.refuse_comparison))
    add(masks.COMBINED, CForm(masks.plan_pair_of_masks, masks.refuse_masks))
    add(["not"], CForm(masks.plan_not, masks.refuse_masks))
    add(["as_float"], CForm(masks.plan_as_float, masks.refuse_as_float))
    add(("where", "masked_fill"), CForm(masks.plan_where, masks.refuse_where))


def _of_places(add: Add) -> None:
    add(FIRST, CForm(order.plan_first, order.refuse_first))
    add(SORTED, CForm(order.plan_order, order.refuse_order))
    add(taken.TAKING, CForm(taken.plan_taken, taken.refuse_taken, True))
    add(["getitem"], CForm(taken.plan_indexed, taken.refuse_indexed, True))
    add(["embedding"], CForm(embedding.plan_embedding, embedding.refuse_embedding))
    add(["embedding_bag"], CForm(embedding.plan_embedding_bag, embedding.refuse_embedding_bag))


def takes_codes(op: str) -> bool:
    """Whether an op has a form that computes with codes, or moves them."""
    return any(form.of_codes for form in c_forms().get(op, ()))


def choose(step: Step, facts: Facts) -> CForm | str:
    """The form of a step, or why it has none."""
    row = OPS.rows.get(step.op)
    if row is not None and row.draws(step.kwargs):
        return f"{step.op} draws random numbers at each call, and C draws none"
    forms = c_forms().get(step.op, ())
    reasons = [form.refuse(step, facts) for form in forms]
    found = next((form for form, reason in zip(forms, reasons, strict=True) if reason is None), None)
    closest = [reason for reason in reasons if reason not in OTHER_KIND] or reasons  # a form of this kind knows what is missing
    return found or (str(closest[-1]) if closest else f"{step.op} has no C form yet")


def form_of(step: Step, facts: Facts) -> CForm:
    """Raises KeyError for a step without a C form."""
    found = choose(step, facts)
    if isinstance(found, str):
        raise KeyError(found)
    return found
