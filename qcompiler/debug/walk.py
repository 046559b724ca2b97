"""Runs the float graph and the quantized graph side by side on one batch and hands each pair of values to a visitor.

For a step n with the function n_q, and f the float steps that it stands for:

    y_ref   value of the float graph                        x_ref   the float values that n is computed from, in the form in
    y       value of the quantized graph                            which the graph hands them over (quint8 where it does)
    own error       = n_q(x_ref) - f(x_ref)
    total error     = y - y_ref
    inherited error = total error - own error

Both terms of the own error get the same, rounded x_ref: the rounding of an input is an error of the node that made it. What
is not needed any more is let go, so memory holds about as much as two runs of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qcompiler.debug.match import Matching, Site
from qcompiler.executable.steps import Env, Grid, Step, Steps, grid_of, real
from qcompiler.ir.nested import Ref, rewrite
from qcompiler.ops.reference import dequantize, quantize

PIECE = 1 << 18  # values that are rounded at once
RANDOM = "it is computed with random numbers, which no two runs share"


@dataclass(frozen=True)
class Seen:
    """One site on one batch. `own` is None where only total errors were asked for; where only own ones were, it is `value`.
    `random`: the value is drawn anew by each run.

    `slack`: how far it may be from the reference because roundings on the way to it, which nobody can see, fell to the other side.
    """

    site: Site
    reference: object
    value: Any
    own_value: object
    own_reference: object
    grid: Grid | None
    random: bool = False
    slack: Tensor | None = None


Visit = Callable[[Seen], None]
Event = tuple[bool, Step]  # whether it is a float step


@dataclass
class Walk:
    """The schedule of both graphs: each float step runs before the quantized step that is compared with it.

    `own`, `totals`: which errors are asked for. Without totals each quantized step runs on the float values alone, and so once.
    `ends`: by float step, the smallest and largest integer of values that are cut to fewer than their type holds. `scales`: of the float
    steps that round.
    """

    floats: Steps
    quantized: Steps
    matching: Matching
    own: bool = True
    totals: bool = True
    ends: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random: set[str] = set()  # float steps that were seen to draw random numbers
        self.steps = {step.name: step for step in self.quantized.steps}
        self.unrounded = {name: self._read_unrounded(site) for name, site in self.matching.sites.items()}
        self.events = list(self._schedule())
        self.last: tuple[dict[int, list[str]], dict[int, list[str]]] = self._last_uses()

    def _schedule(self) -> Iterator[Event]:
        order = {step.name: i for i, step in enumerate(self.floats.steps)}
        done = 0
        for step in self.quantized.steps:
            site = self.matching.sites.get(step.name)
            if site is not None:
                until = order[site.float_step.name] + 1
                yield from ((True, s) for s in self.floats.steps[done:until])
                done = max(done, until)
            yield False, step
        yield from ((True, s) for s in self.floats.steps[done:])

    def _last_uses(self) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """For each event, the float and the quantized values that nothing reads after it."""
        uses: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for i, (is_float, step) in enumerate(self.events):
            for name in (step.name, *step.inputs, *step.takes):
                uses[not is_float][name] = i
            site = None if is_float else self.matching.sites.get(step.name)
            if site is not None:
                for name in (site.float_step.name, *(name for one in self.computed_again(site) for name in one.extra)):
                    uses[0][name] = i
                for name in (name for one in self.computed_again(site) for name in one.bounds):
                    uses[1][name] = i
        kept = self.floats.results(), self.quantized.results()
        found: tuple[dict[int, list[str]], dict[int, list[str]]] = ({}, {})
        for side in (0, 1):
            for name, i in uses[side].items():
                if name not in kept[side]:
                    found[side].setdefault(i, []).append(name)
        return found

    def _read_unrounded(self, site: Site) -> dict[str, str]:
        """The bounds of a site that its region rounds, and reads as they were before as well; with the step that rounds each."""
        region, found = site.region or (), dict[str, str]()
        for name in site.bounds:
            bound = self.matching.sites[name]
            value = bound.float_step.name
            rounding = next((s.name for s in region if s.name in self.scales and s.inputs == (value,)), None)
            if rounding is not None and bound.region is not None and any(value in s.inputs for s in region if s.name != rounding):
                found[name] = rounding
        return found

    def computed_again(self, site: Site) -> Iterator[Site]:
        """A site, and those among its bounds whose value before its rounding is computed for it."""
        yield site
        for name in self.unrounded[site.step.name]:
            yield from self.computed_again(self.matching.sites[name])

    def run(self, args: tuple[object, ...], kwargs: Mapping[str, object], visit: Visit) -> tuple[object, object]:
        """One batch; returns the float and the quantized result."""
        floats, values = self.floats.bind(args, kwargs), self.quantized.bind(args, kwargs)
        references: Env = dict(values) if self.totals else values
        self.rounded: set[str] = set()
        for i, (is_float, step) in enumerate(self.events):
            seen = None
            if is_float:
                floats[step.name] = self._float(step, floats)
            else:
                seen = self._quantized(i, floats, values, references)
            _forget(self.last[0].get(i, ()), floats)
            _forget(self.last[1].get(i, ()), values, references)
            if seen is not None:  # what it was computed from is gone by now, and what it was compared with goes before it is rounded
                visit(seen)
                held, seen = (seen.site, seen.reference, seen.grid), None
                self._hold(*held, references)
                del held
        return _result(self.floats, floats), _result(self.quantized, values)

    def _float(self, step: Step, floats: Env) -> object:
        before = torch.random.get_rng_state()
        value = step.run(floats)
        if not torch.equal(before, torch.random.get_rng_state()):
            self.random.add(step.name)
        return value

    def _is_random(self, site: Site) -> bool:
        return any(step.name in self.random for step in (site.float_step, *(site.region or ())))

    def _quantized(self, event: int, floats: Env, values: Env, references: Env) -> Seen | None:
        """Runs a step; what is to be shown of it."""
        step = self.events[event][1]
        site = self.matching.sites.get(step.name)
        if step.writes is not None and self.own and isinstance(references.get(step.writes), Tensor):
            references[step.writes] = references[step.writes].clone()  # it may be the float graph's own value
        compared = None
        if site is not None and self.own and step.writes is None and step.kind == "call":
            compared = self._compared(site, floats, references)  # before its own value: floats that it takes may go in between
            _forget(
                (name for name in self.last[1].get(event, ()) if name not in (step.name, *step.inputs, *step.takes)), values, references
            )
        value = values[step.name] = step.run(values)
        if step.state == "write":
            return None
        if self.own and self.totals:
            references[step.name] = step.run(references) if step.kind == "call" else value
        if step.state == "read" and site is not None:  # what is wrong with it comes from earlier calls
            references[step.name] = floats[site.float_step.name]
        if site is None:
            return None
        reference, grid, is_random = floats[site.float_step.name], self._grid(site, values), self._is_random(site)
        if not self.own:
            return Seen(site, reference, real(value), None, None, grid, is_random)
        perfect, slack = self._compared(site, floats, references) if compared is None else compared
        return Seen(site, reference, real(value), real(references[step.name]), perfect, grid, is_random, slack)

    def _compared(self, site: Site, floats: Env, references: Env) -> tuple[object, Tensor | None]:
        """The float value of a site on the inputs that the quantized step gets, and how far that is sure."""
        perfect = self._perfect(site, floats, references)
        return perfect, self._slack(site, floats, references, perfect)

    def _hold(self, site: Site, reference: object, grid: Grid | None, references: Env) -> None:
        """From here on steps that read a site read the float value, in the form that the quantized graph has."""
        name = site.step.name
        if self.own and not site.step.is_past and name in references:
            references[name] = held_as(references[name], reference, grid)  # its sizes may be others than those of the quantized value
        if self.own and grid is not None:
            self.rounded.add(name)

    def _grid(self, site: Site, values: Env) -> Grid | None:
        """The integers that hold a site's value: its own, or those that it dequantizes."""
        step = site.step
        found = grid_of(step, values[step.name])
        if found is None and step.rounds == "dequantize":
            found = grid_of(self.steps[step.inputs[0]], values[step.inputs[0]])
        return None if found is None else (*found[:2], *self.ends.get(site.float_step.name, found[2:]))

    def _perfect(self, site: Site, floats: Env, references: Env) -> object:
        """The float value of a site, computed from the inputs that the quantized step gets."""
        if site.region is None or not self.rounded.intersection(site.bounds):
            return floats[site.float_step.name]
        return self._again(site, site.region, floats, references)

    def _again(self, site: Site, region: Sequence[Step], floats: Env, references: Env, other: Env | None = None) -> object:
        """The float value of a site from what its region begins with. `other`: what is added to results of the region."""
        env, rounded = {name: floats[name] for name in site.extra}, dict[str, object]()
        for name in site.bounds:
            bound, known = self.matching.sites[name], real(references[name])
            env[bound.float_step.name] = known
            if name in self.unrounded[site.step.name] and name in self.rounded and bound.region is not None:  # else it is held as it was
                env[bound.float_step.name] = self._again(bound, bound.region, floats, references, other)
                rounded[self.unrounded[site.step.name][name]] = known
        for step in region:
            env[step.name] = rounded[step.name] if step.name in rounded else step.run(env)
            if other is not None and step.name in other and isinstance(env[step.name], Tensor):
                env[step.name] = env[step.name] + other[step.name](env[step.name])
        return env[site.float_step.name]

    def _unseen(self, site: Site) -> list[Step]:
        """The steps of a region that round what no step of the quantized graph shows."""
        known = {self.matching.sites[name].float_step.name for name in self.rounded.intersection(site.bounds)}
        return [step for step in site.region or () if step.name in self.scales and not known.issuperset(step.inputs)]

    def _slack(self, site: Site, floats: Env, references: Env, perfect: object) -> Tensor | None:
        """What one step more or less at each rounding of the region, in a pattern without a mean, makes of the value."""
        again = (one for one in self.computed_again(site) if one is site or one.step.name in self.rounded)
        rounding, found = [step for one in again for step in self._unseen(one) if step is not site.float_step], None
        for step in rounding if isinstance(perfect, Tensor) else ():
            shifts = [{step.name: partial(_one_step, sign * self.scales[step.name])} for sign in (-1, 1)]
            others = [self._again(site, site.region or (), floats, references, shift) for shift in shifts]
            one, other = ((v - perfect).abs() for v in others)  # type: ignore[operator]
            found = torch.maximum(one, other) if found is None else found + torch.maximum(one, other)
        return found


def _forget(names: Iterable[str], *known: Env) -> None:
    for name in names:
        for env in known:
            env.pop(name, None)


def _one_step(scale: float, value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * (2.0 * torch.randint(2, value.shape, generator=generator) - 1)


def _result(steps: Steps, env: Env) -> object:
    return real(rewrite(steps.output, lambda v: env[v.name] if isinstance(v, Ref) else v))


def held_as(value: object, reference: object, grid: Grid | None) -> object:
    """The reference in the form of `value`: rounded to the same integers, and quantized where that is quantized."""
    if isinstance(value, Tensor) and isinstance(reference, Tensor):
        if value.shape != reference.shape:
            return value
        if value.is_quantized:
            if grid is not None:
                reference = reference.clamp(grid[0] * (grid[2] - grid[1]), grid[0] * (grid[3] - grid[1]))
            made = torch.quantize_per_tensor(reference.float(), value.q_scale(), value.q_zero_point(), value.dtype)
            return made.contiguous(memory_format=torch.channels_last) if _is_channels_last(value) else made
        return reference if grid is None else _rounded(reference, grid)
    if isinstance(value, (tuple, list)) and isinstance(reference, (tuple, list)) and len(value) == len(reference):
        return type(value)(held_as(v, r, grid) for v, r in zip(value, reference)) if type(value) in (tuple, list) else value
    return value


def _rounded(x: Tensor, grid: Grid) -> Tensor:
    """What the integers of a grid make of it, piece by piece: integers and products of all would take twice its room."""
    if not x.is_contiguous():
        return dequantize(quantize(x, *grid, torch.int32), grid[0], grid[1])
    made = torch.empty_like(x, dtype=torch.float32)
    for part, own in zip(x.view(-1).split(PIECE), made.view(-1).split(PIECE), strict=True):
        own.copy_(dequantize(quantize(part, *grid, torch.int32), grid[0], grid[1]))
    return made


def _is_channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()


def pairs(reference: object, value: object) -> Sequence[tuple[Tensor, Tensor]] | None:
    """The tensors of two values of the same structure, in pairs; None where they do not fit together."""
    if isinstance(reference, Tensor) and isinstance(value, Tensor):
        return [(reference, value)] if reference.shape == value.shape else None
    if isinstance(reference, (tuple, list)) and isinstance(value, (tuple, list)) and len(reference) == len(value):
        found = [pairs(r, v) for r, v in zip(reference, value)]
        return None if None in found else [pair for part in found for pair in part or ()]
    if isinstance(reference, Mapping) and isinstance(value, Mapping) and list(reference) == list(value):
        return pairs(list(reference.values()), list(value.values()))
    plain = not isinstance(reference, (Tensor, tuple, list, Mapping)) and type(reference) is type(value)  # a size, a flag, None
    return [] if plain else None
