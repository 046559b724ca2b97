"""Corrections of a calibrated model that bring back accuracy without labels, each usable alone, and the search for what is enough."""

from qcompiler.config.corrections import Corrections
from qcompiler.tune.equalize import equalize
from qcompiler.tune.ranges import fit_ranges
from qcompiler.tune.reconstruct import correct_bias, reconstruct
from qcompiler.tune.result import Tuned
from qcompiler.tune.scale_inputs import scale_inputs
from qcompiler.tune.score import Score
from qcompiler.tune.search_log import Step
from qcompiler.tune.table import Row
from qcompiler.tune.together import sharing

__all__ = [
    "Corrections",
    "Row",
    "Score",
    "Step",
    "Tuned",
    "correct_bias",
    "equalize",
    "fit_ranges",
    "reconstruct",
    "scale_inputs",
    "sharing",
]
