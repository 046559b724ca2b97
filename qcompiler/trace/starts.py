"""How a state can start where the first call computes something else than later ones: proven by running both graphs.

`e = y if e is None else 0.9 * e + 0.1 * y` starts as y, `d = y if p is None else y - p` as zeros: with that start a later call
computes what the first does. Whether it does is seen on random inputs, for results and for all that is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from qcompiler.errors import QCompilerError
from qcompiler.ir.types import value_of
from qcompiler.ops.state_nodes import is_write
from qcompiler.trace.align import Aligned, Traces, common
from qcompiler.trace.guards import is_guard
from qcompiler.trace.slots import leaves
from qcompiler.trace.state import untouched
from qcompiler.trace.tracer import Tracer

_MOST = 4  # states without a start: each has two candidates
_TOLERANCE = 1e-5  # of the largest value: the order of float32 sums


def proven(first: Traces, later: Traces, tracers: tuple[Tracer, Tracer], open_states: list[str]) -> Aligned | None:
    """The starts with which a later call computes what the first does: what the first leaves there, or zeros of that shape."""
    if len(open_states) > _MOST or not all(isinstance(first.ends.get(name), fx.Node) for name in open_states):
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad(), untouched(tracers[0].model):
        try:
            inputs = _inputs(first.graph)
            others = {name: _random(value) for name, value in tracers[0].held.items()}
            expected = _values(tracers[0], first, inputs, others)
            for choice in itertools.product((False, True), repeat=len(open_states)):
                ends = {name: expected[name] for name in open_states}
                held = {name: torch.zeros_like(ends[name]) if zero else ends[name] for name, zero in zip(open_states, choice, strict=True)}
                if _agree(expected, _values(tracers[1], later, inputs, others | held)):
                    return _aligned(first, later, dict(zip(open_states, choice, strict=True)), tracers[0], others)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError, QCompilerError):
            return None  # no random inputs fit
    return None


def _aligned(first: Traces, later: Traces, zeros: dict[str, bool], tracer: Tracer, others: dict[str, torch.Tensor]) -> Aligned:
    found = Aligned(common(first, later))
    for name, zero in zeros.items():
        end = first.ends[name]
        if zero:
            made = first.graph.call_function(torch.zeros_like, (_of_same_shape(end, found, first, tracer, others),))
            made.meta = dict(end.meta)
            end = made
        found.starts[name] = end
    return found


def _of_same_shape(end: fx.Node, found: Aligned, first: Traces, tracer: Tracer, others: dict[str, torch.Tensor]) -> fx.Node:
    """A value that later calls compute anyway and that has the shape of another, whatever the sizes of the inputs; else that itself."""
    likely = [node for node in found.same if value_of(node) == value_of(end)]
    runs = 0
    for inputs in _other_sizes(_inputs(first.graph)):
        runner = _Runner(tracer, first, others)
        try:
            runner.run(*inputs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            continue  # a size that the weights fix
        runs += 1
        likely = [node for node in likely if runner.env[node].shape == runner.env[end].shape]
    return likely[0] if likely and runs else end


def _other_sizes(inputs: list[Any]) -> Iterator[list[object]]:
    """The inputs with one more of each dimension."""
    for dim in range(max((x.dim() for x in inputs if x is not None), default=0)):
        yield [torch.cat([x, x.narrow(dim, 0, 1)], dim) if x is not None and dim < x.dim() and x.shape[dim] else x for x in inputs]


def _inputs(graph: fx.Graph) -> list[Any]:
    """Random floats, integers of 0 and 1 (they may be indices), and None for what is no tensor."""
    torch.manual_seed(0)
    values = [value_of(node) for node in graph.nodes if node.op == "placeholder"]
    return [_random(torch.empty(v.shape, dtype=v.dtype)) if v.shape is not None else None for v in values]


def _random(value: torch.Tensor) -> torch.Tensor:
    if value.is_floating_point() or value.is_complex():
        return torch.randn(value.shape, dtype=value.dtype)
    return torch.randint(0, 2, value.shape).to(value.dtype)


def _values(tracer: Tracer, traces: Traces, inputs: list[Any], held: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The results and what is kept in the end, by name."""
    runner = _Runner(tracer, traces, held)
    result = runner.run(*inputs)
    ends = {name: runner.env[end] if isinstance(end, fx.Node) else end for name, end in traces.ends.items()}
    return {f"result{name}": value for name, value in leaves(result, "").items()} | ends


class _Runner(fx.Interpreter):
    def __init__(self, tracer: Tracer, traces: Traces, held: dict[str, torch.Tensor]) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=traces.graph)
        self.tracer, self.constants, self.held = tracer, traces.constants, held

    def run_node(self, n: fx.Node) -> object:
        return None if is_guard(n) or is_write(n) else super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> object:
        for values in (self.held, self.constants):
            if target in values:
                return values[target]
        return attrgetter(target)(self.tracer.model)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> object:
        module = self.tracer.leaf_calls.replacements.get(target) or self.tracer.model.get_submodule(target)
        return module(*args, **kwargs)


def _agree(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(_close(value, b[name]) for name, value in a.items())


def _close(a: object, b: object) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype or not a.numel():
        return a.shape == b.shape and a.dtype == b.dtype
    return bool((a.double() - b.double()).abs().max() <= _TOLERANCE * max(1e-30, float(a.double().abs().max())))
