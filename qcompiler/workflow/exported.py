"""What exporters are given: of a calibrated or trained module the QUANTIZED graph, under a target that knows no kernels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from qcompiler.artifact.read_graph import graph_of
from qcompiler.backends import backend_of
from qcompiler.errors import ConfigError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms
from qcompiler.inputs.checks import MARK
from qcompiler.ops.table import OPS, Table
from qcompiler.prepared.module import required_state
from qcompiler.workflow.convert import quantized_for


def quantized_of(module: object, function: str, what: str, neutral: Sequence[str]) -> tuple[fx.GraphModule, Table]:
    """The QUANTIZED graph that is exported, and the table of its ops. A graph of convert_to_reference_fx is taken as it is.

    `neutral`: the back ends whose decisions are kept; what was prepared for another is made anew for the first of them. `function` and
    `what` speak of the exporter in messages.
    """
    if isinstance(module, CallForms):
        raise ConfigError(f"{what} has one form of the call, and this model has several", code="export-forms",
                          hint=f"export one of them: {function}(module.call_forms[0], ...)")  # fmt: skip
    if isinstance(module, Executable):
        return graph_of(module), OPS
    if isinstance(module, fx.GraphModule) and getattr(module, MARK, None) == "reference":
        return module, OPS
    target = required_state(module).settings.target
    target = target if target.backend in neutral else backend_of(neutral[0]).target(None, None)
    graph, settings = quantized_for(module, target)
    return graph, settings.table
