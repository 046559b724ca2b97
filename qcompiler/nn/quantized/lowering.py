"""The graph of one quantized module: its op (or few) on quint8 inputs, emitted by the kernel table and compiled by codegen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.torch.kernels.table import Refused, select
from qcompiler.backends.torch.program.bind import bind
from qcompiler.backends.torch.program.build import Built, build
from qcompiler.backends.torch.program.emit import Emitted, Emitter
from qcompiler.backends.torch.program.once import quantized_engine, run_once
from qcompiler.backends.torch.program.script import attach_script, script_attributes
from qcompiler.backends.torch.program.spell import Dialect
from qcompiler.backends.torch.runtime.by_shape import PacksByShape
from qcompiler.backends.torch.site import VNNI, Emit, Operand, Site, Weight, host_isa
from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.types import VALUE, QParams, Value
from qcompiler.ops.spec import Output
from qcompiler.ops.table import OPS


class Lowering:
    """A LOWERED graph in the making. `input`, `constant` and `weight` give arguments for `call`."""

    def __init__(self, engine: str, ends: tuple[int, int] = (0, 255)) -> None:
        """`ends`: the codes between which results of their own qparams stay."""
        self.engine, self.ends = engine, ends
        self.saturates = False  # whether a kernel may overflow where its input has all codes of 0..255, whatever the weights are
        self.root, self.graph = nn.Module(), fx.Graph()
        self.graph.owning_module = self.root  # type: ignore[assignment]
        self.emit = Emit(self.graph, self.root)

    def input(self, name: str, rank: int | None) -> Operand:
        """A quint8 argument of forward; its qparams are known at each call only."""
        node = self.graph.placeholder(name)
        node.meta[VALUE] = Value(None if rank is None else (1,) * rank, torch.quint8)
        return Operand(node, None)

    def constant(self, name: str, value: Tensor | None) -> fx.Node | None:
        """A plain tensor of the module; None stays None."""
        return None if value is None else self.emit.constant(f"t_{name}", value)

    def weight(self, values: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Weight:
        """An int8 weight; `axis` None is per tensor."""
        names = ("weight", "weight_scale", "weight_zero_point")
        parts = [self.emit.constant(f"t_{name}", value) for name, value in zip(names, (values, scale, zero_point))]
        return Weight(parts[0], parts[1], parts[2], axis, tuple(values.shape))

    def call(self, op: str, *args: object, scale: float | None = None, zero_point: int = 0, **attributes: object) -> Operand:
        """One row of the op table on int8 operands, by the first kernel that takes it; attributes as in its canonical call.

        `scale` None: the op keeps its input's qparams. UnsupportedOpError where no kernel of the engine takes it.
        """
        row = OPS.rows[op]
        own = None if scale is None or row.output is Output.SAME else QParams(scale, zero_point, 0, 255, torch.uint8)
        output = own or (args[0].qparams if isinstance(args[0], Operand) else None) or QParams(1.0, 0, 0, 255, torch.uint8)
        site = Site(
            row, fx.Graph().call_function(row.fn), args, attributes, output, self.engine, host_isa(), self.ends if own else (0, 255)
        )
        kernel = select(site)
        if isinstance(kernel, Refused):
            raise UnsupportedOpError(f"no int8 kernel for {op} on {self.engine}: {kernel}", code="no-kernel")
        # With VNNI only pairs of taps may overflow, and weights for which they would are packed otherwise.
        self.saturates |= site.isa not in VNNI and kernel.saturates(site)
        return Operand(kernel.emit(site, self.emit), own)

    def program(self, result: Operand | fx.Node, title: str) -> Built:
        """The program that returns `result`."""
        self.graph.output(result.node if isinstance(result, Operand) else result)
        self.root.graph = self.graph  # type: ignore[assignment]  # all that build reads of a GraphModule; making one costs more than the rest
        return build(self.root, title)  # type: ignore[arg-type]


class ModuleEmitter(Emitter):
    """Source of a quantized module's forward. What it was not made for goes to the module's slow path and its answer is returned."""

    def __init__(self, built: Built, dialect: Dialect, engine: str, refused: str = "") -> None:
        super().__init__(built.program, built.scales, built.zero_points, dialect, built.program.by_shape(engine))
        self.refused = refused

    def checks(self) -> list[str]:
        names = [i.name for i in self.program.inputs]
        tensor, quint8 = self.named("Tensor", "Tensor"), self.named("quint8", "quint8")
        tests = [f"not isinstance({n}, {tensor}) or {n}.dtype is not {quint8}" for n in names]
        tests += [f"{names[0]}.{self.refused}"] if self.refused else []
        return [f"if {' or '.join(tests)}:", f"    return self._otherwise({', '.join(names)})"]

    def given(self) -> list[str]:
        """In TorchScript, which has no slow path: qint8 tensors become quint8 ones. onednn's kernels would take their codes as they are."""
        unsigned = self.callee("runtime.as_quint8")
        return [f"{i.name} = {unsigned}({i.name})" for i in self.program.inputs]

    def emit(self) -> Emitted:
        """With a handler around the kernels: it costs nothing until one raises, and checks of sizes would make torch.jit.trace warn."""
        emitted = super().emit()
        if self.dialect is not Dialect.BOUND:
            return emitted
        head, lines = emitted.source.splitlines()[:3], emitted.source.splitlines()[3:]
        names = ", ".join(i.name for i in self.program.inputs)
        handler = ["    except (RuntimeError, IndexError) as error:", f"        self._failed(error, {names})", "        raise"]
        return replace(emitted, source="\n".join([*head, "    try:", *(f"    {line}" for line in lines), *handler]) + "\n")

    def namespace(self, resolve: Callable[[str], object]) -> dict[str, object]:
        return super().namespace(resolve) | {name: torch.quint8 for key, name in self.globals.items() if key == "quint8"}


@dataclass(frozen=True)
class Compiled:
    """What a module needs to run: `forward(self, ...)`, and the packs and tensors that its TorchScript form reads from self.

    `forward.__wrapped__` is that form: torch.jit.script unwraps functions before it reads their source. `script` identifies it.
    """

    built: Built
    packs: Mapping[str, Any]
    by_shape: PacksByShape
    forward: Callable[..., object]
    attributes: Mapping[str, Any]
    source: str
    script: str
    saturates: bool


def compile_module(lowering: Lowering, result: Operand | fx.Node, title: str, refused: str, like: Sequence[Compiled] = ()) -> Compiled:
    """Packs and binds. `refused`: a test that the first input must not meet, as source behind its name.

    Packs are shared with a module in `like` that makes the same ones.
    """
    built = lowering.program(result, title)
    same = next((c for c in like if c.built.program.once == built.program.once), None)
    if same is not None:
        shared = same.packs
    else:
        with quantized_engine(lowering.engine):
            shared = run_once(built.program, built.tensors.__getitem__, (built.scales, built.zero_points))
    emitter = ModuleEmitter(built, Dialect.BOUND, lowering.engine, refused)
    bound = bind(emitter, shared, built.tensors.__getitem__, lowering.engine, like=None if same is None else same.by_shape)
    script = attach_script(bound).source
    attributes = script_attributes(emitter, shared, built.tensors.__getitem__)
    identity = hashlib.sha256(script.encode()).hexdigest()
    return Compiled(built, shared, bound.by_shape, bound.forward, attributes, bound.source, identity, lowering.saturates)
