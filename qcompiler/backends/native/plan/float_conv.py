"""Linears and convolutions whose weights are floats: a product of matrices with a weight that lies in panels from the start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatPair
from qcompiler.backends.native.plan.matmul import COLUMNS, MOST_DIMS, MatMul, float_rows
from qcompiler.backends.native.plan.pick import Pick
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.planning import NOT_FLOAT, Facts, Planning
from qcompiler.backends.native.plan.shape import Reshape, View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.window import Window, window_fault
from qcompiler.backends.native.steps import Step, is_tensor, is_value

WEIGHT = "its weight is computed at run time"


@dataclass(frozen=True, eq=False)
class Weighted(MatMul):
    """a (*batch, M, K) times a weight of the network's, (K, N)."""

    size: Axes = ()

    def right(self, sizes: Sizes) -> Axes:
        return self.size


def panels(weight: Tensor) -> Tensor:
    """A weight (N, K) as (ceil(N / 16), K, 16), as plan.matmul.Pack makes it of (K, N); what is missing in the last panel is 0."""
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, 0, 0, -rows % COLUMNS))
    return padded.reshape(-1, COLUMNS, columns).transpose(1, 2).contiguous()


def _fault(step: Step, facts: Facts) -> str | None:
    x, weight, *bias = step.args[:3]
    if facts.is_int8_weight(weight):
        return NOT_FLOAT
    if not (is_tensor(weight) and facts.is_floats(weight) and all(b is None or is_tensor(b) for b in bias)):
        return WEIGHT
    if not (facts.is_codes(x) or facts.is_floats(x)):
        return "its input is not float32"
    return "its settings are computed at run time" if any(map(is_value, step.kwargs.values())) else None


def refuse_float_linear(step: Step, facts: Facts) -> str | None:
    rank = facts.rank(step.args[0])
    return _fault(step, facts) or (None if 2 <= rank <= MOST_DIMS else f"its input has {rank} dimensions")


def plan_float_linear(step: Step, planner: Planning) -> None:
    _product(step, planner, float_rows(step.args[0], planner), *planner.result(step))


def _product(step: Step, planner: Planning, rows: str, out: str, codes: Codes | None) -> None:
    """rows (*, K) times the weight, (*, N), plus the bias, between the step's bounds."""
    weight, label = planner.tensor(step.args[1]).flatten(1), planner.label(step)
    bias = planner.tensor(step.args[2]) if len(step.args) > 2 and step.args[2] is not None else torch.zeros(len(weight))
    held = planner.constant(f"{step.out}.panels", panels(weight))
    added = planner.constant(f"{step.out}.bias", bias)
    made = planner.add(Weighted(f"{step.out}.product", label, rows, held, str(step.args[1]), None, tuple(weight.t().shape)))
    planner.add(FloatPair(out, label, "add", made, added, (None, None), codes, step.kwargs.get("bounds")))


def refuse_float_conv(dims: int, step: Step, facts: Facts) -> str | None:
    fault = _fault(step, facts)
    if fault is None and (step.kwargs.get("groups", 1) != 1 or dims > 2):
        return "of convolutions with float weights, those of one group in one or two dimensions have a C form"
    return fault or window_fault(step.kwargs)


def _windows(x: Tensor, window: Window, dims: int) -> Tensor:
    """(*batch, C, *space) -> (*batch, *places, C, *kernel): a view."""
    first = x.dim() - dims
    for i in range(dims):
        at = 3 - dims + i
        kernel, apart = window.kernel[at], window.dilation[at]
        x = x.unfold(first + i, apart * (kernel - 1) + 1, window.stride[at])[..., ::apart]
    return x.movedim(first - 1, -dims - 1)


def _joined(x: Tensor, dims: int) -> Tensor:
    """Channels and kernel as one."""
    return x.reshape(*x.shape[: -dims - 1], math.prod(x.shape[-dims - 1 :]))


def plan_float_conv(dims: int, step: Step, planner: Planning) -> None:
    """A row of inputs for each place of the result, times the weight."""
    kernel = tuple(planner.tensor(step.args[1]).shape[2:])
    window = Window.of(
        dims, kernel, *(step.kwargs.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
    )
    label, x = planner.label(step), float_rows(step.args[0], planner)
    if any(window.pad):
        sides = {"pad": tuple(n for pad in reversed(window.pad[3 - dims :]) for n in (pad, pad))}
        x = planner.add(Pick(f"{step.out}.padded", label, x, "pad", (), sides, 0.0, True))
    seen = planner.add(View(f"{step.out}.windows", label, x, step.op, (), {}, partial(_windows, window=window, dims=dims)))
    flat = planner.add(Reshape(f"{step.out}.rows", label, seen, step.op, (), {}, partial(_joined, dims=dims)))
    out, codes = planner.result(step)
    _product(step, planner, planner.rows(f"%{flat}"), f"{out}.turned", codes)
    planner.add(View(out, label, f"{out}.turned", "movedim", (), {}, partial(torch.movedim, source=-1, destination=-dims - 1)), codes)
