"""convert_fx(keep_float=...): the decisions of a prepare, taken again with ops that stay float, on what calibration saw.

A prepared module keeps its FUSED graph, from where decisions begin. The passes behind it run again as they would have run with a qconfig
of None for the ops named, and each observer that they ask for is the calibrated one that looked at that value in that way: one that was
there already or a spare (passes/watch_spares.py). So the result is that of preparing and calibrating anew, without either.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from qcompiler.compile.journal import Journal
from qcompiler.compile.pass_lists import Pipeline
from qcompiler.compile.pass_manager import Context, run_passes
from qcompiler.compile.settings import Settings
from qcompiler.errors import ConfigError
from qcompiler.ir.types import SOURCE, Source, Stage, quant_of
from qcompiler.observers.watch import Watch, WatchKey
from qcompiler.prepared.graph_pickle import Data, from_data, to_data

SWAPS = "observe_custom_modules"  # the pass that puts observed modules in the place of the user's float ones


@dataclass(frozen=True)
class Fused:
    """Where the decisions of a prepare begin: the FUSED graph, what had been noted by then, and the custom modules as floats, by path."""

    graph: Data = field(default_factory=list)
    journal: Journal = field(default_factory=Journal)
    floats: Mapping[str, nn.Module] = field(default_factory=dict)

    @staticmethod
    def of(gm: fx.GraphModule, journal: Journal, settings: Settings) -> Fused:
        called = {str(node.target): gm.get_submodule(str(node.target)) for node in gm.graph.nodes if node.op == "call_module"}
        custom = {path: _copied(module) for path, module in called.items() if type(module) in settings.custom.observed_classes}
        return Fused(to_data(gm.graph), journal.continued(), custom)

    @property
    def sources(self) -> dict[str, Source]:
        """Where each call comes from, by the name of its node."""
        return {name: notes.get(SOURCE, Source()) for op, name, _, _, notes in self.graph if op.startswith("call_")}


def _copied(module: nn.Module) -> nn.Module:
    """A copy with the same tensors: making an observed module of one may change it."""
    held = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, held)


def decide_again(gm: fx.GraphModule, fused: Fused, pipeline: Pipeline, context: Context) -> None:
    """Takes an OBSERVED graph back to FUSED and through the decisions with the settings of the context. Raises ConfigError where a value
    that is to be rounded was not observed."""
    watches = {module.key: module for module in gm.modules() if isinstance(module, Watch)}
    observed = {path: gm.get_submodule(path) for path in fused.floats}
    if hasattr(gm, "observers"):
        del gm.observers
    for path, module in fused.floats.items():
        gm.set_submodule(path, _copied(module))
    gm.graph = from_data(fused.graph)
    steps = [step for step in pipeline.observe if step.name != SWAPS]
    run_passes(gm, steps, Stage.FUSED, context, recompile=False)
    for node in gm.graph.nodes:
        if str(node.target) in observed and quant_of(node).int8:
            gm.set_submodule(str(node.target), observed[str(node.target)])
    for name, made in list(gm.get_submodule("observers").named_children()):
        assert isinstance(made, Watch)
        gm.get_submodule("observers")._modules[name] = made if made.is_spare else _calibrated(made, watches)


def _calibrated(made: Watch, watches: Mapping[WatchKey | None, Watch]) -> Watch:
    """The watch with the observer that saw the calibration data."""
    known = watches.get(made.key)
    if known is None:
        name = made.key.name if made.key is not None else "?"
        raise ConfigError(f"calibration did not look at %{name}, which is rounded if these ops stay float", code="keep-float",
                          where=made.place, hint="give them a qconfig of None, prepare and calibrate again")  # fmt: skip
    return Watch(known.observer, made.place, made.key)
