"""Recorder: an instrument that keeps what every pass changed, as a Document.

    recorder = Recorder()
    prepared = prepare_fx(model, None, inputs, debug=recorder)
    calibrate(prepared, data)
    converted = convert_fx(prepared, debug=recorder)   # the same document goes on
    recorder.document()

Holds text and numbers, no weights. A second prepare starts anew; a second convert of the same model replaces the first.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import fx

from qcompiler.compile.journal import PassRecord, Remark
from qcompiler.compile.pass_manager import Context, Pass
from qcompiler.debug.document import Document, Node, Stage, delta, stage
from qcompiler.debug.nodes import graph_nodes
from qcompiler.debug.planned import plan_stages
from qcompiler.debug.sample import Sample, sample_of
from qcompiler.errors import ConfigError
from qcompiler.executable import Executable
from qcompiler.inputs.checks import MARK
from qcompiler.prepared.module import state_of


class Recorder:
    """Instrument of prepare_fx, convert_to_reference_fx and convert_fx."""

    def __init__(self, title: str | None = None) -> None:
        self.title = title
        self._stages: list[Stage] = []
        self._nodes: list[Node] = []
        self._prepared: tuple[int, list[Node]] = (0, [])  # stages and nodes where prepare ended
        self._graph: weakref.ref[fx.GraphModule] | None = None
        self._sample = Sample()
        self._remarks = 0  # of the context, told so far

    def start(self, phase: str, model: str, context: Context) -> Recorder:
        """Takes the model's name as title, unless it was given one."""
        self.title = self.title or model
        return self

    def before(self, step: Pass, gm: fx.GraphModule, context: Context) -> None:
        if self._graph is None or self._graph() is not gm:
            self._begin(gm, _phase(gm), context)

    def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
        self._add(record.name, _phase(gm), graph_nodes(gm.graph, context.table), context, record)

    def built(self, module: Executable, context: Context) -> None:
        """Adds the plan of a back end that has one."""
        self._stages += plan_stages(module, self._nodes)

    def finish(self, context: Context) -> None:
        """Adds the remarks that came after the last pass."""
        if self._stages:
            self._stages[-1]["remarks"] += self._new_remarks(context)

    def document(self) -> Document:
        """What was recorded so far. ConfigError where that is nothing."""
        if not self._stages:
            raise ConfigError("nothing was recorded", code="no-record", hint="prepare_fx(model, mapping, inputs, debug=recorder)")
        return Document(self.title or "model", tuple({**s, "remarks": list(s["remarks"])} for s in self._stages), sample=self._sample)

    def _begin(self, gm: fx.GraphModule, phase: str, context: Context) -> None:
        """The graph that a compile starts from; of a convert, only what calibration changed."""
        self._graph, self._sample, nodes = weakref.ref(gm), sample_of(gm.graph), graph_nodes(gm.graph, context.table)
        continued = phase == "convert" and bool(self._prepared[0])
        count, self._nodes = self._prepared if continued else (0, [])
        del self._stages[count:]
        self._remarks = len(context.journal.remarks) if phase == "convert" else 0
        if not continued:
            self._prepared = (0, [])
            self.title = self.title or _title(gm)
        if not continued or delta(self._nodes, nodes)["put"]:
            self._add("calibrate" if continued else "input", phase, nodes, context, None)

    def _add(self, name: str, phase: str, nodes: list[Node], context: Context, record: PassRecord | None) -> None:
        change = delta(self._nodes, nodes)
        self._nodes = nodes
        ms, matches = (record.milliseconds, getattr(record, "matches", 0)) if record is not None else (0.0, 0)
        self._stages.append(stage(name, phase, change, ms=ms, matches=matches, remarks=self._new_remarks(context)))
        if phase == "prepare":
            self._prepared = (len(self._stages), nodes)

    def _new_remarks(self, context: Context) -> list[dict[str, object]]:
        new, self._remarks = context.journal.remarks[self._remarks :], len(context.journal.remarks)
        return remarks_data(new)


def _phase(gm: fx.GraphModule) -> str:
    """convert marks the copy of the prepared module that it works on; prepare marks its module when all is done."""
    return "prepare" if getattr(gm, MARK, None) is None else "convert"


def remarks_data(remarks: Sequence[Remark]) -> list[dict[str, object]]:
    """Remarks as data; what is not known is left out."""
    found = []
    for remark in remarks:
        place = remark.where
        node = getattr(remark, "node", None) or _node_name(place.node)
        data = {"pass": remark.pass_name, "code": remark.code, "text": remark.text, "node": node}
        data |= {"path": place.module_path, "location": place.source}
        found.append({k: v for k, v in data.items() if v})
    return found


def _node_name(text: str | None) -> str | None:
    """The name in a node's IR line, `%conv: f32[1] = ...`; a place may also hold the name alone."""
    return text.removeprefix("%").split(" ", 1)[0].rstrip(":") if text else None


def _title(gm: fx.GraphModule) -> str:
    state = state_of(gm)
    return state.name if state is not None else type(gm).__name__
