"""A quantized graph or program as a list of steps that run one by one, each knowing which node of the float model it computes.

A step's value may be a quantized tensor (quint8), integers of the QUANTIZED stage (with their qparams in the step) or floats;
`real` gives the floats of any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, fx

from qcompiler.errors import InputError
from qcompiler.executable.states import states_kept
from qcompiler.ir.attributes import attribute
from qcompiler.ir.nested import Ref, rewrite, walk
from qcompiler.ir.text import format_target
from qcompiler.ir.types import source_of
from qcompiler.observers.watch import Watch
from qcompiler.ops.arguments import asks_size, changes
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize
from qcompiler.ops.state_nodes import READS, WRITES, held_names

Env = dict[str, Any]
Grid = tuple[float, int, int, int]  # scale, zero point, smallest and largest integer


@dataclass(frozen=True)
class Weight:
    """An int8 parameter as a step uses it; `axis` is the channel axis, None where it is quantized per tensor."""

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None


@dataclass(frozen=True)
class Step:
    """One value: `run(env)` computes it from the values of `inputs`. `kind`: input, constant or call.

    `origin`: the traced nodes that were fused into it. `writes`: the input whose value it changes in place.
    `grid`: where the step's values are integers that do not know their scale. `state`: whether it reads or writes what the model
    keeps between calls. `is_past`: the value was computed in one go with what is computed from it, so nothing can be put in its place.
    `takes`: what the run reads beside `inputs`, and what it computes does not depend on as a whole.
    """

    name: str
    kind: str
    op: str
    inputs: tuple[str, ...]
    origin: tuple[str, ...]
    run: Callable[[Env], Any]
    module_path: str = ""
    location: str = ""
    writes: str | None = None
    grid: Grid | None = None
    rounds: str = ""  # "quantize" or "dequantize": the step changes how a value is held, not what it is
    weight: Weight | None = None
    state: Literal["", "read", "write"] = ""
    most: int = 255  # the largest code of its range: 127 where that has 7 bits, though a kernel gives larger ones beyond it
    is_past: bool = False
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Steps:
    """The steps in order, and where the result of forward is found. `bind` puts the arguments of one call into an env. `held`: the
    tensors that hold what the model keeps between calls, by their names."""

    steps: tuple[Step, ...]
    output: Any
    bind: Callable[[tuple[Any, ...], Mapping[str, Any]], Env]
    held: Mapping[str, Tensor] = field(default_factory=dict)

    def kept(self) -> AbstractContextManager[None]:
        """Brings back in the end what the model keeps now."""
        return states_kept(self.held.values())

    def result(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What one call gives, all steps run in order."""
        env = self.bind(args, kwargs)
        for step in self.steps:
            env[step.name] = step.run(env)
        return rewrite(self.output, lambda v: env[v.name] if isinstance(v, Ref) else v)

    def results(self) -> set[str]:
        return {v.name for v in walk(self.output) if isinstance(v, Ref)}


def quantizes(target: object) -> bool:
    """Whether a call target turns floats into integers: quantize, torch's own, or a function of a back end with `quantizes = True`."""
    return target in (quantize, torch.quantize_per_tensor) or getattr(target, "quantizes", False) is True


def real(value: object) -> Any:
    """A value with its quantized tensors dequantized."""
    if isinstance(value, Tensor):
        return value.dequantize() if value.is_quantized else value
    if isinstance(value, (tuple, list)):
        return [real(v) for v in value]
    return value


def bind_arguments(names: list[str], defaults: Mapping[str, object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> Env:
    given = dict(defaults) | dict(zip(names, args, strict=False)) | dict(kwargs)
    missing, unknown = [n for n in names if n not in given], [n for n in kwargs if n not in names]
    if missing or unknown or len(args) > len(names):
        raise InputError(f"the quantized model takes ({', '.join(names)}), got {len(args)} positional and {sorted(kwargs) or 'no'} named",
                         code="inputs")  # fmt: skip
    return given


def steps_of_graph(gm: fx.GraphModule, rounds: bool = False) -> Steps:
    """The steps of an fx graph of any stage; it must stay as it is while they are used. `rounds`: those of fake quantization do."""
    nodes = [n for n in gm.graph.nodes if n.op != "output"]
    inputs = [n for n in nodes if n.op == "placeholder"]
    defaults = {n.name: n.args[0] for n in inputs if n.args}
    spelled = {str(n.target).lstrip("*"): n.name for n in inputs}
    result = next(n for n in gm.graph.nodes if n.op == "output").args[0]

    def bind(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Env:
        return bind_arguments([n.name for n in inputs], defaults, args, {spelled.get(k, k): v for k, v in kwargs.items()})

    output: Any = fx.node.map_arg(result, lambda n: Ref(n.name))  # type: ignore[arg-type, return-value]
    held = {name: attribute(gm, name) for name in held_names(gm)}
    return Steps(tuple(_graph_step(gm, n, rounds) for n in nodes), output, bind, held)


def _graph_step(gm: fx.GraphModule, node: fx.Node, rounds_fake: bool) -> Step:
    kind = {"placeholder": "input", "get_attr": "constant"}.get(node.op, "call")
    writes = node.args[0].name if node.args and isinstance(node.args[0], fx.Node) and changes(node, node.args[0]) else None
    source, args = source_of(node), node.args
    grid = tuple(args[1:5]) if node.target is quantize else None
    rounds = "quantize" if node.target is quantize else "dequantize" if node.target is dequantize else ""
    op = format_target(node.target) if node.op != "call_module" else type(gm.get_submodule(str(node.target))).__name__
    origin = source.origin or (node.name,)
    if kind == "input":
        origin = (*origin, str(node.target).lstrip("*"))  # programs know an argument by the user's name alone
    read = tuple(n.name for n in node.all_input_nodes)
    inputs, takes = ((), read) if asks_size(node) else (read, ())  # a size follows from no values
    return Step(
        node.name, kind, op, inputs, origin, _graph_run(gm, node, rounds_fake),
        source.module_path, source.location or "", writes, grid, rounds, _graph_weight(gm, node),  # type: ignore[arg-type]
        state=state_of_call(node.target), takes=takes,
    )  # fmt: skip


def _graph_weight(gm: fx.GraphModule, node: fx.Node) -> Weight | None:
    made = next((n for n in node.all_input_nodes if n.target is dequantize_weight), None)
    if made is None:
        return None
    values, scale, zero_point = (attrgetter(str(n.target))(gm) for n in made.args[:3])  # type: ignore[union-attr]
    return Weight(values, scale, zero_point, made.args[3])  # type: ignore[arg-type]


def _graph_run(gm: fx.GraphModule, node: fx.Node, rounds: bool) -> Callable[[Env], object]:
    if node.op == "placeholder":
        return lambda env: env[node.name]
    if node.op == "get_attr":
        return lambda env: attrgetter(str(node.target))(gm)

    def arguments(env: Env) -> tuple[Any, dict[str, Any]]:
        return fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: env[n.name])  # type: ignore[return-value]

    def run(env: Env) -> Any:
        args, kwargs = arguments(env)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = gm.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        passes_on = isinstance(target, Watch) and not (rounds and target.rounds)  # what is measured here is no calibration data
        return args[0] if passes_on else target(*args, **kwargs)

    return run


def state_of_call(function: object) -> Literal["", "read", "write"]:
    return "read" if function in READS else "write" if function in WRITES else ""


def read_input(name: str) -> Callable[[Env], object]:
    return lambda env: env[name]


def grid_of(step: Step, value: object) -> Grid | None:
    """Scale, zero point, smallest and largest code of a step's value; None for floats and per-channel tensors."""
    if isinstance(value, Tensor) and value.is_quantized and value.qscheme() == torch.per_tensor_affine:
        return value.q_scale(), value.q_zero_point(), 0, 255
    return step.grid
