"""A CompiledModule of a program and what it runs on, or of a LOWERED graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from qcompiler.backends.torch.program.build import Built, build
from qcompiler.backends.torch.program.module import CompiledModule, empty_module, index_containers
from qcompiler.backends.torch.program.scopes import place
from qcompiler.backends.torch.program.steps import largest_codes
from qcompiler.executable.noted import LARGEST


def assemble(built: Built, engine: str) -> CompiledModule:
    """The module of a program and what it runs on; tensors become its buffers as they are."""
    program = built.program
    module = empty_module(program, engine)
    module.__dict__["_externals"] = dict(built.externals)
    for path in sorted(built.leaves):
        place(module, path, built.leaves[path])
    for path, tensor in built.tensors.items():
        place(module, path, tensor)
    module._buffers[program.scales_name] = torch.tensor(built.scales, dtype=torch.float64)
    module._buffers[program.zero_points_name] = torch.tensor(built.zero_points, dtype=torch.int64)
    module.train(False)
    module.rebuild()
    return module


def compile_graph(
    gm: fx.GraphModule,
    *,
    name: str | None = None,
    engine: str | None = None,
    isa: str = "",
    user_attributes: Mapping[str, object] | None = None,
) -> CompiledModule:
    """The CompiledModule of a LOWERED graph, named `name`, packed for `engine` (default: torch's current one). `isa`: the
    instruction set that it was lowered for.

    Tensors are copied; float leaf modules are shared with the graph. Raises QCompilerError naming a node that no program can hold.
    """
    module = assemble(build(gm, name, isa), engine or torch.backends.quantized.engine)
    module.__dict__["lowered"] = gm
    if largest := largest_codes(gm):
        module.__dict__[LARGEST] = largest
    for key, value in (user_attributes or {}).items():
        if not hasattr(CompiledModule, key) and key not in module.__dict__:
            setattr(module, key, value)
    index_containers(module)
    return module
