"""Tells native regions where their constants stand in a module: torch.export puts stand-ins of its own there, by which it knows names."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qcompiler.backends.native.region import Standing
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import Call
from qcompiler.backends.torch.program.values import Const, Scale
from qcompiler.executable.tensors import find


def name_constants(module: nn.Module, program: Program, packs: Mapping[str, Any]) -> None:
    """`packs`: results of the once calls; those of native regions learn to read their constants from the module as it is at the moment."""
    for call in program.once:
        if call.op == registry.NATIVE_REGION:
            region, names = packs[str(call.out)], [v.name for v in call.args[1] if isinstance(v, Const)]
            if _takes_all(call, program):
                region.belongs(_reader(module, [*names, program.scales_name, program.zero_points_name], []))
            else:
                region.belongs(_reader(module, names, region.constants[-2:]))


def _takes_all(call: Call, program: Program) -> bool:
    """Whether its scales and zero points are all that the module has, as they stand in its buffers."""
    return [v.index for v in call.values() if isinstance(v, Scale)] == list(range(program.qparams))


def _reader(module: nn.Module, names: list[str], rest: list[Tensor]) -> Standing:
    held = weakref.ref(module)

    def read() -> list[Tensor] | None:
        found = held()
        return [*(find(found, name) for name in names), *rest] if found is not None else None

    return read
