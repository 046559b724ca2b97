"""A quantized graph or program as a list of steps that run one by one, each knowing which node of the float model it computes.

A step's value may be a quantized tensor (quint8), integers of the QUANTIZED stage (with their qparams in the step) or floats;
`real` gives the floats of any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, fx

from qcompiler.codegen import registry
from qcompiler.codegen.module import CompiledModule
from qcompiler.codegen.once import quantized_engine, run_once
from qcompiler.codegen.program import Call
from qcompiler.codegen.states import states_kept
from qcompiler.codegen.tensors import find
from qcompiler.codegen.values import Const, Ref, Scale, ZeroPoint, rewrite, walk
from qcompiler.errors import InputError
from qcompiler.ir.attributes import attribute
from qcompiler.ir.text import format_target
from qcompiler.ir.types import source_of
from qcompiler.observers.watch import Watch
from qcompiler.ops.arguments import changes
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize
from qcompiler.ops.state_nodes import READS, WRITES, held_names

Env = dict[str, Any]
Grid = tuple[float, int, int, int]  # scale, zero point, smallest and largest integer
PACKS = "runtime.prepack_"


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
    keeps between calls.
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


@dataclass(frozen=True)
class Steps:
    """The steps in order, and where the result of forward is found. `bind` puts the arguments of one call into an env. `held`: the
    tensors that hold what the model keeps between calls."""

    steps: tuple[Step, ...]
    output: Any
    bind: Callable[[tuple[Any, ...], Mapping[str, Any]], Env]
    held: tuple[Tensor, ...] = ()

    def kept(self) -> AbstractContextManager[None]:
        """Brings back in the end what the model keeps now."""
        return states_kept(self.held)

    def results(self) -> set[str]:
        return {v.name for v in walk(self.output) if isinstance(v, Ref)}


def real(value: Any) -> Any:
    """A value with its quantized tensors dequantized."""
    if isinstance(value, Tensor):
        return value.dequantize() if value.is_quantized else value
    if isinstance(value, (tuple, list)):
        return [real(v) for v in value]
    return value


def _bind(names: list[str], defaults: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Env:
    given = dict(defaults) | dict(zip(names, args, strict=False)) | dict(kwargs)
    missing, unknown = [n for n in names if n not in given], [n for n in kwargs if n not in names]
    if missing or unknown or len(args) > len(names):
        raise InputError(f"the quantized model takes ({', '.join(names)}), got {len(args)} positional and {sorted(kwargs) or 'no'} named",
                         code="inputs")  # fmt: skip
    return given


def steps_of_graph(gm: fx.GraphModule) -> Steps:
    """The steps of an fx graph of any stage; it must stay as it is while they are used."""
    nodes = [n for n in gm.graph.nodes if n.op != "output"]
    inputs = [n for n in nodes if n.op == "placeholder"]
    defaults = {n.name: n.args[0] for n in inputs if n.args}
    spelled = {str(n.target).lstrip("*"): n.name for n in inputs}
    result = next(n for n in gm.graph.nodes if n.op == "output").args[0]

    def bind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Env:
        return _bind([n.name for n in inputs], defaults, args, {spelled.get(k, k): v for k, v in kwargs.items()})

    output: Any = fx.node.map_arg(result, lambda n: Ref(n.name))  # type: ignore[arg-type, return-value]
    held = tuple(attribute(gm, name) for name in held_names(gm))
    return Steps(tuple(_graph_step(gm, n) for n in nodes), output, bind, held)


def _graph_step(gm: fx.GraphModule, node: fx.Node) -> Step:
    kind = {"placeholder": "input", "get_attr": "constant"}.get(node.op, "call")
    writes = node.args[0].name if node.args and isinstance(node.args[0], fx.Node) and changes(node, node.args[0]) else None
    source, args = source_of(node), node.args
    grid = tuple(args[1:5]) if node.target is quantize else None
    rounds = "quantize" if node.target is quantize else "dequantize" if node.target is dequantize else ""
    op = format_target(node.target) if node.op != "call_module" else type(gm.get_submodule(str(node.target))).__name__
    origin = source.origin or (node.name,)
    if kind == "input":
        origin = (*origin, str(node.target).lstrip("*"))  # programs know an argument by the user's name alone
    return Step(
        node.name, kind, op, tuple(n.name for n in node.all_input_nodes), origin, _graph_run(gm, node),
        source.module_path, source.location or "", writes, grid, rounds, _graph_weight(gm, node),  # type: ignore[arg-type]
        _state(node.target),
    )  # fmt: skip


def _graph_weight(gm: fx.GraphModule, node: fx.Node) -> Weight | None:
    made = next((n for n in node.all_input_nodes if n.target is dequantize_weight), None)
    if made is None:
        return None
    values, scale, zero_point = (attrgetter(str(n.target))(gm) for n in made.args[:3])  # type: ignore[union-attr]
    return Weight(values, scale, zero_point, made.args[3])  # type: ignore[arg-type]


def _graph_run(gm: fx.GraphModule, node: fx.Node) -> Callable[[Env], Any]:
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
        return args[0] if isinstance(target, Watch) else target(*args, **kwargs)  # what is measured here is no calibration data

    return run


def steps_of_module(module: CompiledModule) -> Steps:
    """The steps of a compiled or loaded module: the calls of its program, on packs made of the module's tensors as they are now."""
    program = module.program
    scales, zero_points = module._qparams()
    with quantized_engine(module.engine):
        packs = run_once(program, lambda path: find(module, path), scales, zero_points)
    weights = {call.out: _pack_weight(module, call) for call in program.once}

    def value(env: Env) -> Callable[[Any], Any]:
        def one(v: Any) -> Any:
            if isinstance(v, Ref):
                return packs[v.name] if v.name in packs else env[v.name]
            if isinstance(v, Const):
                return find(module, v.name)
            if isinstance(v, Scale):
                return scales[v.index]
            return zero_points[v.index] if isinstance(v, ZeroPoint) else v

        return one

    def step(call: Call, number: int) -> Step:
        refs = dict.fromkeys(v.name for v in call.values() if isinstance(v, Ref))
        weight = next((weights[name] for name in refs if weights.get(name) is not None), None)
        name = call.out or f"call_{number}"
        inputs = tuple(name for name in refs if name not in packs)
        writes = inputs[0] if call.op == "operator.setitem" or _is_inplace(call.op) else None
        place, _, line = call.comment.rpartition(" ")
        path = "" if place.startswith("(") else place.partition(" ")[0]
        rounds = "dequantize" if call.op.endswith((".dequantize", "aten::dequantize.self")) else ""

        def run(env: Env) -> Any:
            args, kwargs = rewrite((call.args, call.kwargs), value(env))
            function = _callable(module, call)
            spared = getattr(function, "writes", None)  # a kernel that uses an operand's memory: here the value is still looked at
            args = tuple(arg.clone() if i == spared else arg for i, arg in enumerate(args))
            return function(*args[call.leaf is not None :], **kwargs)

        state = _state(registry.resolve(call.op)) if call.op.startswith("ops.") else ""
        return Step(name, "call", call.op, inputs, call.origin, run, path, line, writes, None, rounds, weight, state)

    inputs = [Step(i.name, "input", "input", (), (i.name,), _reads(i.name)) for i in program.inputs]
    steps = (*inputs, *(step(call, number) for number, call in enumerate(program.calls)))
    names, defaults = [i.name for i in program.inputs], {i.name: i.default for i in program.inputs if i.optional}
    held = tuple(find(module, path) for path in program.states)
    return Steps(steps, program.output, lambda args, kwargs: _bind(names, defaults, args, kwargs), held)


def _state(function: Any) -> Literal["", "read", "write"]:
    return "read" if function in READS else "write" if function in WRITES else ""


def _reads(name: str) -> Callable[[Env], Any]:
    return lambda env: env[name]


def _is_inplace(op: str) -> bool:
    name = op.removeprefix(registry.METHOD)
    return op.startswith(registry.METHOD) and name.endswith("_") and not name.endswith("__")


def _callable(module: CompiledModule, call: Call) -> Callable[..., Any]:
    if call.op == registry.SUBMODULE:
        return lambda: module.get_submodule(str(call.leaf))
    if call.leaf is not None:
        return module.get_submodule(call.leaf)
    if call.op.startswith(registry.METHOD):
        return getattr(Tensor, call.op.removeprefix(registry.METHOD))  # type: ignore[no-any-return]
    if call.op.startswith(registry.EXTERNAL):
        return module.__dict__["_externals"][call.op.removeprefix(registry.EXTERNAL)]  # type: ignore[no-any-return]
    if call.op.startswith(registry.RECORD):
        return module._resolve(call.op)  # type: ignore[no-any-return]
    return registry.resolve(call.op)


def _pack_weight(module: CompiledModule, call: Call) -> Weight | None:
    if not call.op.startswith(PACKS) and call.op != "runtime.float_weight":
        return None
    names, consts = registry.parameter_names(call.op), [v for v in call.args[:3] if isinstance(v, Const)]
    axis = call.args[names.index("axis")] if "axis" in names else None  # a recurrent cell packs two weights: none is the weight
    if len(consts) != 3 or not isinstance(axis, int):
        return None
    values, scale, zero_point = (find(module, v.name) for v in consts)
    return Weight(values, scale, zero_point, None if axis < 0 else axis)


def grid_of(step: Step, value: Any) -> Grid | None:
    """Scale, zero point, smallest and largest code of a step's value; None for floats and per-channel tensors."""
    if isinstance(value, Tensor) and value.is_quantized and value.qscheme() == torch.per_tensor_affine:
        return value.q_scale(), value.q_zero_point(), 0, 255
    return step.grid
