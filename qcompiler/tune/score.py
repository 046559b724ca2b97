"""How near a quantized model is to the float one on data that was kept out: decibels, the same answers, and the user's own metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qcompiler.debug.metrics import tensors
from qcompiler.errors import ConfigError, InputError
from qcompiler.tune.held_out import Item
from qcompiler.tune.shares import AS_THEY_ARE, Shares
from qcompiler.tune.shelf import Results
from qcompiler.tune.together import together

Metric = Callable[[object, object], object]
LEAST_GAIN = 0.3  # dB: what a step must gain to be worth its place; less is within the spread of small held-out sets
CAP = 120.0  # dB: stands for no noise at all
ROUNDING = 1e-9  # of shares as floats
PIECE = 2**18  # numbers of a result that are compared at once


@dataclass(frozen=True)
class Score:
    """`sqnr`: dB of all results, or of what is in front of them (`Shares`); `spread`: its standard deviation over batches. `agreement`:
    share of rows with the same largest result, None where results are no classes. `metric`: mean over rows of the user's metric. `error`:
    the standard error of the metric, else of the agreement, and then at least one answer: agreement of all of eight says little of the
    ninth."""

    sqnr: float
    spread: float
    agreement: float | None = None
    metric: float | None = None
    error: float = 0.0

    @property
    def answer(self) -> float | None:
        """What must not fall: the metric, else the agreement."""
        return self.agreement if self.metric is None else self.metric

    @property
    def noise(self) -> float:
        """Power of the error, in parts of the signal's."""
        return 10 ** (-self.sqnr / 10)

    def text(self) -> str:
        parts = [f"{self.sqnr:.1f} ± {self.spread:.1f} dB"]
        parts += [f"{self.metric:.4g} ± {self.error:.2g}"] if self.metric is not None else []
        parts += [f"{self.agreement:.1%} the same"] if self.agreement is not None else []
        return ", ".join(parts)


def refusal(before: Score, after: Score) -> str | None:
    """Why a step is not taken; None where it is."""
    if before.answer is not None and after.answer is not None and after.answer < before.answer - before.error - ROUNDING:
        what = "agreement" if before.metric is None else "the metric"
        return f"{what} falls from {before.answer:.4g} to {after.answer:.4g}, beyond its standard error of {before.error:.2g}"
    better = before.metric is not None and after.metric is not None and after.metric > before.metric + before.error
    gain = after.sqnr - before.sqnr
    return None if better or gain >= LEAST_GAIN else f"it gains {gain:+.2f} dB: fewer than {LEAST_GAIN}"


@dataclass(frozen=True)
class Judge:
    """The held-out batches with what the float model makes of them. `classes`: whether the largest number of a row is an answer."""

    items: Sequence[Item]
    expected: Sequence[object]
    metric: Metric | None
    shares: Shares = AS_THEY_ARE
    classes: bool = True

    @staticmethod
    def of(model: nn.Module, items: Sequence[Item], metric: Metric | None, shares: Shares = AS_THEY_ARE, classes: bool = True) -> Judge:
        """Runs the float model. ConfigError where nothing of its results can be compared."""
        with torch.inference_mode():
            expected = Results(model(*item.args, **item.kwargs) for item in items)
        if metric is None and not any(_floats(result) for result in expected):
            raise ConfigError("the model's results have no floats, so no noise can be told", code="tune-metric", hint="give a metric")
        return Judge(items, expected, metric, shares, classes)

    def score(self, module: nn.Module, tell: Callable[[], object] = lambda: None) -> Score:
        """Of a quantized module; `tell` is called behind each batch."""
        parts = []
        with torch.inference_mode():
            for item, expected in zip(self.items, self.expected):
                parts.append(self._part(item, expected, module(*item.args, **item.kwargs)))
                tell()
        return _joined(parts)

    def of_float(self) -> Score:
        """The float model's own."""
        return _joined([self._part(item, expected, expected) for item, expected in zip(self.items, self.expected)])

    def _part(self, item: Item, expected: object, got: object) -> _Part:
        pairs = list(zip(_floats(expected), _floats(got)))
        signal, noise = _sums(self.shares.undone(pairs))
        same = _same(*pairs[0]) if pairs and self.classes else None
        metric = None if self.metric is None else _number(self.metric(got, item.given))
        return _Part(signal, noise, same, metric, item.rows)


@dataclass(frozen=True)
class _Part:
    signal: float
    noise: float
    same: Tensor | None
    metric: float | None
    rows: int


def _joined(own: Sequence[_Part]) -> Score:
    """Of the parts of all processes."""
    parts = [part for said in together().all(own) for part in said]
    sqnr = _decibels(sum(p.signal for p in parts), sum(p.noise for p in parts))
    spread = _deviation([_decibels(p.signal, p.noise) for p in parts])
    same = [p.same.double() for p in parts if p.same is not None]
    answers = torch.cat(same) if same else None
    agreement = answers.mean().item() if answers is not None else None
    rows = sum(p.rows for p in parts)
    metrics = [p.metric for p in parts if p.metric is not None]
    if metrics:
        metric = sum(m * p.rows for m, p in zip(metrics, parts)) / rows
        return Score(sqnr, spread, agreement, metric, _deviation(metrics) / math.sqrt(len(metrics)))
    if agreement is None or answers is None:
        return Score(sqnr, spread, None, None, 0.0)
    return Score(sqnr, spread, agreement, None, max(math.sqrt(agreement * (1 - agreement) / len(answers)), 1 / len(answers)))


def _decibels(signal: float, noise: float) -> float:
    if not noise:
        return CAP
    return min(max(10 * math.log10(signal / noise), -CAP), CAP) if signal and noise < math.inf else -CAP


def sqnr_of(results: Iterable[tuple[object, object]], shares: Shares) -> float:
    """dB of all pairs of an expected result and what there is, as in a score; of several processes, of the results of all."""
    pairs = (pair for one, other in results for pair in shares.undone(list(zip(_floats(one), _floats(other)))))
    said = together().all(_sums(pairs))
    return _decibels(sum(signal for signal, _ in said), sum(noise for _, noise in said))


def _sums(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    powers = [_powers(*pair) for pair in pairs]
    return sum(signal for signal, _ in powers), sum(noise for _, noise in powers)


def _powers(expected: Tensor, got: Tensor) -> tuple[float, float]:
    """Of signal and noise, where the float model gives numbers: a mask's inf has no decibels. A NaN or inf in their place is all noise."""
    parts = [_powers_of(*part) for part in zip(expected.reshape(-1).split(PIECE), got.reshape(-1).split(PIECE), strict=True)]
    return sum(signal for signal, _ in parts), sum(noise for _, noise in parts)


def _powers_of(expected: Tensor, got: Tensor) -> tuple[float, float]:
    known = expected.isfinite()
    a, b = expected[known].double(), got[known].double()
    return a.square().sum().item(), (a - b).square().sum().nan_to_num(nan=math.inf).item()


def _deviation(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).std().item() if len(values) > 1 else 0.0


def _floats(value: object) -> list[Tensor]:
    return [t for t in tensors(value) if t.is_floating_point()]


def _same(a: Tensor, b: Tensor) -> Tensor | None:
    """For each row, the share of its places with the same largest channel; None for what has no channels."""
    if a.dim() < 2 or a.shape != b.shape or not a.numel():
        return None
    axis = 2 if a.dim() == 3 else 1  # (rows, channels, ...), but (rows, steps, channels) of sequences
    if a.shape[axis] < 2:
        return None
    return (a.argmax(axis) == b.argmax(axis)).reshape(a.shape[0], -1).double().mean(1)


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several
        number = math.nan
    if not math.isfinite(number):
        what = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) and value.dim() else f"{value!r:.80}"
        raise InputError(f"the metric is {what}", code="tune-metric", hint="metric(outputs, batch) gives a number, larger is better")
    return number
