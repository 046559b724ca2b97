"""F.fold: windows laid back over an image and added where they meet. Along one axis after the other each place of a window is a copy that
stands in the rows or columns that it belongs to, zeros between.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.float_pointwise import FloatMap, FloatPair
from qcompiler.backends.native.plan.matmul import float_rows
from qcompiler.backends.native.plan.pick import Pick
from qcompiler.backends.native.plan.planning import Argument, Facts, Planning
from qcompiler.backends.native.plan.shape import Reshape, View
from qcompiler.backends.native.plan.window import Window
from qcompiler.backends.native.steps import Step, is_value, leaves

SETTINGS = (("dilation", 1), ("padding", 0), ("stride", 1))
MOST_PLACES = 64  # of a window along an axis: a copy and a sum each


def refuse_fold(step: Step, facts: Facts) -> str | None:
    if not (facts.is_codes(step.args[0]) or facts.is_floats(step.args[0])):
        return "its input is not float32"
    size = step.kwargs.get("output_size")
    if not all(facts.is_number(leaf) for leaf in leaves(size) if is_value(leaf)):
        return "its size is computed at run time"
    if any(is_value(leaf) for name in ("kernel_size", *dict(SETTINGS)) for leaf in leaves(step.kwargs.get(name))):
        return "its window is computed from sizes"
    return None if max(_window(step).kernel) <= MOST_PLACES else f"its window is larger than {MOST_PLACES}"


def _window(step: Step) -> Window:
    dilation, padding, stride = (step.kwargs.get(name, default) for name, default in SETTINGS)
    return Window.of(2, step.kwargs["kernel_size"], stride, padding, dilation)


def _taken_apart(x: Tensor, *size: int, window: Window) -> Tensor:
    """(*, C * windows' places, windows) -> (*, C, rows of a window, columns, windows along the height, along the width)."""
    counts = [window.result(n, 1 + i) for i, n in enumerate(size)]
    return x.reshape(*x.shape[:-2], x.shape[-2] // math.prod(window.kernel), *window.kernel[1:], *counts)


def plan_fold(step: Step, planner: Planning) -> None:
    given = step.kwargs["output_size"]
    size = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    size, window, label = (size * 2)[:2] if len(size) == 1 else size, _window(step), planner.label(step)
    x, (out, codes) = float_rows(step.args[0], planner), planner.result(step)
    x = planner.add(Reshape(f"{step.out}.places", label, x, "reshape", size, {}, partial(_taken_apart, window=window)))
    for axis, name in ((1, f"{step.out}.rows"), (2, out)):
        parts = [_laid(f"{name}.{at}", x, (size[axis - 1], axis, at), window, planner) for at in range(window.kernel[axis])]
        x = _sum(name, label, parts, planner, codes if axis == 2 else None)


def _laid(name: str, x: str, where: tuple[Argument, int, int], window: Window, planner: Planning) -> str:
    """What stands at one place of all windows, on the rows (axis 1) or columns (axis 2) of the image."""
    size, axis, at = where
    places, along = (-4, -2) if axis == 1 else (-3, -1)  # the dimensions of the places in a window, and of the windows
    seen = planner.add(View(f"{name}.seen", name, x, "select", (places, at), {}))
    before = at * window.dilation[axis] - window.pad[axis]
    return planner.add(Pick(name, name, seen, "apart", (along, size, before, window.stride[axis]), {}, 0.0, True))


def _sum(name: str, label: str, parts: list[str], planner: Planning, codes: Codes | None) -> str:
    total, *others = parts
    if not others:
        return planner.add(FloatMap(name, label, total, "QC_COPY", (), None, codes))
    for number, part in enumerate(others, 1):
        last = number == len(others)
        pair = FloatPair(name if last else f"{name}.sum.{number}", label, "add", total, part, (None, None), codes if last else None)
        total = planner.add(pair)
    return total
