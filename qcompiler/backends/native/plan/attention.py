"""Attention: products of queries and keys, a softmax, products with values (kernels/attention.h)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.float_ops import VISIBLE
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.floats import operand, result, width
from qcompiler.backends.native.plan.layer import Bound, Layer, Pixels
from qcompiler.backends.native.plan.masks import Where
from qcompiler.backends.native.plan.matmul import MOST_DIMS, NO_PIXELS, by_matrix, float_rows, matrices, matrix_steps, packed, rank_fault
from qcompiler.backends.native.plan.place import Axes, Place, spread_shape
from qcompiler.backends.native.plan.planning import Argument, Facts, Planning
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.shape import View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_value

WIDEST = 256  # QC_WIDEST


@dataclass(frozen=True, eq=False)
class Attention(Layer):
    """softmax(q k^T * scale + mask) v; k and v packed, q floats with elements side by side, all of the batch (*batch)."""

    q: str
    k: str
    v: str
    values: str  # what v was packed from, for its size
    mask: str | None
    mask_codes: Codes | None
    codes: Codes | None
    scale: float
    causal: bool
    grouped: bool = False  # whether the heads are two dimensions, those of the keys and those that share one

    @property
    def lies_anywhere(self) -> bool:
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.q, self.k, self.v, *([self.mask] if self.mask is not None else []))

    def by_sample(self, samples: Samples) -> bool:
        return by_matrix((self.q, *self.reads[3:]), (self.k, self.v), self.out, samples)

    def shape(self, sizes: Sizes) -> Axes:
        q, v, keys = sizes.shape(self.q), sizes.shape(self.values), sizes.shape(self.k)
        if v[-1] > WIDEST or q[-1] != keys[-2]:
            raise ValueError(f"attention of {q} and {v}")
        return (*spread_shape(q[:-2], v[:-2]), q[-2], v[-1])

    def place(self, sizes: Sizes) -> Place:
        """Queries outside of heads: the heads' results side by side are one row, as the next layer takes them."""
        rank, heads = len(sizes.shape(self.out)), 2 if self.grouped else 1
        first = max(rank - 2 - heads, 0)
        order = (*range(first), rank - 2, *range(first, rank - 2), rank - 1)
        return sizes.new(self.out, order, width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        y, q, k, v = (sizes.place(name) for name in (self.out, self.q, self.k, self.v))
        keys = sizes.shape(self.values)[-2]
        q = q.spread((*y.shape[:-1], q.shape[-1]))
        given = [q, matrix_steps(k, y.shape), matrix_steps(v, y.shape)]
        if self.mask is not None:
            given.append(sizes.place(self.mask).spread((*y.shape[:-1], keys)))
        py, pq, pk, pv, *pm = matrices((y, *given), set())
        pixels = [pq, Pixels(k, *NO_PIXELS), Pixels(v, *NO_PIXELS), *pm, py]
        steps = [place.strides[-1] for place in given[3:]]
        return Bound(pixels, strides=[(*pk.strides[:3], 0, 0), (*pv.strides[:3], 0, 0)], spread=[*steps, keys])

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.q)) * sizes.shape(self.values)[-2] // 15

    def code(self, to: LayerCode) -> None:
        with to.call("attention") as fields:
            fields.pixels("q")
            fields.floats("k", "v")
            if self.mask is not None:
                operand(fields, "mask", self.mask_codes)
            result(fields, "y", self.codes)
            fields.strides("k_of")
            fields.strides("v_of")
            fields.step("keys")
            fields.reals(scale=self.scale)
            fields.plain(causal=int(self.causal))

    def text(self) -> str:
        return f"attention {self.q}, {self.values}" + (" causal" if self.causal else "")


def refuse_attention(step: Step, facts: Facts) -> str | None:
    kwargs = step.kwargs
    if kwargs.get("dropout_p", 0.0) != 0.0:
        return "attention with dropout has no C form"
    if any(map(is_value, (kwargs.get("scale"), kwargs.get("is_causal")))):
        return "its settings are computed at run time"
    mask, visible = kwargs.get("attn_mask"), kwargs.get(VISIBLE)
    if mask is not None and not facts.is_floats(mask):
        return "its mask is not float32"
    if visible is not None and not facts.is_mask(visible):
        return "its mask is not bool"
    if max(facts.rank(mask), facts.rank(visible)) > MOST_DIMS:
        return f"its mask has more than {MOST_DIMS} dimensions"
    if facts.shape(step.args[2])[-1:] > (WIDEST,):
        return f"its values are wider than {WIDEST}"
    return rank_fault(step, facts, 3, MOST_DIMS) or _group_fault(step, facts)


def _heads(argument: Argument, facts: Facts) -> int:
    return facts.shape(argument)[-3] if facts.rank(argument) >= 3 else 1


def _is_grouped(step: Step, facts: Facts) -> bool:
    """Whether several heads of queries share one of keys."""
    return bool(step.kwargs.get("enable_gqa", False)) and _heads(step.args[0], facts) != _heads(step.args[1], facts)


def _group_fault(step: Step, facts: Facts) -> str | None:
    if not _is_grouped(step, facts):
        return None
    queries, keys, values = (_heads(argument, facts) for argument in step.args[:3])
    if keys != values or queries % keys:
        return f"{queries} heads of queries share {keys} of keys and {values} of values"
    ranks = [facts.rank(step.args[0]), facts.rank(step.kwargs.get("attn_mask")), facts.rank(step.kwargs.get(VISIBLE))]
    return f"grouped heads in {max(ranks)} dimensions" if max(ranks) >= MOST_DIMS else None


def _in_groups(x: Tensor, heads: int) -> Tensor:
    """(*batch, H, M, N) as (*batch, heads, H / heads, M, N); one head, or none, for all of them."""
    if x.dim() < 3:
        return x
    return x.unsqueeze(-3) if x.shape[-3] == 1 else x.unflatten(-3, (heads, -1))


def _added(step: Step, planner: Planning) -> str | None:
    """What is added to the scores: the mask, or minus infinity where a mask of bools hides a key."""
    mask, visible = step.kwargs.get("attn_mask"), step.kwargs.get(VISIBLE)
    if visible is None:
        return None if mask is None else planner.operand(mask)
    seen, hidden = (planner.constant(f"{step.out}.{name}", torch.tensor(value)) for name, value in (("seen", 0.0), ("hidden", -math.inf)))
    return planner.add(Where(f"{step.out}.mask", planner.label(step), planner.operand(visible), seen, hidden, (None, None, None), None))


def _split(part: str, x: str, step: Step, planner: Planning) -> str:
    made = partial(_in_groups, heads=_heads(step.args[1], planner))
    return planner.add(View(f"{step.out}.{part}", planner.label(step), x, step.op, (), {}, made), planner.codes.get(x))


def plan_attention(step: Step, planner: Planning) -> None:
    q, label, grouped = float_rows(step.args[0], planner), planner.label(step), _is_grouped(step, planner)
    k, v = (planner.operand(argument) for argument in step.args[1:3])
    added = _added(step, planner)
    if grouped:
        q, k, v = (_split(part, x, step, planner) for part, x in (("queries", q), ("grouped", k), ("values", v)))
        added = None if added is None else _split("added", added, step, planner)
    turned = planner.add(View(f"{step.out}.keys", label, k, "transpose", (), {"dim0": -2, "dim1": -1}), planner.codes.get(k))
    scale = step.kwargs.get("scale")
    scale = 1 / math.sqrt(planner.example.shape(q)[-1]) if scale is None else float(scale)
    out, codes = planner.result(step)
    mask_codes = None if added is None else planner.codes.get(added)
    made = f"{out}.groups" if grouped else out
    planner.add(Attention(made, label, q, packed(turned, planner), packed(v, planner), v, added, mask_codes, codes, scale,
                          bool(step.kwargs.get("is_causal", False)), grouped))  # fmt: skip
    if grouped:
        planner.add(View(out, label, made, "flatten", (), {"start_dim": -4, "end_dim": -3}), codes)
