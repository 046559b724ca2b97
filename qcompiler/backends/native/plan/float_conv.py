"""Linears and convolutions whose weights are floats, the network's or computed: products of matrices, one for each group."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatPair
from qcompiler.backends.native.plan.matmul import COLUMNS, MOST_DIMS, MatMul, float_rows, packed
from qcompiler.backends.native.plan.pick import Pick
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.planning import NOT_FLOAT, Argument, Facts, Planning
from qcompiler.backends.native.plan.shape import Reshape, View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.window import Window, window_fault
from qcompiler.backends.native.steps import Step, is_tensor, is_value

# By torch they take a third of the time, and less the narrower they are. Weights that data computes have a group for each sample.
GROUPS = f"float weights in groups, or computed ones in groups of fewer than {COLUMNS} results, are torch's: it is faster at them"


@dataclass(frozen=True, eq=False)
class Weighted(MatMul):
    """a (*batch, M, K) times a weight of the network's, (*batch, K, N)."""

    size: Axes = ()

    def right(self, sizes: Sizes) -> Axes:
        return self.size


def panels(weight: Tensor) -> Tensor:
    """A weight (*, N, K) as (*, ceil(N / 16), K, 16), as plan.matmul.Pack makes it of (*, K, N); what is missing in the last panel is 0."""
    padded = F.pad(weight.float(), (0, 0, 0, -weight.shape[-2] % COLUMNS))
    parts = torch.unflatten(padded, -2, (-1, COLUMNS))
    return parts.transpose(-1, -2).contiguous()


def _is_one(argument: Argument, facts: Facts) -> bool:
    """Whether it is one tensor or value of floats, or of codes."""
    return facts.is_floats(argument) if is_tensor(argument) else facts.is_codes(argument) or facts.is_floats(argument)


def _fault(step: Step, facts: Facts, numbers: tuple[str, ...] = ()) -> str | None:
    """`numbers`: settings that may be computed from sizes."""
    x, weight, *bias = step.args[:3]
    if facts.is_int8_weight(weight):
        return NOT_FLOAT
    if not all(_is_one(argument, facts) for argument in (weight, *bias) if argument is not None):
        return "its weight or its bias is not float32"
    if not (facts.is_codes(x) or facts.is_floats(x)):
        return "its input is not float32"
    computed = [value for name, value in step.kwargs.items() if is_value(value) and not (name in numbers and facts.is_number(value))]
    return "its settings are computed at run time" if computed else None


def refuse_float_linear(step: Step, facts: Facts) -> str | None:
    rank = facts.rank(step.args[0])
    if facts.rank(step.args[1]) != 2:
        return "its weight is no matrix"
    return _fault(step, facts) or (None if 2 <= rank <= MOST_DIMS else f"its input has {rank} dimensions")


def plan_float_linear(step: Step, planner: Planning) -> None:
    _product(step, planner, float_rows(step.args[0], planner), _Form(_whole, _whole, ()), *planner.result(step))


@dataclass(frozen=True)
class _Form:
    """How the rows of a weight stand beside those of the input: functions of the weight and of the bias, behind which `args` stand."""

    weight: Callable[..., Tensor]
    bias: Callable[..., Tensor]
    args: tuple[Argument, ...]


def _whole(x: Tensor) -> Tensor:
    return x


def _turned(weight: Tensor, *args: int, function: Callable[..., Tensor]) -> Tensor:
    return function(weight, *args).transpose(-1, -2)


def _seen(name: str, planner: Planning, x: str, function: Callable[..., Tensor], args: tuple[Argument, ...]) -> str:
    return planner.add(View(name, name, x, "view", args, {}, function), planner.codes.get(x))


def _product(step: Step, planner: Planning, rows: str, form: _Form, out: str, codes: Codes | None) -> None:
    """rows (*, K) times the weight, (*, N), plus the bias, between the step's bounds."""
    label, made, given = planner.label(step), f"{step.out}.product", step.args[1]
    if is_tensor(given) and not any(map(is_value, form.args)):
        weight = form.weight(planner.tensor(given).flatten(1), *form.args)
        held = planner.constant(f"{step.out}.panels", panels(weight))
        planner.add(Weighted(made, label, rows, held, str(given), None, tuple(weight.mT.shape)))
    else:
        x = planner.operand(given)
        flat = planner.add(Reshape(f"{step.out}.matrix", label, x, "flatten", (1,), {}), planner.codes.get(x))
        turned = _seen(f"{step.out}.weight", planner, flat, partial(_turned, function=form.weight), form.args)
        planner.add(MatMul(made, label, rows, packed(turned, planner), turned, None))
    bias = planner.operand(step.args[2] if len(step.args) > 2 and step.args[2] is not None else 0.0)
    if planner.rank(f"%{bias}"):
        bias = _seen(f"{step.out}.bias", planner, bias, form.bias, form.args)
    planner.add(FloatPair(out, label, "add", made, bias, (None, planner.codes.get(bias)), codes, step.kwargs.get("bounds")))


def refuse_float_conv(dims: int, step: Step, facts: Facts) -> str | None:
    fault = _fault(step, facts, ("groups",))
    if fault is not None:
        return fault
    shape, channels = facts.shape(step.args[1]), facts.shape(step.args[0])[-dims - 1]
    if dims > 2 or len(shape) != dims + 2:  # windows of volumes are copied in more dimensions than a copy steps through
        return "of convolutions with float weights, those in one or two dimensions have a C form"
    if shape[1] < channels and (is_tensor(step.args[1]) or shape[0] * shape[1] < COLUMNS * channels):
        return GROUPS
    return window_fault(step.kwargs)


def _windows(x: Tensor, weight: Axes, groups: int, settings: Window, dims: int) -> Tensor:
    """(*batch, C, *space) -> (*batch, groups, *places, C / groups, *kernel): a view. `weight`: its shape."""
    first = x.dim() - dims
    for i in range(dims):
        at = 3 - dims + i
        x = x.unfold(first + i, settings.dilation[at] * (weight[2 + i] - 1) + 1, settings.stride[at])[..., :: settings.dilation[at]]
    return torch.unflatten(x, first - 1, (groups, weight[1])).movedim(first, -dims - 1)


def _joined(x: Tensor, dims: int) -> Tensor:
    """Channels and kernel as one."""
    return x.reshape(*x.shape[: -dims - 1], math.prod(x.shape[-dims - 1 :]))


def _weight_rows(weight: Tensor, groups: int, dims: int) -> Tensor:
    """(N, K) of all groups -> (groups, 1 for all places but those of a row, N, K)."""
    return torch.unflatten(weight, 0, (groups, -1))[(slice(None), *(None,) * (dims - 1))]


def _bias_rows(bias: Tensor, groups: int, dims: int) -> Tensor:
    return torch.unflatten(bias, 0, (groups, -1))[(slice(None), *(None,) * dims)]


def plan_float_conv(dims: int, step: Step, planner: Planning) -> None:
    """A row of inputs for each group and place of the result, times the group's weight."""
    settings = Window.of(dims, 1, *(step.kwargs.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))))
    label, x, groups = planner.label(step), float_rows(step.args[0], planner), step.kwargs.get("groups", 1)
    if any(settings.pad):
        sides = {"pad": tuple(n for pad in reversed(settings.pad[3 - dims :]) for n in (pad, pad))}
        x = planner.add(Pick(f"{step.out}.padded", label, x, "pad", (), sides, 0.0, True))
    weight = planner.shape(step.args[1]) if is_tensor(step.args[1]) else f"%{planner.operand(step.args[1])}"
    windows = partial(_windows, settings=settings, dims=dims)
    seen = planner.add(View(f"{step.out}.windows", label, x, step.op, (weight, groups), {}, windows))
    flat = planner.add(Reshape(f"{step.out}.rows", label, seen, step.op, (), {}, partial(_joined, dims=dims)))
    out, codes = planner.result(step)
    form = _Form(partial(_weight_rows, dims=dims), partial(_bias_rows, dims=dims), (groups,))
    _product(step, planner, planner.rows(f"%{flat}"), form, f"{out}.turned", codes)
    move = partial(torch.movedim, source=-1, destination=-dims - 1)
    channels = planner.add(View(f"{out}.channels", label, f"{out}.turned", "movedim", (), {}, move), codes)
    joint = {"start_dim": -dims - 2, "end_dim": -dims - 1}
    planner.add(Reshape(out, label, channels, "flatten", (), joint), codes)
