"""Which value of the quantized graph stands for which value of the float graph, and what to run of each to compare the two.

A step claims the last traced node among its origin: conv, bn and relu fused into one convolution claim the relu. Of the steps
that claim one node, those that are used outside (or are results) hold its value; what lies between them (a pack, an unsqueeze,
the quantize before a dequantize) is part of the way to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qcompiler.executable.steps import Step, Steps, Weight

LONGEST = 64  # float steps to run again for one node; more means that the two graphs do not fit there


@dataclass(frozen=True)
class Site:
    """A step and the float step whose value it stands for.

    `computed`: the step that computes the value, where quantize and dequantize follow it: rows go by its name. `bounds`: the
    matched steps that the value is computed from; `way`: the steps between. `region`: the float steps from the bounds to the
    float value, None where they cannot be told; `extra`: other float values that they read. `computes`: the float ops.
    """

    step: Step
    float_step: Step
    computed: Step
    way: tuple[str, ...]
    bounds: tuple[str, ...]
    region: tuple[Step, ...] | None
    extra: tuple[str, ...] = ()
    weight: Weight | None = None
    computes: str = ""


@dataclass(frozen=True)
class Matching:
    """The sites by step name, and the steps without a counterpart with the reason."""

    sites: Mapping[str, Site]
    unmatched: Mapping[str, str]


def _moving(steps: Steps) -> set[str]:
    """The steps whose values depend on the inputs, or on what earlier calls left."""
    moving: set[str] = set()
    for step in steps.steps:
        if step.kind == "input" or step.state == "read" or any(name in moving for name in step.inputs):
            moving.add(step.name)
    return moving


class _Claims:
    """Looks up the float step that a step of the quantized graph claims."""

    def __init__(self, floats: Steps) -> None:
        self.order = {step.name: i for i, step in enumerate(floats.steps)}
        self.known: dict[str, Step] = {}
        for step in floats.steps:
            if step.kind != "constant":
                self.known[step.origin[-1] if step.origin else step.name] = step
        for step in floats.steps:
            self.known.setdefault(step.name, step)

    def of(self, step: Step) -> Step | None:
        found = [self.known[name] for name in step.origin if name in self.known]
        return max(found, key=lambda s: self.order[s.name], default=None)


def match(floats: Steps, quantized: Steps, wanted: Callable[[Step], bool] | None = None) -> Matching:
    """The sites of a quantized graph in its order, and what has no counterpart.

    `wanted`: the values that shall be sites, beside the inputs; each of them then stands for all that lies between it and the
    sites before it. By default every value is one.
    """
    claims, moving = _Claims(floats), _moving(quantized)
    by_name = {step.name: step for step in quantized.steps}
    users: dict[str, list[Step]] = {}
    for step in quantized.steps:
        for name in step.inputs:
            users.setdefault(name, []).append(step)
    results = quantized.results()

    def leaves(step: Step) -> bool:
        return step.name in results or any(set(u.origin) != set(step.origin) for u in users.get(step.name, ()))

    def is_site(step: Step) -> bool:
        return step.kind == "input" or (leaves(step) and (wanted is None or wanted(step)))

    float_inputs = {step.name: step for step in floats.steps}
    longest = LONGEST if wanted is None else None
    sites: dict[str, Site] = {}
    unmatched: dict[str, str] = {}
    for step in quantized.steps:
        if step.name not in moving or not is_site(step):
            continue
        claimed = claims.of(step)
        if claimed is None:
            made = f"made from {', '.join(step.origin)}" if step.origin else "it names no node of the model"
            unmatched[step.name] = f"no node of the float model computes this value: {made}"
            continue
        reached = _way(step, by_name, moving, sites)
        bounds, way = (tuple(name for name in reached if (name in sites) is known) for known in (True, False))
        region, extra = _region(claimed, {sites[name].float_step.name for name in bounds}, float_inputs, longest)
        computes = ", ".join(claims.known[name].op for name in step.origin if name in claims.known)
        weight = next((w for name in (step.name, *way) if (w := by_name[name].weight) is not None), None)
        sites[step.name] = Site(step, claimed, _computed(step, by_name, leaves), way, bounds, region, extra, weight, computes)
    return Matching(sites, unmatched)


def _way(step: Step, by_name: Mapping[str, Step], moving: set[str], sites: Mapping[str, Site]) -> list[str]:
    """The steps that a value is computed from, back to matched ones."""
    found: list[str] = []
    left = list(step.inputs)
    while left:
        name = left.pop(0)
        if name in found or name not in moving:
            continue
        found.append(name)
        if name not in sites:
            left += by_name[name].inputs
    return found


def _region(
    target: Step, bounds: set[str], floats: Mapping[str, Step], longest: int | None
) -> tuple[tuple[Step, ...] | None, tuple[str, ...]]:
    """The float steps from the bounds to the target in order, and the other values they read."""
    if target.name in bounds:
        return (), ()
    reached: dict[str, Step] = {}
    left = [target]
    while left:
        step = left.pop()
        if step.name in reached:
            continue
        reached[step.name] = step
        if (longest is not None and len(reached) > longest) or step.writes is not None:
            return None, ()
        left += [floats[name] for name in step.inputs if name not in bounds]
    order = [step for step in floats.values() if step.name in reached]
    moved = set(bounds)
    for step in order:
        if any(name in moved for name in step.inputs):
            moved.add(step.name)
    region = tuple(step for step in order if step.name in moved)
    inside = {step.name for step in region}
    extra = dict.fromkeys(name for step in region for name in step.inputs if name not in inside and name not in bounds)
    return (region if target in region else None), tuple(extra)


def _computed(step: Step, by_name: Mapping[str, Step], leaves: Callable[[Step], bool]) -> Step:
    """The step before the quantize and dequantize that end a value; the quantize where the value before it counts by itself."""
    while step.rounds and step.inputs:
        before = by_name[step.inputs[0]]
        if before.kind != "call" or before.origin != step.origin or leaves(before):
            return step
        step = before
    return step
