"""Other sizes of images, sequences and volumes: nearest codes, or values between neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qcompiler.backends.native.plan.codes import Codes, requantized, same_codes
from qcompiler.backends.native.plan.layer import Bound, Layer, image
from qcompiler.backends.native.plan.place import Axes, Place, channels_last
from qcompiler.backends.native.plan.pointwise import Map
from qcompiler.ops import functional as Q

if TYPE_CHECKING:
    from qcompiler.backends.native.emit.layer_code import LayerCode
    from qcompiler.backends.native.plan.planner import Facts, Planner
    from qcompiler.backends.native.plan.sizes import Sizes
    from qcompiler.backends.native.steps import Step

LINEAR = ("linear", "bilinear", "trilinear")
AXES = "dhw"


@dataclass(frozen=True, eq=False)
class Resize(Layer):
    """F.interpolate with `settings` as its keyword arguments; `dims` dimensions of space."""

    x: str
    dims: int
    settings: Mapping[str, Any]
    x_codes: Codes
    codes: Codes

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)

    def shape(self, sizes: Sizes) -> Axes:
        batch, *rest = sizes.shape(self.x)
        one = torch.empty((1, *rest), device="meta")  # torch refuses a batch of none here, though not in memory
        return (batch, *Q.interpolate(one, **sizes.numbers(self.settings)).shape[1:])

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, channels_last(len(sizes.shape(self.out))))

    def bind(self, sizes: Sizes) -> Bound:
        return Bound([image(sizes.place(name), self.dims) for name in (self.x, self.out)])

    def code(self, to: LayerCode) -> None:
        mode = self.settings.get("mode", "nearest")
        aligned = mode in LINEAR and bool(self.settings.get("align_corners"))
        name = {"nearest": "QC_NEAREST", "nearest-exact": "QC_NEAREST_EXACT"}.get(mode, "QC_LINEAR_ALIGNED" if aligned else "QC_LINEAR")
        with to.call("resize") as fields:
            fields.pixels("x", "y")
            fields.set("mode", name)
            for axis, letter in enumerate(AXES):
                fields.set(f"scale[{axis}]", self._scale(axis, letter, aligned))
            factor = self.x_codes.scale / self.codes.scale
            fields.reals(m=factor, b=-self.x_codes.zero * factor)
            fields.numbers(zero=self.codes.zero, lo=self.codes.low, hi=self.codes.high)
        to.halo(self.out)

    def _scale(self, axis: int, letter: str, aligned: bool) -> str:
        """Positions of x for each of y along an axis, computed in float32 as torch computes it."""
        if aligned:
            return f"a.y.{letter} > 1 ? (float)(a.x.{letter} - 1) / (float)(a.y.{letter} - 1) : 0"
        factors = self.settings.get("scale_factor")
        if factors is None or self.settings.get("recompute_scale_factor"):
            return f"(float)a.x.{letter} / (float)a.y.{letter}"
        each = tuple(factors) if isinstance(factors, (tuple, list)) else (factors,) * self.dims
        place = axis - (3 - self.dims)
        return "1" if place < 0 else f"(float){float(np.float32(1.0 / each[place])).hex()}"

    def text(self) -> str:
        return f"resize {self.settings.get('mode', 'nearest')}"


def refuse_resize(step: Step, facts: Facts) -> str | None:
    mode = step.kwargs.get("mode", "nearest")
    if mode not in ("nearest", "nearest-exact", *LINEAR) or step.kwargs.get("antialias", False):
        return f"resizing with mode {mode!r:.20}{' and antialias' if step.kwargs.get('antialias') else ''} has no C form"
    factors = step.kwargs.get("scale_factor")
    if any(isinstance(f, str) for f in (factors if isinstance(factors, (tuple, list)) else (factors,))):
        return "its factor is computed at run time"
    return None if 3 <= facts.rank(step.args[0]) <= 5 else f"its input has {facts.rank(step.args[0])} dimensions"


def plan_resize(step: Step, planner: Planner) -> None:
    x = planner.pixels(step.args[0], (), planner.rank(planner.value(step.args[0])) - 2)
    out, codes = planner.result(step)
    assert codes is not None
    if not same_codes(planner.codes[x], codes) and str(step.kwargs.get("mode", "nearest")).startswith("nearest"):
        x = planner.add(Map(f"{out}.codes", planner.label(step), x, requantized(planner.codes[x], codes), "codes"), codes)
    dims = planner.rank(x) - 2
    planner.add(Resize(out, planner.label(step), x, dims, dict(step.kwargs), planner.codes[x], codes))
