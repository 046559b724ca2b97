"""What a search gives: the module, a table of what was tried, and the corrections to build it anew."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from qcompiler.config.corrections import Corrections
from qcompiler.debug.fitted_table import FittedTable, as_text
from qcompiler.executable import Executable
from qcompiler.prepared.module import required_state
from qcompiler.tune.report import write_report
from qcompiler.tune.search_log import Step
from qcompiler.tune.table import Row, table_of
from qcompiler.workflow.explain import remarks


@dataclass(frozen=True)
class Tuned:
    """The result of autotune. `print` shows the table.

    `model`: the int8 module. `table`: float, default and every step, with figures on held-out data: in real int8 where the row was built
    (it has a time then), else of the reference graph. `steps`: the same steps with their corrections. `corrections`: those of `model`, for
    convert_fx on `prepared`. `keep_float`: names of modules, and of ops that are no module, which the search found worth staying float: to
    paste into convert_fx, those of modules into a mapping as well. `reached`: whether target and latency hold; False where that of the
    latency is too near to tell. `interrupted`: whether the user ended it. `batch`: rows of the held-out batch that the table has
    milliseconds of. `in_front`: where dB are not those of the results themselves, what they are of. `busy`: what other processes did while
    modules were timed, where that counts.
    """

    model: Executable
    table: tuple[Row, ...]
    steps: tuple[Step, ...]
    corrections: Corrections
    prepared: nn.Module = field(repr=False)
    keep_float: tuple[str, ...] = ()
    diagnosis: str = ""
    verdict: str = ""
    reached: bool = True
    interrupted: bool = False
    seconds: float = 0.0
    batch: int = 1
    in_front: str = ""
    busy: str = ""

    def __str__(self) -> str:
        return as_text(self.rich(), *self.notes())

    @property
    def measured(self) -> dict[str, str]:
        """What was measured of `model` on the held-out batches, by name, as `qcompiler.save(model, folder, measured=)` takes it."""
        score = next((row.score for row in self.table if row.chosen), None)
        if score is None:
            return {}
        where = "held-out batches that it was not calibrated on"
        found = {f"signal to quantization noise{f' of {self.in_front}' if self.in_front else ''}, {where}": f"{score.sqnr:.1f} dB"}
        found |= {} if score.agreement is None else {f"same highest class as float, {where}": f"{score.agreement:.1%}"}
        return found | ({} if score.metric is None else {f"the user's metric, {where}": f"{score.metric:.4g}"})

    def notes(self) -> list[str]:
        """What is to say beside the table, a line each."""
        lines = [f"calibration: {text}" for text in self._calibration()]
        lines += [self.diagnosis] if self.diagnosis else []
        lines += [f"dB are those of {self.in_front}"] if self.in_front else []
        lines += [f"keep_float={list(self.keep_float)}{self._for_nodes()}"] if self.keep_float else []
        lines += [self.busy] if self.busy else []
        lines += ["interrupted: this is the best that was found by then"] if self.interrupted else []
        return lines

    def _calibration(self) -> list[str]:
        """What was noted of the data, once where several forms of the call say the same."""
        found = [remark for remark in remarks(self.prepared) if remark.pass_name == "calibrate"]
        return list(dict.fromkeys(f"{f'%{remark.node}: ' if remark.node else ''}{remark.text}" for remark in found))

    def _for_nodes(self) -> str:
        """A word on names that no module has: a mapping knows modules alone."""
        modules = required_state(self.prepared).settings.module_types
        nodes = [name for name in self.keep_float if name not in modules]
        return f" ({', '.join(nodes)}: no module, so for convert_fx alone, not for a mapping)" if nodes else ""

    def rich(self) -> FittedTable:
        """The table for a rich console."""
        chosen = next((row.name for row in self.table if row.chosen), "")
        return table_of(self.table, f"{chosen}: {self.verdict}; {self.seconds:.0f} s", self.batch)

    def save_report(self, folder: str | os.PathLike[str]) -> Path:
        """Writes report.html, the table with the curve, and graph.html, the page coloured by what each step changed; returns the first.

        Raises ArtifactWriteError where it cannot write.
        """
        return write_report(self, Path(folder))
