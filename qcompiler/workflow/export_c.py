"""export_c: a converted or loaded module as C, whichever back end it was converted for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from qcompiler.artifact.graph_note import GRAPH
from qcompiler.artifact.read_graph import graph_of
from qcompiler.backends import Model, backend_of
from qcompiler.backends.build_step import BuildModule
from qcompiler.backends.native.export import export_c as write
from qcompiler.backends.native.export.folder import Entry
from qcompiler.compile.pass_manager import Context, run_last, run_passes
from qcompiler.compile.settings import Settings
from qcompiler.errors import ConfigError
from qcompiler.executable import Executable
from qcompiler.inputs.door import door
from qcompiler.ir.types import Stage
from qcompiler.passes import pipeline_for

NATIVE = "native"
MOST = 5  # reasons in a message


@door
def export_c(module: nn.Module, folder: str | Path, sizes: Sequence[Entry] | None = None, name: str | None = None) -> Path:
    """Writes a converted or loaded module as C: sources, weights, header, example, CMake file; returns the folder.

    `sizes`: the input sizes that the program will take, a list with an entry for each: the shape of the input, or a list of shapes where
    there are several inputs. Default: the sizes of the example. `name`: what C calls the network; default: the class of the model. The
    folder must be empty or missing. The C has the bits of the native back end; a module of another one is written with its own integers,
    and may differ from it by a step where its kernels round otherwise. Raises ConfigError where a part of the network has no C form, or a
    size does not fit; ArtifactWriteError where the folder cannot be written.
    """
    if not isinstance(module, Executable) or module._backend == NATIVE:
        return write(module, folder, sizes, name)
    graph, native = graph_of(module), backend_of(NATIVE)
    context = Context(Settings(target=native.target(None, None), trains=module.__dict__[GRAPH]["trains"] is True))
    try:
        run_passes(graph, pipeline_for(context.settings).with_lowering(native.passes).lower, Stage.QUANTIZED, context, recompile=False)
        step = BuildModule(native, Model(module._title(), context.target, {}))
        run_last(step, graph, context)
        return write(step.built(), folder, sizes, name)
    except ConfigError as error:
        if error.code == "not-native":
            reasons = [f"%{remark.node} {remark.text}" for remark in context.journal.remarks if remark.code == "native-torch"]
            error.hint = "; ".join(reasons[:MOST]) + f"; and {len(reasons) - MOST} more" * (len(reasons) > MOST)
        raise
