"""Images read at places that a value says: F.grid_sample of two dimensions (kernels/warp.h)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.floats import operand, result, width
from qcompiler.backends.native.plan.layer import Bound, Layer, Lies, Pixels, image
from qcompiler.backends.native.plan.place import Axes, Place, channels_last
from qcompiler.backends.native.plan.planning import Facts, Planning
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_value

MODES = ("bilinear", "nearest")
PADDINGS = ("zeros", "border", "reflection")


@dataclass(frozen=True, eq=False)
class Warp(Layer):
    """The pixels of x at `places` (N, H, W, 2), of which the first is the place along the width."""

    x: str
    places: str
    x_codes: Codes | None
    place_codes: Codes | None
    codes: Codes | None
    nearest: bool
    padding: str
    aligned: bool

    @property
    def reads(self) -> tuple[str, ...]:
        return self.x, self.places

    @property
    def lies_anywhere(self) -> bool:
        return False

    def lies(self, known: Lies) -> str | None:
        return "pixels"

    def by_sample(self, samples: Samples) -> bool:
        return samples.holds(self.reads)

    def shape(self, sizes: Sizes) -> Axes:
        (batch, channels, height, width_), (images, *size, two) = sizes.shape(self.x), sizes.shape(self.places)
        if batch != images or two != 2 or 0 in (height, width_):
            raise ValueError(f"places of shape {sizes.shape(self.places)} in images of shape {sizes.shape(self.x)}")
        return (batch, channels, *size)

    def place(self, sizes: Sizes) -> Place:
        return sizes.new(self.out, channels_last(4), width(self.codes))

    def bind(self, sizes: Sizes) -> Bound:
        x, at, y = (sizes.place(name) for name in (self.x, self.places, self.out))
        places = Pixels(at, (at.shape[0], 1, *at.shape[1:]), (at.strides[0], 0, *at.strides[1:3]))  # type: ignore[arg-type]
        steps = [x.size, at.strides[3]]
        return Bound([image(x, 2), places, image(y, 2)], spread=steps)

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.out))

    def code(self, to: LayerCode) -> None:
        with to.call("warp") as fields:
            operand(fields, "x", self.x_codes)
            operand(fields, "places", self.place_codes)
            result(fields, "y", self.codes)
            fields.set("padding", f"QC_{self.padding.upper()}")
            fields.plain(nearest=int(self.nearest), aligned=int(self.aligned))
        to.halo(self.out)

    def text(self) -> str:
        return f"{self.x} at {self.places}"


def refuse_warp(step: Step, facts: Facts) -> str | None:
    x, places = step.args[:2]
    if any(map(is_value, step.kwargs.values())):
        return "its settings are computed at run time"
    mode, padding = step.kwargs.get("mode", MODES[0]), step.kwargs.get("padding_mode", PADDINGS[0])
    if mode not in MODES or padding not in PADDINGS:
        return f"grid_sample with mode {mode!r:.20} has no C form, bilinear and nearest have one"
    if not all(facts.is_codes(argument) or facts.is_floats(argument) for argument in (x, places)):
        return "one of its operands is not float32"
    return None if facts.rank(x) == 4 else "grid_sample of volumes has no C form, of images it has one"


def plan_warp(step: Step, planner: Planning) -> None:
    given, places, settings = planner.operand(step.args[0]), planner.operand(step.args[1]), step.kwargs
    x, (out, codes) = planner.pixels(f"%{given}", (), 2), planner.result(step)
    nearest, padding = settings.get("mode", MODES[0]) == "nearest", settings.get("padding_mode", PADDINGS[0])
    planner.add(Warp(out, planner.label(step), x, places, planner.codes.get(x), planner.codes.get(places), codes, nearest, padding,
                     bool(settings.get("align_corners", False))))  # fmt: skip
