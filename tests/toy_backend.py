"""A back end for the tests: a program of plain data that names canonical ops, interpreted in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler.backends import Backend, Model, Stored, register, unregister
from qcompiler.compile.pass_manager import Context
from qcompiler.debug.nodes import short_file
from qcompiler.errors import ArtifactError, ConfigError
from qcompiler.executable import Executable, Payload
from qcompiler.executable.arguments import Argument, form_of
from qcompiler.executable.form_data import form_from_data, form_to_data
from qcompiler.executable.steps import Env, Step, Steps, Weight, bind_arguments
from qcompiler.executable.tensors import find, is_path
from qcompiler.files.values import from_json, to_json
from qcompiler.ir.attributes import attribute
from qcompiler.ir.names import user_path
from qcompiler.ir.nested import Ref, rewrite, walk
from qcompiler.ir.types import Stage, quant_of, source_of, value_of
from qcompiler.ops import reference
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Op
from qcompiler.ops.table import OPS
from qcompiler.target import Neutral
from qcompiler.trace.guards import GUARDS

REFERENCE = ("quantize", "dequantize", "dequantize_weight", "dynamic_quantize_dequantize", "widen")
FUNCTIONS: dict[str, Callable[..., Any]] = {name: row.fn for name, row in OPS.rows.items()}
FUNCTIONS |= {f"reference.{name}": getattr(reference, name) for name in REFERENCE} | {f"guard.{g.__name__}": g for g in GUARDS}
NAMES = {function: name for name, function in reversed(FUNCTIONS.items())}


@dataclass(frozen=True)
class ToyTarget(Neutral):
    """No int8 tanh, and none that hands out floats."""

    isa: str = "toy"

    @property
    def backend(self) -> str:
        return "toy"

    @property
    def settings(self) -> Mapping[str, str]:
        return {"isa": self.isa}

    def refuses(self, row: Op, node: fx.Node) -> Obstacle | None:
        return Obstacle("no-kernel", "no toy has a tanh") if row.name == "tanh" else None

    def gives_floats(self, row: Op, node: fx.Node) -> bool:
        return False


@dataclass(frozen=True)
class LeaveSigmoidFloat:
    """What a back end finds out when it lowers: this op has no kernel after all."""

    name: str = "leave_sigmoid_float"
    stage: Stage = Stage.QUANTIZED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        found = [n for n in gm.graph.nodes if n.target is torch.sigmoid and quant_of(n).int8]
        for node in found:
            context.keep_float(self.name, node, Obstacle("no-kernel", "a toy's sigmoid is float"))
        return bool(found)


@dataclass(frozen=True)
class Breaks(LeaveSigmoidFloat):
    """A pass of a back end that fails."""

    name: str = "breaks"

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        raise KeyError("a toy breaks")


@dataclass(frozen=True)
class Instruction:
    """One value of the program. `kind`: input, constant or call; `op`: what computes it, the path of a tensor, or the argument's name."""

    name: str
    kind: str
    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    origin: tuple[str, ...] = ()
    path: str = ""
    line: str = ""
    form: Any = None

    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(v.name for v in walk([self.args, dict(self.kwargs)]) if isinstance(v, Ref)))

    def to_data(self) -> dict[str, Any]:
        form = form_to_data(self.form) if self.form is not None else None
        plain = {"name": self.name, "kind": self.kind, "op": self.op, "path": self.path, "line": self.line, "form": form}
        return {**plain, "origin": list(self.origin), "args": to_json(self.args, _ref), "kwargs": to_json(dict(self.kwargs), _ref)}

    @staticmethod
    def from_data(data: Any) -> Instruction:
        args, kwargs = from_json(data["args"], {"ref": Ref}), from_json(data["kwargs"], {"ref": Ref})
        form = form_from_data(data["form"]) if data["form"] is not None else None
        return Instruction(data["name"], data["kind"], data["op"], args, kwargs, tuple(data["origin"]), data["path"], data["line"], form)


def _ref(value: Any) -> Any:
    return {"ref": value.name} if isinstance(value, Ref) else None


class ToyModule(Executable):
    """Runs instructions one by one on the tensors that it holds under the user's names."""

    _backend = "toy"

    def __init__(self, title: str, program: tuple[Instruction, ...], output: Any) -> None:
        super().__init__()
        self._program, self._output, self._name = program, output, title
        self.eval()

    def hold(self, path: str, value: Tensor) -> None:
        """A buffer under a dotted name."""
        owner: nn.Module = self
        *parts, last = path.split(".")
        for part in parts:
            owner = owner._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        owner.register_buffer(last, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        steps = self._steps()
        env = steps.bind(args, kwargs)
        for step in steps.steps:
            env[step.name] = step.run(env)
        return rewrite(steps.output, lambda v: env[v.name] if isinstance(v, Ref) else v)

    def _title(self) -> str:
        return self._name

    def _arguments(self) -> tuple[Argument, ...]:
        inputs = [i for i in self._program if i.kind == "input"]
        return tuple(Argument(i.op, i.form, bool(i.args), i.args[0] if i.args else None) for i in inputs)

    def _steps(self) -> Steps:
        names, defaults = [a.name for a in self._arguments()], {a.name: a.default for a in self._arguments() if a.optional}
        nodes = {i.op: i.name for i in self._program if i.kind == "input"}

        def bind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Env:
            return {nodes[name]: value for name, value in bind_arguments(names, defaults, args, kwargs).items()}

        return Steps(tuple(map(self._step, self._program)), self._output, bind)

    def _step(self, i: Instruction) -> Step:
        def run(env: Env) -> Any:
            if i.kind != "call":
                return env[i.name] if i.kind == "input" else find(self, i.op)
            args, kwargs = rewrite((i.args, dict(i.kwargs)), lambda v: env[v.name] if isinstance(v, Ref) else v)
            return FUNCTIONS[i.op](*args, **kwargs)

        grid = tuple(i.args[1:5]) if i.op == "reference.quantize" else None
        rounds = i.op.removeprefix("reference.") if i.op in ("reference.quantize", "reference.dequantize") else ""
        return Step(i.name, i.kind, i.op, i.inputs(), i.origin, run, i.path, i.line, None, grid, rounds, self._weight(i))

    def _weight(self, i: Instruction) -> Weight | None:
        made = next((by for by in self._program if by.name in i.inputs() and by.op == "reference.dequantize_weight"), None)
        if made is None:
            return None
        paths = [next(by.op for by in self._program if by.name == ref.name) for ref in made.args[:3]]
        return Weight(*(find(self, path) for path in paths), made.args[3])  # type: ignore[call-arg]

    def _nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = []
        for i in (*self._program, Instruction("output", "output", "output", (self._output,), {})):
            kind = {"constant": "attr", "call": "float"}.get(i.kind, i.kind)
            file, _, line = i.line.rpartition(":")
            place = {"path": i.path, "file": short_file(file), "line": int(line)} if file else {}
            nodes.append({"name": i.name, "after": nodes[-1]["name"] if nodes else None, "in": list(i.inputs()), "op": i.op, "kind": kind,
                          "origin": list(i.origin) or [i.name], "text": f"%{i.name} = {i.op}", **place})  # fmt: skip
        return nodes

    def _payload(self) -> Payload:
        return Payload({"toy": [i.to_data() for i in self._program], "result": to_json(self._output, _ref), "title": self._name})

    def _own_attributes(self) -> frozenset[str]:
        return super()._own_attributes() | {"_program", "_output", "_name"}


def build(gm: fx.GraphModule, model: Model) -> ToyModule:
    """Raises ConfigError for what a toy cannot hold."""
    program = tuple(_instruction(gm, node) for node in gm.graph.nodes if node.op != "output")
    result = next(node for node in gm.graph.nodes if node.op == "output").args[0]
    made = ToyModule(model.name, program, _refs(result))
    for i in program:
        if i.kind == "constant":
            made.hold(i.op, attribute(gm, next(str(n.target) for n in gm.graph.nodes if n.name == i.name)).detach().clone())
    for name, value in model.attributes.items():
        if not hasattr(made, name):
            setattr(made, name, value)
    return made


def _refs(value: Any) -> Any:
    return fx.node.map_arg(value, lambda n: Ref(n.name))  # type: ignore[arg-type, return-value]


def _instruction(gm: fx.GraphModule, node: fx.Node) -> Instruction:
    source, value = source_of(node), value_of(node)
    place = (source.origin or (node.name,), source.module_path, source.location or "")
    if node.op == "placeholder":
        form = form_of(value.form, str(value.dtype).removeprefix("torch."), value.shape)
        return Instruction(node.name, "input", str(node.target), node.args, {}, *place, form)
    if node.op == "get_attr":
        return Instruction(node.name, "constant", user_path(gm, str(node.target)), (), {}, *place)
    name = NAMES.get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
    if name is None:
        raise ConfigError(f"no toy can do {node.target}", code="toy")
    return Instruction(node.name, "call", name, _refs(tuple(node.args)), _refs(dict(node.kwargs)), *place)


def load(stored: Stored) -> ToyModule:
    """Raises ArtifactError for what no toy wrote."""
    try:
        program = tuple(Instruction.from_data(data) for data in stored.data["toy"])
        made = ToyModule(stored.data["title"], program, from_json(stored.data["result"], {"ref": Ref}))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"no program of a toy: {error!r:.100}", code="artifact-program") from error
    if not all(i.kind != "call" or i.op in FUNCTIONS for i in program):
        raise ArtifactError("a program with ops that no toy knows", code="artifact-program")
    for i in program:
        if i.kind == "constant" and is_path(i.op) and i.op in stored.tensors:
            made.hold(i.op, stored.tensors[i.op])
    return made


def target(engine: str | None, isa: str | None) -> ToyTarget:
    if engine is not None:
        raise ConfigError(f"a toy has no engine {engine!r:.40}", code="engine")
    return ToyTarget(isa or "toy")


BACKEND = Backend("toy", target, (LeaveSigmoidFloat(),), build, load)


@contextmanager
def registered() -> Iterator[None]:
    """The toy in the registry."""
    register("toy", "tests.toy_backend:BACKEND")
    try:
        yield
    finally:
        unregister("toy")
