"""LSTM, GRU and recurrent cells: the products with the input for all steps at once, then a loop over the steps (run/recurrent.h)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from qcompiler.backends.native.emit.layer_code import LayerCode
from qcompiler.backends.native.packing import RowSums, pack_conv, padded
from qcompiler.backends.native.plan.bundle import Bundle, Parts
from qcompiler.backends.native.plan.dynamic import DOUBLES, START, encoded, linear_of
from qcompiler.backends.native.plan.float_pointwise import FloatMap
from qcompiler.backends.native.plan.layer import Bound, Layer, Pixels
from qcompiler.backends.native.plan.place import Axes, Place
from qcompiler.backends.native.plan.planning import Argument, Facts, Planning
from qcompiler.backends.native.plan.shape import Cat, Reshape, View
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import Step, is_tensor


@dataclass(frozen=True)
class Kind:
    """A cell as the C knows it: its name, how many gates and how many states it has."""

    name: str
    gates: int
    states: int


LSTM, GRU = Kind("QC_LSTM", 4, 2), Kind("QC_GRU", 3, 1)
KINDS = {"lstm": LSTM, "gru": GRU, "lstm_cell": LSTM, "gru_cell": GRU}
LINE = 64


@dataclass(frozen=True, eq=False)
class Loop(Layer):
    """One direction of one layer: the hidden state at each step, behind it the final states. ih (T, N, gates * W) -> (T + states, N, W).

    `states`: the values at the start, flat; none: zeros. `given`: the caller's tensors that they are of, (*`leading`, N, W), or without N
    where nothing is batched.
    """

    ih: str
    states: tuple[str, ...]
    given: tuple[str, ...]
    leading: tuple[int, ...]
    batched: bool
    kind: Kind
    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    reverse: bool

    @property
    def lies_anywhere(self) -> bool:
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        return self.ih, *self.states

    def shape(self, sizes: Sizes) -> Axes:
        steps, batch, wide = sizes.shape(self.ih)
        if wide != self.weight.shape[0] or wide != self.kind.gates * self.weight.shape[1]:
            raise ValueError(f"{wide} gates for a weight of {tuple(self.weight.shape)}")
        due = (*self.leading, *((batch,) if self.batched else ()), self.weight.shape[1])
        if any(sizes.shape(name) != due for name in self.given):
            raise ValueError(f"a state of size {next(sizes.shape(n) for n in self.given if sizes.shape(n) != due)}, expected {due}")
        return (steps + self.kind.states, batch, self.weight.shape[1])

    def place(self, sizes: Sizes) -> Place:
        _, batch, width = sizes.shape(self.out)
        wide = self.kind.gates * width
        room = LINE + _lines(8 * padded(wide)) + _lines(4 * batch * wide) + batch * width
        sizes.places[f"{self.out}.room"] = sizes.buffer((room,), (0,))
        return sizes.buffer(sizes.shape(self.out), (0, 1, 2), 4)

    def bind(self, sizes: Sizes) -> Bound:
        names = (self.ih, *self.states, self.out, f"{self.out}.room")
        steps, batch, _ = sizes.shape(self.ih)
        return Bound([Pixels(sizes.place(name), *START) for name in names], spread=[steps, batch])

    def cost(self, sizes: Sizes) -> int:
        return math.prod(sizes.shape(self.out)) * self.weight.shape[0] // 100

    def code(self, to: LayerCode) -> None:
        packed, scale = pack_conv(self.weight.numpy(), 1, False), self.scale.double().expand(self.weight.shape[0])
        with to.loop() as fields:
            fields.floats("ih", *("hidden", "cell")[: len(self.states)], "y")
            fields.start("room")
            fields.data("w", packed.weights)
            fields.data("wsum", RowSums.of(self.weight.numpy()).padded)
            fields.data("scale", scale.contiguous().numpy(), DOUBLES)
            if self.bias is not None:
                fields.data("bias", self.bias.double().numpy(), DOUBLES)
            fields.step("steps")
            fields.step("rows")
            fields.plain(width=self.weight.shape[1], gates=self.kind.gates, reverse=int(self.reverse))
            fields.set("kind", self.kind.name)

    def text(self) -> str:
        name = self.kind.name.removeprefix("QC_").lower()
        return f"{name} {self.weight.shape[1]}{' in reverse' if self.reverse else ''}"


def _lines(count: int) -> int:
    return -(-count // LINE) * LINE


@dataclass(frozen=True)
class _Given:
    """The arguments of a call."""

    x: str
    states: tuple[Argument, ...]
    weights: Sequence[str]
    biases: Sequence[str]

    @staticmethod
    def of(step: Step) -> _Given:
        count = KINDS[step.op].states
        states = tuple(state for state in step.args[1 : 1 + count] if state is not None)
        weights, biases = (*step.args[1 + count :], ())[:2]
        return _Given(step.args[0], states, weights, biases)


def refuse_recurrent(step: Step, facts: Facts) -> str | None:
    given, kind = _Given.of(step), KINDS[step.op]
    if step.kwargs.get("activation_range") != (0, 255):
        return "a recurrent layer of floats has no C form"
    if len(given.states) not in (0, kind.states):
        return "some of its states are given and others are not"
    values = (given.x, *given.states)
    if not all(facts.is_codes(value) or facts.is_floats(value) for value in values):
        return "its input is not float32"
    if not all(map(is_tensor, given.biases)):
        return "its biases are computed at run time"
    return next((fault for weight in given.weights if (fault := facts.weight_fault(weight)) is not None), None)


def plan_recurrent(step: Step, planner: Planning) -> None:
    _Plan(step, planner).plan()


class _Plan:
    """The layers of one call; x becomes (T, N, I), states (layers * directions, N, W)."""

    def __init__(self, step: Step, planner: Planning) -> None:
        self.step, self.planner, self.kind, self.given = step, planner, KINDS[step.op], _Given.of(step)
        self.is_cell = step.op.endswith("_cell")
        self.rank = planner.rank(planner.operand(step.args[0]))

    def view(self, name: str, x: str, op: str, **settings: object) -> str:
        kind = Reshape if op == "flatten" else View
        return self.planner.add(kind(f"{self.step.out}.{name}", self.step.out, x, op, (), settings), self.planner.codes.get(x))

    def plan(self) -> None:
        data, ends = self._input(), []
        directions = 2 if self.step.kwargs.get("bidirectional", False) else 1
        for first in range(0, len(self.given.weights) // 2, directions):
            codes = encoded(data, f"{self.step.out}.input.{first}", self.planner)
            loops = [self._direction(codes, k, k > first) for k in range(first, first + directions)]
            outputs = [
                self.view(f"output.{first + i}", loop, "getitem", index=slice(None, -self.kind.states)) for i, loop in enumerate(loops)
            ]
            data = outputs[0] if directions == 1 else self._joined(f"outputs.{first}", outputs, -1)
            ends += loops
        self._hand_out(data, ends)

    def _input(self) -> str:
        x, batch_first = self.planner.operand(self.given.x), bool(self.step.kwargs.get("batch_first", False))
        if self.is_cell:
            x = self.view("row", x, "unsqueeze", dim=0) if self.rank == 1 else x
            return self.view("sequence", x, "unsqueeze", dim=0)
        if self.rank == 2:
            return self.view("sequence", x, "unsqueeze", dim=1)
        return self.view("sequence", x, "transpose", dim0=0, dim1=1) if batch_first else x

    def _direction(self, codes: str, k: int, reverse: bool) -> str:
        planner, out = self.planner, f"{self.step.out}.{k}"
        biases: list[Tensor | None] = [planner.tensor(b) for b in self.given.biases[2 * k : 2 * k + 2]]
        biases = biases or [None, None]
        ih = linear_of(codes, planner.weight(self.given.weights[2 * k]), biases[0], f"{out}.products", planner)
        weight = planner.weight(self.given.weights[2 * k + 1])
        given = tuple(self._floats(i, state, k) for i, state in enumerate(self.given.states))
        states = tuple(self._state(i, x, k) for i, x in enumerate(given))
        leading = () if self.is_cell else (len(self.given.weights) // 2,)
        batched = self.rank == (2 if self.is_cell else 3)
        return planner.add(Loop(f"{out}.loop", self.step.out, ih, states, given, leading, batched, self.kind, *weight, biases[1], reverse))

    def _floats(self, number: int, state: Argument, k: int) -> str:
        """The caller's states of all layers, for layer k, as floats."""
        x = self.planner.operand(state)
        if self.planner.codes.get(x) is None:
            return x
        name = f"{self.step.out}.state.{number}.{k}.floats"
        return self.planner.add(FloatMap(name, self.step.out, x, "QC_COPY", (), self.planner.codes[x]))

    def _state(self, number: int, x: str, k: int) -> str:
        """State k at the start, its elements side by side."""
        name = f"state.{number}.{k}"
        if not self.is_cell:
            x = self.view(f"{name}.one", x, "getitem", index=k)
        return self.planner.rows(f"%{self.view(name, x, 'flatten', start_dim=0)}")

    def _joined(self, name: str, parts: list[str], dim: int) -> str:
        out = f"{self.step.out}.{name}"
        return joined(out, parts, dim % self.planner.rank(parts[0]), self.planner)

    def _hand_out(self, data: str, loops: list[str]) -> None:
        ends = tuple(self._end(i, loops) for i in range(-self.kind.states, 0))
        if self.is_cell:
            self._give(ends[0] if self.kind.states == 1 else ends)
            return
        if self.rank == 2:
            data = self.view("result", data, "squeeze", dim=1)
        elif self.step.kwargs.get("batch_first", False):
            data = self.view("result", data, "transpose", dim0=0, dim1=1)
        self._give((data, ends[0] if self.kind.states == 1 else ends))

    def _end(self, index: int, loops: list[str]) -> str:
        """The final states of all loops, as the caller's have their sizes."""
        parts = [self.view(f"end.{index}.{i}", loop, "getitem", index=index) for i, loop in enumerate(loops)]
        if self.is_cell:
            return parts[0] if self.rank == 2 else self.view(f"end.{index}.row", parts[0], "squeeze", dim=0)
        parts = [self.view(f"end.{index}.{i}.one", part, "unsqueeze", dim=0) for i, part in enumerate(parts)]
        made = parts[0] if len(parts) == 1 else self._joined(f"ends.{index}", parts, 0)
        return made if self.rank == 3 else self.view(f"end.{index}.row", made, "squeeze", dim=1)

    def _give(self, parts: Parts) -> None:
        if not isinstance(parts, str):
            self.planner.add(Bundle(self.step.out, self.step.out, parts))
            return
        out, codes = self.planner.result(self.step)
        self.planner.add(FloatMap(out, self.step.out, parts, "QC_COPY", (), None, codes))


def joined(out: str, parts: list[str], dim: int, planner: Planning) -> str:
    """Floats side by side along a dimension: copies of them in their places."""
    pieces: list[str] = []
    for index, part in enumerate(parts):
        piece = planner.add(FloatMap(f"{out}.{index}", out, part, "QC_COPY"))
        planner.move(piece, out, dim, tuple(pieces))
        pieces.append(piece)
    return planner.add(Cat(out, out, tuple(pieces), dim))
