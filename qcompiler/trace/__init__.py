"""Follows a model's forward with example values and writes down what it does as a graph.

Unlike torch.fx's symbolic tracer, every value is known while the model runs: branches on sizes and flags are followed and
held by guards, what cannot be followed stays a leaf module with a remark, and no in-place operation is left in the graph
but assignments into copies that the graph itself makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from qcompiler.errors import Where
from qcompiler.trace.carry import Carrier
from qcompiler.trace.check_numbers import agrees
from qcompiler.trace.float_parts import NewPart, Parts
from qcompiler.trace.guards import GUARDS, TraceRemark, guard, guard_bool, guard_float, guard_int, is_guard
from qcompiler.trace.inputs import open_inputs
from qcompiler.trace.module_calls import Rules
from qcompiler.trace.numbers import Again
from qcompiler.trace.opened import note_changes
from qcompiler.trace.parametrize import fold_parametrizations
from qcompiler.trace.state import Places
from qcompiler.trace.tracer import Tracer

__all__ = [
    "GUARDS", "TraceRemark", "Traced", "Where", "fold_parametrizations", "guard", "guard_bool", "guard_float", "guard_int",
    "is_guard", "trace",
]  # fmt: skip


@dataclass
class Traced:
    """A traced model (stage TRACED) and what there is to know about it: leaves and guards, in the order they were met."""

    graph_module: fx.GraphModule
    remarks: list[TraceRemark]


def trace(
    model: nn.Module,
    example_inputs: tuple[object, ...],
    example_kwargs: Mapping[str, object] | None = None,
    *,
    is_leaf: Callable[[nn.Module, str], bool],
    decompose: Mapping[Callable[..., object], Callable[..., object]] | None = None,
    concrete_args: Mapping[str, object] | None = None,
    strict: bool = False,
    trains: bool = False,
) -> Traced:
    """Trace a model on example inputs.

    `is_leaf(module, path)` says which modules stay one call. `decompose` maps module classes (to a function of the module
    and its arguments) and functions (to a function of the same arguments) to what is traced in their place.
    `concrete_args` gives arguments of forward that are baked in. `trains`: the graph is to be trained, so it computes with
    parameters and reads `training` when it runs, instead of once while it is traced. The model, its state and the inputs are
    left as they were.

    Raises TraceError where the root's forward cannot be followed (with `strict`, where any module's cannot), InputError
    where the model does not run on the example inputs.
    """
    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    kwargs, concrete = example_kwargs or {}, concrete_args or {}
    scopes: list[dict[str, object]] = []
    free_numbers = True
    made: list[Tracer] = []
    parts = Parts()

    def make() -> Tracer:
        tracer = Tracer(model, Rules(is_leaf, decompose or {}, strict, trains))
        tracer.stand_ins, tracer.free_numbers, tracer.parts = scopes, free_numbers, parts
        made.append(tracer)
        return tracer

    def forward(tracer: Tracer) -> object:
        forward_args, forward_kwargs = open_inputs(tracer, model, args, kwargs, concrete)
        result = tracer.run_forward(model, forward_args, forward_kwargs)
        note_changes(tracer)
        return result

    while True:
        try:
            found = Traced(*Carrier(make, forward, Places(model)).traced())
        except Again as again:  # once for each file of the user's at most
            scopes.append(again.scope)
            continue
        except NewPart as new:
            parts.learn(new)
            continue
        if not free_numbers or agrees(made[-1], found.graph_module, args, {**kwargs, **concrete}):
            return found
        free_numbers = False
