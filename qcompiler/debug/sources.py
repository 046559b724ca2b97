"""document_of: the Document of whatever a user holds: a module of any stage, a recorder, a dump, a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

from torch import fx

from qcompiler.debug.document import Document
from qcompiler.debug.explain_nodes import explain_nodes, explanation_on
from qcompiler.debug.nodes import graph_nodes
from qcompiler.debug.planned import plan_stages
from qcompiler.debug.read_dumps import compiles, latest
from qcompiler.debug.record import Recorder
from qcompiler.debug.sample import sample_of
from qcompiler.errors import ConfigError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms
from qcompiler.inputs.checks import MARK
from qcompiler.ops.table import OPS
from qcompiler.prepared.module import state_of

GRAPH_FILE = "graph.json"  # in a dump directory


def document_of(source: object) -> Document:
    """The Document of a GraphModule (traced, fused, prepared, reference, lowered), a converted module, a Recorder, a Document,
    or of dumps: a graph.json, the directory of one compile, a list of these, or the directory that holds them all, which means
    its last prepare with its convert. ConfigError for anything else.
    """
    if isinstance(source, Document):
        return source
    if isinstance(source, Recorder):
        return source.document()
    if isinstance(source, Executable):
        return _of_executable(source)
    if isinstance(source, fx.GraphModule):
        return _of_graph(source)
    if isinstance(source, (str, os.PathLike)):
        return read_document(Path(source))
    if isinstance(source, Sequence) and source:
        return reduce(Document.then, map(document_of, source))
    if isinstance(source, CallForms):
        raise ConfigError(f"a model of {len(source.call_forms)} call forms has as many graphs", code="no-graph",
                          hint="give one of them: model.call_forms[0]")  # fmt: skip
    raise ConfigError(f"no graph in a {type(source).__qualname__}", code="no-graph",
                      hint="give what prepare_fx or convert_fx returned, a Recorder, or a dump directory")  # fmt: skip


def read_document(path: Path) -> Document:
    """The document of a dump directory (a prepare and its convert as one), or of a file. ConfigError where there is none."""
    if path.is_dir() and not (path / GRAPH_FILE).exists() and not (path / "run.json").exists():
        return reduce(Document.then, [read_document(compiled.path) for compiled in latest(compiles(path))])
    file = path / GRAPH_FILE if path.is_dir() else path
    try:
        return Document.from_data(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read a graph from {file}: {error!s:.200}", code="no-graph",
                          hint=f"a dump directory of one compile, which holds a {GRAPH_FILE}") from error  # fmt: skip
    except ConfigError as error:
        error.message = f"{file}: {error.message}"
        raise


def _of_graph(gm: fx.GraphModule) -> Document:
    state = state_of(gm)
    table = state.settings.table if state is not None else OPS
    title = state.name if state is not None else type(gm).__name__
    return Document.of_nodes(title, getattr(gm, MARK, "graph"), graph_nodes(gm.graph, table), sample_of(gm.graph))


def _of_executable(module: Executable) -> Document:
    name, graph = module._title(), module._graph()
    explanation = explanation_on(module)
    phase, nodes = ("lowered", graph_nodes(graph.graph)) if graph is not None else ("compiled", module._nodes())
    explain_nodes(nodes, explanation)
    made = Document.of_nodes(name, phase, nodes, explanation.sample)
    stages = plan_stages(module, made.nodes_at(-1))
    return replace(made, stages=(*made.stages, *stages))
