"""Other sizes of images, sequences and volumes, of codes or of floats: nearest elements, or values between neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatMap
from qcompiler.backends.native.plan.floats import width
from qcompiler.backends.native.plan.layer import Bound, Lies, OfOne, image
from qcompiler.backends.native.plan.pick import lies_on, on_codes
from qcompiler.backends.native.plan.place import Axes, Place, channels_last
from qcompiler.backends.native.plan.planning import Facts, Planning, refuse_rows
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step
from qcompiler.ops import functional as Q

LINEAR = ("linear", "bilinear", "trilinear")
NEAREST = ("nearest", "nearest-exact")
AXES = "dhw"


@dataclass(frozen=True, eq=False)
class Resize(OfOne):
    """F.interpolate with `settings` as its keyword arguments; `dims` dimensions of space. Codes of None: floats."""

    dims: int
    settings: Mapping[str, Any]
    x_codes: Codes | None
    codes: Codes | None

    def lies(self, known: Lies) -> str | None:
        return "pixels"

    def shape(self, sizes: Sizes) -> Axes:
        batch, *rest = sizes.shape(self.x)
        one = torch.empty((1, *rest), device="meta")  # torch refuses a batch of none here, though not in memory
        return (batch, *Q.interpolate(one, **sizes.numbers(self.settings)).shape[1:])

    def by_sample(self, samples: Samples) -> bool:
        return samples.rank(self.x) == self.dims + 2

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, channels_last(len(sizes.shape(self.out))), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        return Bound([image(sizes.place(name), self.dims) for name in (self.x, self.out)])

    def code(self, to: LayerCode) -> None:
        mode = self.settings.get("mode", "nearest")
        aligned = mode not in NEAREST and bool(self.settings.get("align_corners"))
        kind = "QC_CUBIC" if mode == "bicubic" else "QC_LINEAR" if mode in LINEAR else f"QC_{mode.replace('-', '_').upper()}"
        name = f"{kind}_ALIGNED" if aligned else kind
        with to.call("resize") as fields:
            fields.pixels("x", "y")
            fields.set("mode", name)
            for axis, letter in enumerate(AXES):
                fields.set(f"scale[{axis}]", self._scale(axis, letter, aligned))
            factor = (1.0 if self.x_codes is None else self.x_codes.scale) / (1.0 if self.codes is None else self.codes.scale)
            fields.reals(m=factor, b=0.0 if self.x_codes is None else -self.x_codes.zero * factor)
            fields.plain(x_floats=int(self.x_codes is None), y_floats=int(self.codes is None))
            if self.codes is not None:
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
    if mode not in (*NEAREST, *LINEAR, "bicubic") or step.kwargs.get("antialias", False):
        return f"resizing with mode {mode!r:.20}{' and antialias' if step.kwargs.get('antialias') else ''} has no C form"
    factors = step.kwargs.get("scale_factor")
    if any(isinstance(f, str) for f in (factors if isinstance(factors, (tuple, list)) else (factors,))):
        return "its factor is computed at run time"
    if not 3 <= facts.rank(step.args[0]) <= 5:
        return f"its input has {facts.rank(step.args[0])} dimensions"
    return refuse_rows(replace(step, kwargs={}), facts)


def plan_resize(step: Step, planner: Planning) -> None:
    """Nearest elements are copied, so they are on the result's steps before there are more of them, or floats behind it."""
    out, codes = planner.result(step)
    x, label, settings = planner.operand(step.args[0]), planner.label(step), dict(step.kwargs)
    nearest, made = settings.get("mode", "nearest") in NEAREST, out
    if nearest and codes is not None and not lies_on(planner.codes.get(x), codes):
        x = on_codes(f"{out}.codes", step, planner, x, codes)
    x = planner.pixels(f"%{x}", (), planner.rank(x) - 2)
    given = planner.codes.get(x)
    floats = nearest and codes is None and given is not None
    if floats:
        made, codes = f"{out}.nearest", given
    planner.add(Resize(made, label, x, planner.rank(x) - 2, settings, given, codes), codes)
    if floats:
        planner.add(FloatMap(out, label, made, "QC_COPY", (), given))
