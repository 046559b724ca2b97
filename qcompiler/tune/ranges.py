"""fit_ranges: of each value the range that costs the results least: what is cut off at its ends against finer steps for all the rest.

A narrower range by the value's own error is known not to help: the few large numbers that it cuts count for more than the many small
ones. So each number counts as much as an error of it counts in the results (`sensitivity`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, fx

from qcompiler.ambient import in_plain_torch
from qcompiler.config.corrections import NO_CORRECTIONS, Corrections
from qcompiler.inputs.checks import check_whole
from qcompiler.inputs.door import door
from qcompiler.ir.types import QParams, quant_of
from qcompiler.tune.groups import named_ranges
from qcompiler.tune.let_go import give_back
from qcompiler.tune.one_form import one_form
from qcompiler.tune.sensitivity import sensitivities
from qcompiler.tune.shares import Shares
from qcompiler.tune.shelf import Written, pieces
from qcompiler.tune.together import together
from qcompiler.tune.walk import Tell
from qcompiler.workflow.twins import Twin

BINS = 1024  # of a range: four for each of its steps
PIECE = 2**16  # numbers that are counted at once
PARTS = torch.linspace(1.0, 0.5, 11)  # of an end of the range that are tried, the whole first
GAIN = 0.97  # of the error: what a narrower range must leave at most


@in_plain_torch
@door
def fit_ranges(
    prepared: object, batches: object, *, corrections: Corrections | None = None, seed: int = 0, tell: Tell | None = None
) -> Corrections:  # fmt: skip
    """The corrections with narrower ranges of values, where what is cut off costs the results less than finer steps give.

    prepared: calibrated, of prepare_fx, with one form of the call. batches: as `calibrate` takes them; the same data will do. It takes a
    backward pass of the float model for each batch, on random sums, drawn with `seed`, of the results, or of what is in front of a softmax
    that makes them; `tell(done, total)` is called behind each. Weights and codes stay as they are. Raises ConfigError for several forms of
    the call and for a model without gradients, CalibrationError for no batches.
    """
    check_whole(seed, "seed")
    return fit_ranges_worth(prepared, batches, corrections or NO_CORRECTIONS, (seed, tell))


@in_plain_torch
def fit_ranges_worth(prepared: object, batches: object, so_far: Corrections, how: tuple[int, Tell | None],
                     worth: Callable[[float], bool] = lambda left: True) -> Corrections:  # fmt: skip
    """`fit_ranges` with its seed and `tell`, which ends behind the first batch, with nothing changed, where it is not worth it.

    `worth`: of the part of the error of values that narrower ranges leave. One batch says too little of what is cut off, so it promises
    more than all of them do, and where that is not enough, all are not.
    """
    with one_form(prepared, batches, so_far, "ranges of several forms of the call cannot be fitted") as (twin, data):
        found, (seed, tell) = list(_measured(twin)), how
        generator, of_node = torch.Generator().manual_seed(seed), {node: one for one in found for node in one.nodes}
        rounds, shares = int(together().most(len(data))), Shares.of(prepared)
        for number in range(rounds):
            for batch in data[number : number + 1]:  # of several processes, one may have fewer
                sensitivities(twin.floats, (batch, number), of_node, lambda node, value, g: of_node[node].add(value, g), generator, shares)
            give_back()
            if tell is not None:
                tell(number + 1, rounds)
            if not number and not worth(_left(_joined(found))):
                return so_far
        narrowed = {one.group: ends for one in _joined(found) if (ends := one.fitted().ends) is not None}
        return so_far | Corrections(ranges=named_ranges(twin, narrowed, so_far))


def _joined(found: Sequence[_Weighed]) -> list[_Weighed]:
    """With what all processes counted."""
    said = zip(*together().all([one.mass for one in found]))
    return [replace(one, mass=torch.stack(masses).sum(0)) for one, masses in zip(found, said)]


def _left(found: Sequence[_Weighed]) -> float:
    """The part of the error that narrower ranges leave."""
    fits = [one.fitted() for one in found]
    before = sum(fit.before for fit in fits)
    return sum(fit.error for fit in fits) / before if before else 1.0


class _Fit(NamedTuple):
    """`ends` with the least error; None where they are not worth it. Its error, and that of the whole range."""

    ends: tuple[float, float] | None
    error: float
    before: float


@dataclass
class _Weighed:
    """A group of values that share steps: how much errors of its numbers count, by bins of its range. `nodes`: in the float graph."""

    group: int
    qparams: QParams
    nodes: list[fx.Node] = field(default_factory=list)
    mass: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def add(self, value: Tensor | Written, gradient: Tensor) -> None:
        """Zeros are left out: they have a code of their own in every range. Piece by piece: all at once takes ten times the value."""
        low, high = self.qparams.range
        mass = torch.zeros(BINS, dtype=torch.float64)
        for x, g in zip(pieces(value, PIECE), gradient.reshape(-1).split(PIECE), strict=True):
            at = x.sub(low).mul_(BINS / (high - low)).long().clamp_(0, BINS - 1)
            mass.index_add_(0, at, g.square().mul_(x != 0).double())
        self.mass += mass

    def fitted(self) -> _Fit:
        low, high = self.qparams.range
        lows, highs = torch.meshgrid(PARTS * low if low else torch.zeros(1), PARTS * high if high else torch.zeros(1), indexing="ij")
        errors = self._errors(lows.flatten(), highs.flatten())
        best, before = int(errors.argmin()), float(errors[0])
        if not float(errors[best]) < GAIN * before:
            return _Fit(None, before, before)
        return _Fit((float(lows.flatten()[best]), float(highs.flatten()[best])), float(errors[best]), before)

    def _errors(self, lows: Tensor, highs: Tensor) -> Tensor:
        low, high = self.qparams.range
        centres = low + (torch.arange(BINS) + 0.5) * ((high - low) / BINS)
        steps = self.qparams.quant_max - self.qparams.quant_min
        scale = ((highs - lows) / steps).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        zero = torch.round(-lows[:, None] / scale)
        rounded = ((torch.round(centres / scale) + zero).clamp(0, steps) - zero) * scale
        return (rounded - centres).double().square() @ self.mass


def _measured(twin: Twin) -> Iterator[_Weighed]:
    """The groups of the graph whose range may be another one, in order."""
    floats, found = {node.name: node for node in twin.floats.graph.nodes}, dict[int, _Weighed]()
    for node in twin.quantized.graph.nodes:
        quant = quant_of(node)
        if quant.group in twin.measured and quant.qparams is not None and node.name in floats and node.op != "get_attr":
            assert quant.group is not None
            found.setdefault(quant.group, _Weighed(quant.group, quant.qparams)).nodes.append(floats[node.name])
    yield from (one for one in found.values() if isinstance(one.qparams.scale, float) and one.qparams.range[0] < one.qparams.range[1])
