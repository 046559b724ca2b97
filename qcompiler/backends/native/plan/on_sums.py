"""A function that alone reads the sums of a convolution, transposed or not, or of a linear becomes a part of its epilogue."""

from __future__ import annotations

from dataclasses import replace

import torch

from qcompiler.backends.native.plan.bend import STRAIGHT, bend_of, counts_channels
from qcompiler.backends.native.plan.codes import Bounds
from qcompiler.backends.native.plan.conv import Conv
from qcompiler.backends.native.plan.homes import Every
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.planning import Planning, Sums
from qcompiler.backends.native.plan.transposed import Phases
from qcompiler.backends.native.steps import Step


def plan_on_sums(step: Step, planner: Planning) -> bool:
    """Whether what makes the sums that a function takes now computes both; else the function has a layer of its own."""
    out, codes = planner.result(step)
    found = planner.sums(step.args[0]) if codes is not None else None
    convs = _convs(found.layer, planner) if found is not None else []
    if found is None or not convs:
        return False
    bend = bend_of(step, planner, convs[0].channels, found.bounds)
    straight = step.op == STRAIGHT and found.bounds is None
    if not (straight or bend is not None) or not counts_channels(step.op, planner.rank(step.args[0]), convs[0].dims):
        return False
    bounds = step.kwargs.get("bounds")
    if straight:
        convs, bounds = [_straight(conv) for conv in convs], _in_unit(bounds)
    convs = [replace(conv, codes=codes, bounds=bounds, bend=bend, label=f"{conv.label} + {out}") for conv in convs]
    planner.take_back(found)
    if isinstance(found.layer, Phases):
        _add_phases(found.layer, out, convs, planner)
    else:
        planner.add(replace(convs[0], out=out))
    return True


def _convs(layer: Layer, planner: Planning) -> list[Conv]:
    """The convolutions that make a value of sums."""
    made = [planner.made[name] for name in layer.parts] if isinstance(layer, Phases) else [layer]
    return [one for one in made if isinstance(one, Conv) and one.codes is None]


def _straight(conv: Conv) -> Conv:
    """The sums (v + 3) / 6, of which a hardsigmoid is what lies between 0 and 1."""
    bias = 0.0 if conv.bias is None else conv.bias.double()
    return replace(conv, scale=conv.scale / 6, bias=(torch.zeros(conv.channels, dtype=torch.float64) + bias + 3) / 6)


def _in_unit(bounds: Bounds) -> Bounds:
    low, high = bounds or (None, None)
    return min(max(low or 0.0, 0.0), 1.0), max(min(1.0 if high is None else high, 1.0), 0.0)


def _add_phases(phases: Phases, out: str, convs: list[Conv], planner: Planning) -> None:
    """Each phase anew, in its place in the function's result."""
    parts = [f"{out}.phase.{index}" for index in range(len(convs))]
    for name, conv in zip(parts, convs, strict=True):
        home = planner.homes.pop(conv.out)
        assert isinstance(home, Every)
        planner.take_back(Sums(planner.made[conv.out]))
        planner.homes[name] = replace(home, whole=out)
        planner.add(replace(conv, out=name))
    planner.add(replace(phases, out=out, label=convs[0].label, parts=tuple(parts)), convs[0].codes)
