"""The torch back end in the registry: torch's quantized kernels, called from one generated forward."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import fx

from qcompiler.backends import Backend, Model
from qcompiler.backends.torch.kernels.table import add_again, added
from qcompiler.backends.torch.passes import LOWERING
from qcompiler.backends.torch.program.assemble import compile_graph
from qcompiler.backends.torch.program.load import load
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.target import Target


def _target(engine: str | None, isa: str | None) -> TorchTarget:
    engine = engine or torch.backends.quantized.engine
    return TorchTarget(engine, isa) if isa else TorchTarget(engine)


def _build(gm: fx.GraphModule, model: Model) -> CompiledModule:
    target = TorchTarget.of(model.target)
    return compile_graph(gm, engine=target.engine, isa=target.isa, name=model.name, user_attributes=model.attributes)


def _running(target: Target) -> AbstractContextManager[None]:
    return quantized_engine(TorchTarget.of(target).engine)


BACKEND = Backend("torch", _target, LOWERING, _build, load, _running, taught=added, teach=add_again)
