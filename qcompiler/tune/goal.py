"""What a search is to reach, checked before it begins."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qcompiler.errors import ConfigError
from qcompiler.tune.score import Score


@dataclass(frozen=True)
class Goal:
    """`target`: least metric, or dB where `in_decibels`. `latency`: most ms, or parts of the float model's time where `in_parts`."""

    target: float | None = None
    in_decibels: bool = True
    latency: float | None = None
    in_parts: bool = False

    @staticmethod
    def of(target: float | str | None, latency: float | str | None, has_metric: bool) -> Goal:
        """A number is in the unit of the metric, without one in dB; "25dB" always is. A number is ms ("12ms"), "0.5x" parts of float's."""
        wanted, decibels = _number("target", target, ("dB", "db"))
        bound, parts = _number("latency", latency, ("x", "ms"))
        parts = parts and str(latency).strip().endswith("x")
        if bound is not None and bound <= 0:
            raise ConfigError(f"latency is a time above 0, not {latency!r:.40}", code="tune-latency")
        return Goal(wanted, decibels or not has_metric, bound, parts)

    def reached(self, score: Score) -> bool:
        """Whether this is accurate enough to stop; never without a target."""
        if self.target is None:
            return False
        return self.value(score) >= self.target

    def value(self, score: Score) -> float:
        """What is to be large: dB for a target in dB, else the metric where there is one."""
        in_decibels = score.metric is None or (self.target is not None and self.in_decibels)
        return score.sqnr if in_decibels or score.metric is None else score.metric

    def text(self) -> str:
        parts = [] if self.target is None else [f"target {self.target:g}{' dB' if self.in_decibels else ''}"]
        parts += [] if self.latency is None else [f"at most {self.latency:g}{' x the time of float' if self.in_parts else ' ms'}"]
        return ", ".join(parts)


def _number(name: str, given: float | str | None, units: tuple[str, ...]) -> tuple[float | None, bool]:
    """The number, and whether it has the unit."""
    if given is None:
        return None, False
    text = str(given).strip()
    bare = re.sub(rf"\s*({'|'.join(units)})$", "", text)
    try:
        value = float(bare)
    except ValueError:
        value = math.nan
    if isinstance(given, bool) or not math.isfinite(value):
        raise ConfigError(f'{name} is a number, or text such as "{25 if "dB" in units else 0.5}{units[0]}", not {given!r:.40}',
                          code=f"tune-{name}")  # fmt: skip
    return value, bare != text


def check_numbers(seconds: float, holdout: float, seed: int) -> None:
    """Raises ConfigError for what no search can be run with."""
    for name, value in (("seconds", seconds), ("holdout", holdout)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"{name} is a number above 0, not {value!r:.40}", code=f"tune-{name}")
    if holdout >= 1:
        raise ConfigError(f"holdout is a share of the batches below 1, not {holdout}", code="tune-holdout")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed is an int, not {seed!r:.40}", code="tune-seed")
