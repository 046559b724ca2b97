"""What a crash reproducer holds, made anew: a graph, the passes to run on it, and all that they need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from qcompiler.backends import Model, backend_of, names
from qcompiler.backends.build_step import BuildModule
from qcompiler.compile.pass_manager import Context, Pass, PassInstrument, run_passes
from qcompiler.debug.read_data import Reader
from qcompiler.debug.reproducer import GRAPH, SCHEMA, SCRIPT, TENSORS
from qcompiler.errors import ConfigError, QCompilerError
from qcompiler.files.safetensors import read_safetensors
from qcompiler.ir.graph_module import OwnGraphModule
from qcompiler.ir.types import Stage
from qcompiler.passes import PIPELINES
from qcompiler.target import Target


def built_in(target: Target, model: str) -> dict[str, Pass]:
    """The passes of all pipelines that end with those of a target's back end, and the building of its module, by name."""
    known = target.backend in names()  # one that is not may be written out itself
    lowering = backend_of(target.backend).passes if known else ()
    steps: list[Pass] = [step for p in PIPELINES.values() for step in p.with_lowering(lowering).steps]
    steps += [BuildModule(backend_of(target.backend), Model(model, target, {}))] if known else []
    return {step.name: step for step in steps}


@dataclass(frozen=True)
class Case:
    """A graph as data with its tensors, the names it refers to, and the passes to run on it."""

    data: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    names: Mapping[str, Any]
    pipeline: tuple[str, ...]
    folder: Path

    @staticmethod
    def load(folder: Path, pipeline: str, names: Mapping[str, object]) -> Case:
        """The case that stands in a folder. ConfigError where its files are missing or damaged."""
        try:
            data = json.loads((folder / GRAPH).read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder / GRAPH} cannot be read: {error}", code="reproducer") from error
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA:
            raise ConfigError(f"{folder / GRAPH} was written by another version", code="reproducer",
                              hint="run it with the version that its repro.py names")  # fmt: skip
        return Case(data, read_safetensors(folder / TENSORS), names, tuple(filter(None, pipeline.split(","))), folder)

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def start(self) -> tuple[fx.GraphModule, list[Pass], Stage, Context]:
        """The graph and all that its passes need, made anew."""
        reader = Reader(self.data["shared"], self.tensors, self.names)
        settings = reader.read(self.data["settings"]).with_(module_types=reader.read(self.data["module_types"]))
        self._teach(settings.target.backend, reader)
        known = built_in(settings.target, str(self.data["model"]))
        steps = [self._step(name, reader, known) for name in self.pipeline]
        gm = graph_of(self.data, reader)
        context = Context(settings, example=reader.read(self.data["example"]))
        return gm if settings.trains else gm.eval(), steps, Stage(self.data["stage"]), context

    def _teach(self, backend: str, reader: Reader) -> None:
        """Registers with the back end what the user had registered. ConfigError where there is such, and no back end of that name."""
        if self.data["taught"]:
            backend_of(backend).teach(reader.read(self.data["taught"]))

    def _step(self, name: str, reader: Reader, known: Mapping[str, Pass]) -> Pass:
        own = self.data["passes"].get(name)
        if own is None and name not in known:
            raise ConfigError(f"there is no pass {name!r} here", code="reproducer", hint=f"known: {', '.join(known)}")
        step: Pass = known[name] if own is None else reader.read(own)
        return step

    def run(self) -> None:
        """Runs the pipeline; raises what it raises."""
        gm, steps, stage, context = self.start()
        with torch.inference_mode(False), torch.no_grad():
            run_passes(gm, steps, stage, context, (_Named(self.folder),))


class _Named(PassInstrument):
    """The failure already has a reproducer: it is the one that runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_error(self, step: Pass, gm: fx.GraphModule, context: Context, error: QCompilerError) -> None:
        error.reproducer = str(self.folder / SCRIPT)


def graph_of(data: Mapping[str, Any], reader: Reader) -> fx.GraphModule:
    """The graph module of repro.json."""
    root = nn.Module()
    for path, module in data["modules"].items():
        _place(root, path, "module", reader.read(module))
    for path, (kind, value) in data["attributes"].items():
        _place(root, path, kind, reader.parameter(value["tensor"]) if kind == "parameter" else reader.read(value))
    graph = fx.Graph()
    for entry in data["nodes"]:
        target = reader.read(entry["target"])
        args, kwargs = tuple(reader.read(entry["args"])), {k: reader.read(v) for k, v in entry["kwargs"].items()}
        node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
        node.name = entry["name"]  # also where torch.fx would not give this name
        node.meta.update({key: reader.read(value) for key, value in entry["meta"].items()})
        reader.nodes[node.name] = node
    return OwnGraphModule(root, graph, str(data["model"]))


def _place(root: nn.Module, path: str, kind: str, value: object) -> None:
    *scopes, last = path.split(".")
    for part in scopes:
        inner = root._modules.setdefault(part, nn.Module())
        assert inner is not None
        root = inner
    if kind == "plain":
        root.__dict__[last] = value
    else:
        members: Any = {"module": root._modules, "parameter": root._parameters, "buffer": root._buffers}[kind]
        members[last] = value
