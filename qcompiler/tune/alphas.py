"""How near to each other channels are brought: the alpha of the factors (r_c / max r) ^ alpha, given or chosen on data."""

from __future__ import annotations

from collections.abc import Callable

from qcompiler.config.corrections import Corrections
from qcompiler.errors import ConfigError
from qcompiler.tune.channel_ends import Ends, Halves
from qcompiler.tune.trial import Trial
from qcompiler.tune.walk import Tell

USUAL, OTHERS = 0.5, (0.25, 0.75)
MATTERS = 0.2  # dB that the usual one changes at least, where others are tried


def check_alpha(alpha: float | None) -> None:
    """Raises ConfigError for one that is no number from 0 to 0.75."""
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= OTHERS[-1]):
        raise ConfigError(f"alpha is from 0 to {OTHERS[-1]}, or None, not {alpha!r:.40}", code="alpha")


def best_alpha(make: Callable[[float, Ends], Corrections], alpha: float | None, so_far: Corrections, ends: Halves,
               begin: Callable[[], Trial], tell: Tell | None) -> Corrections:  # fmt: skip
    """What `make` gives for `alpha`; for None that of three with the least error of the results, or `so_far` where each makes it larger."""
    if alpha == 0:
        return so_far
    usual = make(USUAL if alpha is None else alpha, ends.whole)
    if alpha is not None or usual == so_far:
        return usual
    del usual  # as large as all weights
    scores = dict[float, float]()

    def told() -> None:
        if tell is not None:
            tell(len(scores) + 1, len(OTHERS) + 3)

    told()
    trial = begin()
    for one in (0.0, USUAL, *OTHERS):
        if len(scores) == 2 and abs(scores[USUAL] - scores[0.0]) < max(MATTERS, trial.least / 2):
            break
        scores[one] = trial.sqnr(make(one, ends.others) if one else so_far)
        told()
    best = max(scores, key=scores.__getitem__)
    return make(best, ends.whole) if best and scores[best] >= scores[0.0] + trial.least else so_far


def may_gain(make: Callable[[float, Ends], Corrections], so_far: Corrections, ends: Ends, trial: Trial) -> bool:
    """Whether the usual one changes the batch of the trial by what it must gain. Where that is a loss, a smaller one may gain."""
    usual = make(USUAL, ends)
    return usual != so_far and abs(trial.sqnr(usual) - trial.sqnr(so_far)) >= trial.least
