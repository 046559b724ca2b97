"""The calls of a compiled program as steps that run one by one, for debug."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from qcompiler.backends.native.watched_steps import WatchedRegion, WatchedRegions
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.once import quantized_engine, run_once
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import Call
from qcompiler.backends.torch.program.values import Const, Scale, ZeroPoint
from qcompiler.executable.noted import LARGEST
from qcompiler.executable.steps import Env, Step, Steps, Weight, bind_arguments, read_input, state_of_call
from qcompiler.executable.tensors import find
from qcompiler.ir.nested import Ref, rewrite
from qcompiler.ir.types import quant_of

PACKS = "runtime.prepack_"
Resolve = Callable[[str], Callable[..., Any]]


def steps_of_program(module: nn.Module, program: Program, engine: str, qparams: tuple[list[float], list[int]], resolve: Resolve) -> Steps:
    """The calls of a program, on packs made of the module's tensors as they are now. `resolve`: the function of an operation."""
    with quantized_engine(engine):
        packs = run_once(program, lambda path: find(module, path), qparams)
    weights = {call.out: _pack_weight(module, call) for call in program.once if call.out}
    watched = WatchedRegions({i.name for i in program.inputs} | {call.out for call in program.calls if call.out})
    running = _Running(module, resolve, qparams, packs, weights, module.__dict__.get(LARGEST, {}), watched)
    inputs = [Step(i.name, "input", "input", (), (i.name,), read_input(i.name)) for i in program.inputs]
    calls = [step for number, call in enumerate(program.calls) for step in running.steps(call, number)]
    names, defaults = [i.name for i in program.inputs], {i.name: i.default for i in program.inputs if i.optional}
    held = {path: find(module, path) for path in program.states}
    return Steps((*inputs, *calls), program.output, lambda args, kwargs: bind_arguments(names, defaults, args, kwargs), held)


def largest_codes(lowered: fx.GraphModule) -> dict[str, int]:
    """Of the values whose ranges have 7 bits."""
    found = {n.name: quant_of(n).qparams for n in lowered.graph.nodes}
    return {name: qparams.quant_max for name, qparams in found.items() if qparams is not None and qparams.quant_max < 255}


@dataclass(frozen=True)
class _Running:
    """What the calls of a program run on: the module's tensors, the packs made of them by name, and the weights that packs hold."""

    module: nn.Module
    resolve: Resolve
    qparams: tuple[list[float], list[int]]
    packs: Mapping[str, Any]
    weights: Mapping[str, Weight | None]
    most: Mapping[str, int]
    watched: WatchedRegions

    def steps(self, call: Call, number: int) -> list[Step]:
        """The step of a call; behind the run of a native region stand the values inside of it."""
        made = self._step(call, number)
        if call.op == "operator.getitem":
            return [self.watched.handed_out(made, call.args[1])]
        if call.op != registry.RUN_REGION:
            return [made]
        region, given = call.args
        inputs = [ref.name for ref in given]
        return self.watched.steps(made, WatchedRegion(self.packs[region.name], inputs), lambda env: rewrite(given, self._value(env)))

    def _step(self, call: Call, number: int) -> Step:
        refs = dict.fromkeys(v.name for v in call.values() if isinstance(v, Ref))
        inputs = tuple(name for name in refs if name not in self.packs)
        place, _, line = call.comment.rpartition(" ")
        return Step(
            call.out or f"call_{number}", "call", call.op, inputs, call.origin, lambda env: self._run(call, env),
            module_path="" if place.startswith("(") else place.partition(" ")[0],
            location=line,
            writes=inputs[0] if call.op == "operator.setitem" or _is_inplace(call.op) else None,
            rounds="dequantize" if call.op.endswith((".dequantize", "aten::dequantize.self")) else "",
            most=self.most.get(call.out or "", 255),
            weight=next((self.weights[name] for name in refs if self.weights.get(name) is not None), None),
            state=state_of_call(registry.resolve(call.op)) if call.op.startswith("ops.") else "",
        )  # fmt: skip

    def _run(self, call: Call, env: Env) -> Any:
        args, kwargs = rewrite((call.args, call.kwargs), self._value(env))
        function = _callable(self.module, call, self.resolve)
        spared = getattr(function, "writes", None)  # a kernel that uses an operand's memory: here the value is still looked at
        args = tuple(arg.clone() if i == spared else arg for i, arg in enumerate(args))
        return function(*args[call.leaf is not None :], **kwargs)

    def _value(self, env: Env) -> Callable[[Any], Any]:
        scales, zero_points = self.qparams

        def one(v: Any) -> Any:
            if isinstance(v, Ref):
                return self.packs[v.name] if v.name in self.packs else env[v.name]
            if isinstance(v, Const):
                return find(self.module, v.name)
            if isinstance(v, Scale):
                return scales[v.index]
            return zero_points[v.index] if isinstance(v, ZeroPoint) else v

        return one


def _is_inplace(op: str) -> bool:
    name = op.removeprefix(registry.METHOD)
    return op.startswith(registry.METHOD) and name.endswith("_") and not name.endswith("__")


def _callable(module: nn.Module, call: Call, resolve: Resolve) -> Callable[..., Any]:
    if call.op == registry.SUBMODULE:
        return lambda: module.get_submodule(str(call.leaf))
    if call.leaf is not None:
        return module.get_submodule(call.leaf)
    if call.op.startswith(registry.METHOD):
        return getattr(Tensor, call.op.removeprefix(registry.METHOD))  # type: ignore[no-any-return]
    if call.op.startswith((registry.EXTERNAL, registry.RECORD)):
        return resolve(call.op)
    return registry.resolve(call.op)


def _pack_weight(module: nn.Module, call: Call) -> Weight | None:
    if not call.op.startswith(PACKS) and call.op != "runtime.float_weight":
        return None
    names, consts = registry.parameter_names(call.op), [v for v in call.args[:3] if isinstance(v, Const)]
    axis = call.args[names.index("axis")] if "axis" in names else None  # a recurrent cell packs two weights: none is the weight
    if len(consts) != 3 or not isinstance(axis, int):
        return None
    values, scale, zero_point = (find(module, v.name) for v in consts)
    return Weight(values, scale, zero_point, None if axis < 0 else axis)
