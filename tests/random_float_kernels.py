"""Random calls of kernels that give floats: int8 linears that hand out sums, dynamic linears, tables of 8- and 4-bit rows.

Like random_kernels.py: a draw has the call that a site is compiled for and calls of other sizes. The oracle is float64 on the rounded
values, and each draw knows how far a kernel may be off.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler.backends.torch.bench.cases import Int8, activation, real, weight
from qcompiler.backends.torch.kernels import mode_kernels
from qcompiler.backends.torch.kernels.linear import saturates
from qcompiler.backends.torch.kernels.table import TO_FLOAT
from qcompiler.backends.torch.passes.lowering import FLOATS
from qcompiler.backends.torch.site import Emit, Kernel, Operand, Rounded, Site, Weight, host_isa
from qcompiler.ir.types import VALUE, Mode, QParams, Value
from qcompiler.ops.reference import SMALLEST_STEP, dynamic_quantize_dequantize, pack_4bit
from qcompiler.ops.table import OPS

FEATURES = (1, 2, 3, 7, 16, 37, 64)
INDICES = (torch.int64, torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True)
class FloatDraw:
    """`op` in a mode (None: int8 in, floats out) with its weight and settings; `calls` are its tensors, the example's first."""

    op: str
    mode: Mode | None
    weight: Int8
    bits: int
    bias: Tensor | None
    settings: dict[str, Any]
    calls: tuple[tuple[Tensor | None, ...], ...]
    reduced: bool = False  # activations have 7 bits, since the kernel sums in 16 on this machine

    def in_7_bits(self) -> FloatDraw:
        """The draw as the compiler gives it to a kernel that sums in 16 bits."""
        calls = tuple(tuple(_halved(t) for t in call) for call in self.calls)
        return replace(self, calls=calls, reduced=True)

    def __str__(self) -> str:
        shapes = [[None if t is None else f"{str(t.dtype)[6:]}{list(t.shape)}/{list(t.stride())}" for t in call] for call in self.calls]
        return f"{self.op} {self.mode} weight{list(self.weight.values.shape)}/{self.weight.axis} {self.bits} bits {self.settings} {shapes}"

    def truth(self, call: Sequence[Tensor | None]) -> tuple[Tensor, float]:
        """The exact result, and how far a kernel may be off."""
        values, x = self.weight.double(), call[0]
        assert x is not None
        if self.op.startswith("embedding"):
            return self._rows(values, call)
        most_code = 127 if self.reduced else 255
        rounded = real(x) if self.mode is None else dynamic_quantize_dequantize(x, 0, most_code).double()
        result = F.linear(rounded, values, None if self.bias is None else self.bias.double())
        ties = 0.0
        if self.mode is not None and x.numel():  # a value at a half step may fall to either side
            ties = 2 * max(float(x.max() - x.min()) / most_code, SMALLEST_STEP) * float(values.abs().max())
        low, high = self.settings.get("bounds") or (None, None)
        most = float(result.abs().max()) if result.numel() else 0.0
        return result if low is None and high is None else result.clamp(low, high), ties + 1e-4 * most + 1e-6

    def _rows(self, values: Tensor, call: Sequence[Tensor | None]) -> tuple[Tensor, float]:
        # float16 scales and biases of 4-bit rows: 2 ** -11 of the bias and of the scale times the code, for each row of a bag
        indices, *rest = call
        assert indices is not None
        each = (2e-3 if self.bits == 4 else 1e-6) * (float(values.abs().max()) * 20 + 1e-6)
        if self.op == "embedding":
            return F.embedding(indices.long(), values), each
        offsets, weights = rest
        given = None if offsets is None else offsets.long()
        result = OPS.rows["embedding_bag"].fn(indices.long(), values, given, None if weights is None else weights.double(), **self.settings)
        return result, each * max(indices.numel(), 1)


def _halved(x: Tensor | None) -> Tensor | None:
    """Codes 0..127 in place of 0..255; floats as they are."""
    if x is None or not x.is_quantized:
        return x
    return torch._make_per_tensor_quantized_tensor(x.int_repr() // 2, x.q_scale(), x.q_zero_point() // 2)


def _linear(rng: random.Random, dynamic: bool) -> FloatDraw:
    inputs, outputs, lead = rng.choice(FEATURES), rng.choice((1, 2, 5, 16, 33)), rng.choice((0, 1, 1, 2, 3))
    scale = rng.choice((0.02, 1e-4, 30.0))

    def x() -> Tensor:
        shape = (*(rng.choice((0, 1, 1, 2, 3, 9)) for _ in range(lead)), inputs)
        if not dynamic:
            return activation(shape, 255, scale=0.02, zero_point=128)
        made = torch.randn(shape) * scale + rng.choice((0.0, 0.0, scale * 3))
        made = torch.full_like(made, scale) if rng.random() < 0.1 else made
        return made.repeat_interleave(2, -1)[..., ::2] if rng.random() < 0.2 else made

    settings: dict[str, Any] = rng.choice(({}, {}, {"bounds": (0.0, None)}, {"bounds": (-0.5, 1.5)}))
    bias = None if rng.random() < 0.3 else torch.randn(outputs) * 0.1
    made = weight((outputs, inputs), rng.choice((None, 0)))
    return FloatDraw("linear", Mode.DYNAMIC if dynamic else None, made, 8, bias, settings, tuple((x(),) for _ in range(3)))


def linear_dynamic(rng: random.Random) -> FloatDraw:
    return _linear(rng, dynamic=True)


def linear_to_float(rng: random.Random) -> FloatDraw:
    return _linear(rng, dynamic=False)


def _table(rng: random.Random, rows: int, columns: int) -> tuple[Int8, int]:
    bits = rng.choice((8, 8, 4))
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scale, zero_point = torch.rand(rows) * 0.01 + 0.001, torch.rand(rows) * (2**bits - 1)
    return Int8(codes, scale.double(), zero_point.double(), 0), bits


def _indices(rng: random.Random, shape: Sequence[int], rows: int) -> Tensor:
    found = torch.randint(0, rows, tuple(shape)).to(rng.choice(INDICES))
    return found.repeat_interleave(2, -1)[..., ::2] if shape and rng.random() < 0.3 else found


def embedding(rng: random.Random) -> FloatDraw:
    rows, columns = rng.choice((1, 2, 7, 100)), rng.choice((1, 2, 3, 8, 15, 16, 33))
    made, bits = _table(rng, rows, columns)
    mode = Mode.FOUR_BIT if bits == 4 else Mode.WEIGHT_ONLY
    dims = rng.choice((0, 1, 2, 2, 3))
    calls = tuple((_indices(rng, [rng.choice((0, 1, 2, 5)) for _ in range(dims)], rows),) for _ in range(3))
    return FloatDraw("embedding", mode, made, bits, None, {}, calls)


def embedding_bag(rng: random.Random) -> FloatDraw:
    rows, columns = rng.choice((1, 2, 7, 100)), rng.choice((1, 2, 8, 15, 33))
    made, bits = _table(rng, rows, columns)
    settings: dict[str, Any] = {"mode": rng.choice(("sum", "mean", "max"))}
    flat, weighted = rng.random() < 0.5, settings["mode"] == "sum" and rng.random() < 0.4
    if rng.random() < 0.3:
        settings["padding_idx"] = rng.randrange(rows)
    if flat and rng.random() < 0.4:
        settings["include_last_offset"] = True

    def call() -> tuple[Tensor | None, ...]:
        if not flat:
            indices = _indices(rng, (rng.choice((0, 1, 2, 5)), rng.choice((1, 2, 7))), rows)
            return indices, None, torch.randn(indices.shape) if weighted else None
        lengths = [rng.choice((0, 1, 2, 5)) for _ in range(rng.choice((1, 2, 4)))]
        indices = _indices(rng, (sum(lengths),), rows)
        ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        offsets = torch.tensor(ends if settings.get("include_last_offset") else ends[:-1])
        return indices, offsets.to(rng.choice((torch.int64, torch.int32))), torch.randn(indices.shape) if weighted else None

    mode = Mode.FOUR_BIT if bits == 4 else Mode.WEIGHT_ONLY
    return FloatDraw("embedding_bag", mode, made, bits, None, settings, tuple(call() for _ in range(3)))


FAMILIES: dict[str, Callable[[random.Random], FloatDraw]] = {
    f.__name__: f for f in (linear_dynamic, linear_to_float, embedding, embedding_bag)
}


class _Program:
    """The kernel of a draw on an engine as a graph that runs."""

    def __init__(self, drawn: FloatDraw, engine: str) -> None:
        self.drawn, self.module, self.graph = drawn, nn.Module(), fx.Graph()
        first = drawn.calls[0]
        nodes = [None if t is None else self.graph.placeholder(f"x{i}") for i, t in enumerate(first)]
        for node, tensor in zip(nodes, first, strict=True):
            if node is not None and tensor is not None:
                node.meta[VALUE] = Value.of(tensor)
        owner = fx.Graph().call_function(OPS.rows[drawn.op].fn)
        owner.meta[VALUE] = Value.of(drawn.truth(first)[0].float())
        self.site = Site(OPS.rows[drawn.op], owner, self._arguments(nodes), drawn.settings, FLOATS, engine, host_isa())

    def _constant(self, value: Tensor) -> fx.Node:
        return Emit(self.graph, self.module).constant("c", value)

    def _arguments(self, nodes: list[fx.Node | None]) -> tuple[Any, ...]:
        drawn, held = self.drawn, self.drawn.weight
        codes = pack_4bit(held.values) if drawn.bits == 4 else held.values
        parts = [self._constant(t) for t in (codes, held.scale, held.zero_point)]
        table = Weight(parts[0], parts[1], parts[2], held.axis, tuple(held.values.shape), drawn.bits)
        if drawn.op.startswith("embedding"):
            return (nodes[0], table, *nodes[1:])
        x = drawn.calls[0][0]
        assert x is not None and nodes[0] is not None
        given: Any = Rounded(nodes[0], reduce_range=drawn.reduced)
        if drawn.mode is None:
            given = Operand(nodes[0], QParams(x.q_scale(), x.q_zero_point(), 0, 127 if drawn.reduced else 255, torch.uint8))
        return given, table, None if drawn.bias is None else self._constant(drawn.bias)

    def kernel(self) -> Kernel | None:
        if self.drawn.mode is not None:
            return mode_kernels.select(self.site, self.drawn.mode)
        found = TO_FLOAT[self.drawn.op]
        return found if self.site.engine in found.engines and found.refuse(self.site) is None else None


def check(drawn: FloatDraw, engine: str) -> str | None:
    """What is wrong with the kernel on the call and on those that come later; None where all are right."""
    program = _Program(drawn, engine)
    if drawn.op == "linear" and saturates(program.site):
        drawn = drawn.in_7_bits()
        program = _Program(drawn, engine)
    kernel = program.kernel()
    if kernel is None:
        return None
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        program.graph.output(kernel.emit(program.site, Emit(program.graph, program.module)))
        run = fx.GraphModule(program.module, program.graph)
        for place, call in enumerate((*drawn.calls, drawn.calls[0])):
            exact, allowed = drawn.truth(call)
            found = run(*(t for t in call if t is not None))
            if found.shape != exact.shape:
                return f"shape {tuple(found.shape)} instead of {tuple(exact.shape)} at call {place} by {kernel.label}"
            off = float((found.double() - exact).abs().max()) if exact.numel() else 0.0
            if not off <= allowed:
                return f"{off:.3g} where {allowed:.3g} is allowed, at call {place} by {kernel.label}"
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return f"{type(error).__name__} by {kernel.label}: {str(error).splitlines()[0][:120]}"
    finally:
        torch.backends.quantized.engine = before
    return None
