"""Functions that the epilogue of a convolution or linear computes on its sums, before anything is rounded (Target.takes_sums).

prelu, leaky_relu   v > 0 ? v : v * slope
batch_norm          min(max(v, 0), top) * factor + offset behind a ReLU or ReLU6, v * factor + offset behind none

These are slopes on both sides of 0, a gain and an offset by channel; see qc_epilogue. Functions that are the same for all channels are
products (knee.py) or curves (curve.py). A hardsigmoid is no function of the sums but other sums, cut to 0 and 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.backends.native.emit.layer_code import Call
from qcompiler.backends.native.packing import padded_floats
from qcompiler.backends.native.plan.codes import Bounds, Codes
from qcompiler.backends.native.plan.curve import CURVES, Curve, curve_of
from qcompiler.backends.native.plan.knee import Knee, knee_of
from qcompiler.backends.native.plan.planning import Planning
from qcompiler.backends.native.steps import Step
from qcompiler.ir.types import value_of
from qcompiler.ops.spec import Family, Op
from qcompiler.ops.table import OPS
from qcompiler.stages.arguments import bounds_of

FUNCTIONS = ("prelu", "leaky_relu", "batch_norm")
STRAIGHT = "hardsigmoid"


@dataclass(frozen=True, eq=False)
class Bend:
    """By channel, float64: (min(max(v, 0), top) + min(v, 0) * slope) * gain + offset."""

    name: str
    gain: Tensor
    offset: Tensor
    slope: Tensor
    top: float = math.inf

    @property
    def axis(self) -> tuple[float, float]:
        """Sums are real numbers: what one step of their float form is, and where 0 lies."""
        return 1.0, 0.0

    def code(self, fields: Call, codes: Codes) -> None:
        for name, values in (("gain", self.gain / codes.scale), ("slope", self.slope), ("offset", self.offset / codes.scale)):
            fields.data(f"e.{name}", padded_floats(values.float().numpy()))
        fields.reals(**{"e.top": self.top})


def takes_sums(row: Op, node: fx.Node, reader: Op, user: fx.Node) -> bool:
    """Whether a function that alone reads the result of an int8 op with a weight may be a bend of that: what Target.takes_sums asks."""
    family, shape = row.settled.family, value_of(node).shape or ()
    dims = row.settled.dims if family in (Family.CONVOLUTION, Family.TRANSPOSED) else 0 if family is Family.LINEAR else None
    if dims is None or reader.name not in (*FUNCTIONS, *CURVES, STRAIGHT) or not _is_plain(user):
        return False
    bounds = bounds_of(node.kwargs)
    if not _bounds_fit(reader.name, None if bounds == (None, None) else bounds):
        return False
    return bool(shape) and counts_channels(reader.name, len(shape), dims)


def counts_channels(function: str, rank: int, dims: int) -> bool:
    """Whether the channels of a function are those of the convolution in `dims` dimensions, or linear (0), before it; `rank`: of the value.

    Both count along dimension 1, but for a linear of more rows than one dimension, and a convolution without a batch.
    """
    return function in ("leaky_relu", STRAIGHT, *CURVES) or rank == dims + 2


def _is_plain(user: fx.Node) -> bool:
    """Whether all that the function takes beside the value is known when the network is compiled."""
    constants = all(a is None or (isinstance(a, fx.Node) and a.op == "get_attr") for a in user.args[1:])
    settings = all(value is None or isinstance(value, (bool, int, float, str, tuple)) for value in user.kwargs.values())
    return constants and settings and not user.kwargs.get("training", False)


def _bounds_fit(function: str, bounds: Bounds) -> bool:
    """A clamp at 0 between the two is a slope of 0; another one would be a third operation."""
    return bounds is None or (function == "batch_norm" and bounds[0] == 0 and (bounds[1] is None or bounds[1] > 0))


def bend_of(step: Step, planner: Planning, channels: int, bounds: Bounds) -> Bend | Curve | Knee | None:
    """None for a step that is none of these functions, one with other channels, or one that no curve is near enough to."""
    ones, none = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    if not _bounds_fit(step.op, bounds):
        return None
    if step.op in CURVES:
        return _curve(step, planner)
    if step.op == "leaky_relu":
        return Bend(step.op, ones, none, ones * step.kwargs.get("negative_slope", 0.01))
    if step.op == "prelu":
        slopes = planner.tensor(step.args[1]).double().reshape(-1)
        return Bend(step.op, ones, none, slopes.expand(channels)) if len(slopes) in (1, channels) else None
    if step.op == "batch_norm":
        factor, offset = factor_and_bias(step, planner)
        top = math.inf if bounds is None or bounds[1] is None else float(bounds[1])
        return Bend(step.op, factor, offset, ones if bounds is None else none, top) if len(factor) == channels else None
    return None


def _curve(step: Step, planner: Planning) -> Curve | Knee | None:
    _, codes = planner.result(step)
    if step.op == "hardswish" and codes is not None and (knee := knee_of(codes)) is not None:
        return knee
    settings = {name: value for name, value in step.kwargs.items() if name != "bounds"}

    def function(v: Tensor) -> Tensor:
        made: Tensor = OPS.rows[step.op].fn(v, *step.args[1:], **settings)
        return made

    return curve_of(step.op, function, codes) if codes is not None else None


def factor_and_bias(step: Step, planner: Planning) -> tuple[Tensor, Tensor]:
    """y = x * f + (beta - mean * f), f = gamma / sqrt(var + eps), by channel in float64."""
    mean, var, gamma, beta = (planner.tensor(a) if a is not None else None for a in (*step.args[1:], None, None)[:4])
    assert mean is not None and var is not None
    factor = torch.rsqrt(var.double() + step.kwargs.get("eps", 1e-5)) * (1.0 if gamma is None else gamma.double())
    return factor, -mean.double() * factor + (0.0 if beta is None else beta.double())
