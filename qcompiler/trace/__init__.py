"""Follows a model's forward with example values and writes down what it does as a graph.

Unlike torch.fx's symbolic tracer, every value is known while the model runs: branches on sizes and flags are followed and
held by guards, what cannot be followed stays a leaf module with a remark, and no in-place operation is left in the graph
but assignments into copies that the graph itself makes.

| what | files |
|---|---|
| the trace as a whole | session, forward, attempt, tracer, recording, finish, learned_parts, guards, reasons, refusals |
| what goes in and comes out | examples, inputs, opened, given_numbers, check_numbers, outputs, containers, nested |
| the stand-in for a value | proxy, truth, function_mode, results, pieces, operands, running |
| calls and modules | calls, special_calls, spelling, module_calls, leaf_calls, functions_of, mode, drop_paths, zero_states |
| what is read by name | attributes, parametrize |
| what is held fixed | holding, fixed_sizes, cuts, numbers, data_numbers |
| the user's text | places, syntax, rewritten, in_frame, called_from |
| conditions and loops on data | statements, regions, early_returns, either_way, hits, untouched |
| statements that run as they stand | float_parts, float_source, float_uses, float_arguments, float_function, float_results, opaque |
| changes in place, and shared memory | mutation, views, memory, sharing, relied, hold_relied, other_sizes |
| layouts | layouts, asking, questions, other_ways, numbered, float_operands |
| code that nobody follows | borrowed, watch |
| what is kept between calls | state, slots, find_slots, watched, carry, align, starts, state_reads, same |
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from qcompiler.errors import Where
from qcompiler.trace.carry import Carrier
from qcompiler.trace.check_numbers import agrees
from qcompiler.trace.forward import run_forward
from qcompiler.trace.guards import GUARDS, TraceRemark, guard, guard_bool, guard_float, guard_int, is_guard
from qcompiler.trace.inputs import open_inputs
from qcompiler.trace.learned_parts import NewPart, Parts
from qcompiler.trace.module_calls import TraceOptions
from qcompiler.trace.numbers import Again
from qcompiler.trace.opened import note_changes
from qcompiler.trace.parametrize import fold_parametrizations
from qcompiler.trace.recording import StandIns
from qcompiler.trace.state import Places
from qcompiler.trace.tracer import Tracer

__all__ = [
    "GUARDS", "TraceOptions", "TraceRemark", "Traced", "Where", "fold_parametrizations", "guard", "guard_bool", "guard_float", "guard_int",
    "is_guard", "trace",
]  # fmt: skip


@dataclass
class Traced:
    """A traced model (stage TRACED) and what there is to know about it: leaves and guards, in the order they were met."""

    graph_module: fx.GraphModule
    remarks: list[TraceRemark]


def trace(
    model: nn.Module, example_inputs: tuple[object, ...], example_kwargs: Mapping[str, object] | None = None, *, options: TraceOptions,
    concrete_args: Mapping[str, object] | None = None,
) -> Traced:  # fmt: skip
    """Trace a model on example inputs.

    `options` say which modules stay one call, and what is traced in the place of others. `concrete_args` gives arguments of forward
    that are baked in. The model, its state and the inputs are left as they were.

    Raises TraceError where the root's forward cannot be followed (with `options.strict`, where any module's cannot), InputError
    where the model does not run on the example inputs.
    """
    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    traces = _Traces(model, options, args, example_kwargs or {}, concrete_args or {})
    try:
        return traces.traced()
    finally:
        traces.end()


class _Traces:
    """The traces of one model: each begins anew with what the one before has found."""

    def __init__(
        self,
        model: nn.Module,
        options: TraceOptions,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        concrete: Mapping[str, object],
    ) -> None:
        self.model, self.options, self.args, self.kwargs, self.concrete = model, options, args, kwargs, concrete
        self.stand_ins: list[StandIns] = []
        self.free_numbers = True
        self.parts = Parts()
        self.last: Tracer | None = None
        self.made: list[weakref.ref[Tracer]] = []

    def make(self) -> Tracer:
        self.last = tracer = Tracer(self.model, self.options)
        self.made.append(weakref.ref(tracer))
        tracer.stand_ins, tracer.free_numbers, tracer.float_parts.parts = self.stand_ins, self.free_numbers, self.parts
        return tracer

    def forward(self, tracer: Tracer) -> object:
        args, kwargs = open_inputs(tracer, self.model, self.args, self.kwargs, self.concrete)
        result = run_forward(tracer, self.model, args, kwargs)
        note_changes(tracer)
        return result

    def traced(self) -> Traced:
        while True:
            try:
                found = Traced(*Carrier(self.make, self.forward, Places(self.model)).traced())
            except Again as again:  # for each file of the user's twice at most: for sizes, and for data
                self.stand_ins.append(again.needed)
                continue
            except NewPart as new:
                self.parts.learn(new)
                continue
            assert self.last is not None
            if not self.free_numbers or agrees(self.last, found.graph_module, self.args, {**self.kwargs, **self.concrete}):
                return found
            self.free_numbers = False

    def end(self) -> None:
        """A tracer and its parts refer to each other, and to the model: its weights would stay up to the next garbage collection."""
        for reference in self.made:
            if (tracer := reference()) is not None:
                vars(tracer).clear()
