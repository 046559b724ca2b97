"""The steps that a search may take, in their order, and why one of them does not pay for a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from qcompiler.config.corrections import Corrections
from qcompiler.debug.explain import Explanation
from qcompiler.tune.diagnose import LIMITS, Diagnosis
from qcompiler.tune.equalize import equalize, equalize_values
from qcompiler.tune.held_out import Item
from qcompiler.tune.islands import islands
from qcompiler.tune.ranges import fit_ranges_worth
from qcompiler.tune.reconstruct import reconstruct
from qcompiler.tune.sampled_rows import MOST_ROWS
from qcompiler.tune.scale_inputs import scale_inputs
from qcompiler.tune.score import LEAST_GAIN, Score
from qcompiler.workflow.explain import explain

Tell = Callable[[int, int], None]
LITTLE = 0.25  # of the data: with less the rounding fits the rows that were drawn
HALF = 0.5  # of the data: with less, ranges cut off what is rare
MUCH = 0.4  # share of the noise that values make, from which on they are worked at before weights are: a fifth of that is 0.3 dB
BEFORE, RANGES = 0.15, 0.3  # of the time that is left: what each step in front of `reconstruct` may take, and `ranges`
TINY = 1e-30  # no noise at all
LINEAR_SHARE = 0.5  # of the multiply-accumulates: below, linears that round their input at run time change little


@dataclass(frozen=True)
class State:
    """Where a search stands: the calibrated model, the batches that it corrects on, the seed, what was taken so far and by which steps, and
    which steps were judged."""

    prepared: nn.Module
    items: Sequence[Item]
    seed: int
    corrections: Corrections
    diagnosis: Diagnosis | None = None
    score: Score | None = None
    taken: tuple[str, ...] = ()
    judged: frozenset[str] = frozenset()

    @property
    def batches(self) -> list[object]:
        return [item.call for item in self.items]


@dataclass(frozen=True)
class Move:
    """`skips`: why it is not tried. `make`: the corrections with it; `effort` below 1 means less data, where it can do with that.

    `share`: of the time that is left, what it may take: most is for the step behind it, which gains most where weights limit. `hidden`:
    whether it is to be judged with float weights.
    """

    name: str
    skips: Callable[[State], str | None]
    make: Callable[[State, Tell, float], Corrections]
    least_effort: float = 1.0
    share: float = 1.0
    hidden: Callable[[State], bool] = lambda state: False


def _always(state: State) -> None:
    """Also where weights make little of the noise: new codes make up for the noise of values in front of them."""


def _of_values(state: State) -> float:
    """The part of the noise that values make: where weights were rounded anew, of what is left by now."""
    if state.diagnosis is None or state.score is None or not state.score.noise:
        return 1.0
    return state.diagnosis.values.noise / state.score.noise


def _values_limit(state: State, least: float = LIMITS) -> str | None:
    share = _of_values(state)
    return None if share >= least else f"values make {share:.0%} of the noise"


def _weights_hide(state: State) -> bool:
    """Whether weights make most of the noise, and new codes for them are still to come."""
    return "reconstruct" not in state.taken and _values_limit(state, MUCH) is not None


def _values_first(state: State) -> str | None:
    return _values_limit(state, MUCH)


def _weights_hid(state: State) -> bool:
    """Whether weights made most of the noise of the default."""
    return state.diagnosis is not None and state.diagnosis.values.noise < MUCH * max(state.diagnosis.default.noise, TINY)


def _channels_left(state: State) -> str | None:
    """Where weights made nearly all of the noise, new codes stood in front."""
    return _values_limit(state) if _weights_hid(state) else "channels were tried before"


def _ranges_left(state: State) -> str | None:
    """Once more where new codes came between: not where the noise of weights was left out the first time."""
    if "ranges" in state.taken:
        return "ranges are fitted already"
    if "ranges" in state.judged and _weights_hid(state):
        return "ranges were judged with float weights"
    return _values_limit(state) if "reconstruct" in state.taken else "no codes are new"


def _equalize(state: State, tell: Tell, effort: float) -> Corrections:
    return equalize(state.prepared, state.batches, corrections=state.corrections, alpha=None, tell=tell)


def _equalize_again(state: State, tell: Tell, effort: float) -> Corrections:
    """With codes anew, where what is left gains by it with float weights: to all of it nearest codes are worse than what is there."""
    if "reconstruct" not in state.taken:
        return _equalize(state, tell, effort)
    bare = replace(state.corrections, codes={}, scales={}, biases={})
    found = equalize_values(state.prepared, state.batches, bare, tell)
    return state.corrections if found == bare else _reconstruct(replace(state, corrections=found), tell, effort)


def _scale_inputs(state: State, tell: Tell, effort: float) -> Corrections:
    return scale_inputs(state.prepared, state.batches, corrections=state.corrections, alpha=None, tell=tell)


def _part(state: State, effort: float) -> list[object]:
    return state.batches[: max(1, round(effort * len(state.batches)))]


def _ranges(state: State, tell: Tell, effort: float) -> Corrections:
    """Left where one batch, which promises more than others hold, promises less than a step must gain."""
    share = 1.0 if _weights_hide(state) else min(_of_values(state), 1.0)

    def worth(left: float) -> bool:
        return share * (1 - left) >= 1 - 10 ** (-LEAST_GAIN / 10)

    return fit_ranges_worth(state.prepared, _part(state, effort), state.corrections, (state.seed, tell), worth)


def _reconstruct(state: State, tell: Tell, effort: float) -> Corrections:
    rows, batches = int(MOST_ROWS * effort), _part(state, effort)
    return reconstruct(state.prepared, batches, corrections=state.corrections, rows=rows, seed=state.seed, tell=tell)


def _linears(explanation: Explanation) -> list[str]:
    return [row.node for row in explanation.rows if row.op == "linear" and row.int8 and not row.mode]


def _no_linears(state: State) -> str | None:
    explanation = explain(state.prepared)
    names, total = set(_linears(explanation)), sum(row.macs for row in explanation.rows)
    share = sum(row.macs for row in explanation.rows if row.node in names) / total if total else 0.0
    return _values_limit(state) or (f"linears do {share:.0%} of the work" if share < LINEAR_SHARE else None)


def _dynamic(state: State, tell: Tell, effort: float) -> Corrections:
    return state.corrections | Corrections(dynamic=frozenset(_linears(explain(state.prepared))))


def _islands(state: State, tell: Tell, effort: float) -> Corrections:
    return state.corrections | Corrections(keep_float=islands(state.prepared, state.items[0], state.corrections, tell))


MOVES = (
    Move("equalize", _values_first, _equalize, share=BEFORE),
    Move("scale-inputs", _values_limit, _scale_inputs, share=BEFORE),
    Move("ranges", _values_limit, _ranges, HALF, RANGES, _weights_hide),
    Move("reconstruct", _always, _reconstruct, LITTLE),
    Move("equalize-again", _channels_left, _equalize_again),
    Move("ranges-again", _ranges_left, _ranges, HALF),
    Move("dynamic", _no_linears, _dynamic),
    Move("islands", _values_limit, _islands),
)
