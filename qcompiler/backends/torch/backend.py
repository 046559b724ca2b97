"""The torch back end in the registry: torch's quantized kernels, called from one generated forward."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, fx

from qcompiler.backends import Backend, Model
from qcompiler.backends.torch.kernels.table import add_again, added
from qcompiler.backends.torch.passes import LOWERING
from qcompiler.backends.torch.program.assemble import compile_graph
from qcompiler.backends.torch.program.load import load
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.executable.tensors import find
from qcompiler.ir.attributes import attribute, set_attribute
from qcompiler.ir.names import user_path
from qcompiler.target import Target


def _target(engine: str | None, isa: str | None) -> TorchTarget:
    engine = engine or torch.backends.quantized.engine
    return TorchTarget(engine, isa) if isa else TorchTarget(engine)


def _build(gm: fx.GraphModule, model: Model) -> CompiledModule:
    target = TorchTarget.of(model.target)
    module = compile_graph(gm, engine=target.engine, isa=target.isa, name=model.name, user_attributes=model.attributes)
    _read_from(gm, module)
    return module


def _read_from(gm: fx.GraphModule, module: CompiledModule) -> None:
    """Lets the graph, which stays with the module, read the module's own tensors: it would hold all weights once more."""
    for path in dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "get_attr"):
        if isinstance(attribute(gm, path), Tensor):
            set_attribute(gm, path, find(module, user_path(gm, path)))


def _running(target: Target) -> AbstractContextManager[None]:
    return quantized_engine(TorchTarget.of(target).engine)


BACKEND = Backend("torch", _target, LOWERING, _build, load, _running, taught=added, teach=add_again, copies=True)
