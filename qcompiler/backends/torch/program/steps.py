"""The calls of a compiled program as steps that run one by one, for debug."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from qcompiler.backends.native.watched_steps import WatchedRegion
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.once import quantized_engine, run_once
from qcompiler.backends.torch.program.program import Call, Program
from qcompiler.backends.torch.program.values import Const, Scale, ZeroPoint
from qcompiler.executable.steps import Env, Step, Steps, Weight, bind_arguments, read_input, state_of_call
from qcompiler.executable.tensors import find
from qcompiler.ir.nested import Ref, rewrite

PACKS = "runtime.prepack_"
Resolve = Callable[[str], Callable[..., Any]]


def steps_of_program(module: nn.Module, program: Program, engine: str, qparams: tuple[list[float], list[int]], resolve: Resolve) -> Steps:
    """The calls of a program, on packs made of the module's tensors as they are now. `resolve`: the function of an operation."""
    scales, zero_points = qparams
    with quantized_engine(engine):
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
            function = _callable(module, call, resolve)
            spared = getattr(function, "writes", None)  # a kernel that uses an operand's memory: here the value is still looked at
            args = tuple(arg.clone() if i == spared else arg for i, arg in enumerate(args))
            return function(*args[call.leaf is not None :], **kwargs)

        state = state_of_call(registry.resolve(call.op)) if call.op.startswith("ops.") else ""
        return Step(name, "call", call.op, inputs, call.origin, run, path, line, writes, None, rounds, weight, state)

    inputs = [Step(i.name, "input", "input", (), (i.name,), read_input(i.name)) for i in program.inputs]

    regions: dict[str, WatchedRegion] = {}

    def steps_of(call: Call, number: int) -> list[Step]:
        """Behind the run of a native region stand the values inside of it."""
        made = step(call, number)
        if call.op == "operator.getitem" and made.inputs and made.inputs[0] in regions:
            return [regions[made.inputs[0]].handed_out(made, call.args[1])]
        if call.op != registry.RUN_REGION:
            return [made]
        region, given = call.args
        regions[made.name] = WatchedRegion(packs[region.name], [ref.name for ref in given])
        return regions[made.name].steps(made, lambda env: rewrite(given, value(env)))

    steps = (*inputs, *(one for number, call in enumerate(program.calls) for one in steps_of(call, number)))
    names, defaults = [i.name for i in program.inputs], {i.name: i.default for i in program.inputs if i.optional}
    held = {path: find(module, path) for path in program.states}
    return Steps(steps, program.output, lambda args, kwargs: bind_arguments(names, defaults, args, kwargs), held)


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
