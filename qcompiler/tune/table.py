"""The table of a search: a row for the float model, the default and every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.debug.fitted_table import Column, FittedTable
from qcompiler.tune.score import CAP, Score


@dataclass(frozen=True)
class Row:
    """One line of the table. `milliseconds`, `int8_share`, `size`: of what was built, else None. `chosen`: whether `.model` is this.
    `margin`: milliseconds that the time may be off, as far as timing could tell."""

    name: str
    score: Score | None
    milliseconds: float | None
    int8_share: float | None
    size: int | None
    seconds: float
    verdict: str
    chosen: bool = False
    margin: float | None = None


def table_of(rows: Sequence[Row], title: str, batch: int) -> FittedTable:
    """The rows for a rich console. `batch`: how many rows the batch has that was timed."""
    return FittedTable(
        title,
        [
            Column("", [">" if row.chosen else "" for row in rows]),
            Column("step", [row.name for row in rows]),
            Column("dB", [_decibels(row.score) for row in rows], right=True),
            Column("metric", [_metric(row.score) for row in rows], right=True),
            Column("same answer", [_agreement(row.score) for row in rows], right=True),
            Column(f"ms, batch of {batch}", [_milliseconds(row) for row in rows], right=True),
            Column("MACs int8", ["" if row.int8_share is None else f"{row.int8_share:.1%}" for row in rows], right=True, rank=2),
            Column("MB", ["" if row.size is None else f"{row.size / 1e6:.2f}" for row in rows], right=True, rank=3),
            Column("s", [f"{row.seconds:.1f}" if row.seconds else "" for row in rows], right=True, rank=4),
            Column("verdict", [row.verdict for row in rows], prose=True),
        ],
    )


def _decibels(score: Score | None) -> str:
    if score is None:
        return ""
    return "exact" if score.sqnr >= CAP else f"{score.sqnr:.1f} ± {score.spread:.1f}"


def _milliseconds(row: Row) -> str:
    return "" if row.milliseconds is None else f"{row.milliseconds:.2f} ± {row.margin or 0.0:.2f}"


def _metric(score: Score | None) -> str:
    return "" if score is None or score.metric is None else f"{score.metric:.4g} ± {score.error:.2g}"


def _agreement(score: Score | None) -> str:
    return "" if score is None or score.agreement is None else f"{score.agreement:.1%}"
