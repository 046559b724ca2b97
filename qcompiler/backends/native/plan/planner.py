"""Steps of a region -> layers: what reads what, which codes a value has, and how its readers want it to lie."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from qcompiler.backends.native.plan.answers import Answers
from qcompiler.backends.native.plan.bundle import Bundle
from qcompiler.backends.native.plan.codes import Codes, same_codes
from qcompiler.backends.native.plan.dynamic import plan_dynamic
from qcompiler.backends.native.plan.edges import Dequantize, Quantize
from qcompiler.backends.native.plan.float_pointwise import FloatMap
from qcompiler.backends.native.plan.floats import Constant, Given, HandOut
from qcompiler.backends.native.plan.forms import form_of
from qcompiler.backends.native.plan.homes import Every, Home
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.network import Network
from qcompiler.backends.native.plan.order import HandOutPlaces, Take
from qcompiler.backends.native.plan.pick import Pick
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.planning import STEPPED, Argument, Sums, needs_copies
from qcompiler.backends.native.plan.relayout import Relayout, Spread
from qcompiler.backends.native.plan.settled import Computed, Settled
from qcompiler.backends.native.plan.shape import Number
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.read import NUMBERS
from qcompiler.backends.native.steps import (
    DEQUANTIZE,
    DYNAMIC,
    KNOWN,
    QUANTIZE,
    WEIGHT,
    Region,
    RegionError,
    Step,
    is_tensor,
    is_value,
)
from qcompiler.ops.table import OPS

NO_NETWORK = Network((), (), (), {}, {}, {})


def _pixels(rank: int, dims: int) -> str:
    """How a value lies whose channels are those of an op in `dims` dimensions: without a batch they are not those of another op."""
    return "pixels of one image" if rank == dims + 1 else "pixels"


def _is_1d(op: str) -> bool:
    row = OPS.rows.get(op)
    return row is not None and row.dims == 1


@dataclass
class Planner(Answers):
    """`codes`: of each value so far. `alias`: names of values that are others under another name, dequantized ones among them."""

    region: Region
    tensors: Sequence[Tensor]
    qparams: Sequence[tuple[float, int]]
    layers: list[Layer] = field(default_factory=list)
    codes: dict[str, Codes] = field(default_factory=dict)
    lies: dict[str, str | None] = field(default_factory=dict)  # "pixels", those of one image, or "rows" where a value surely lies so
    example: Sizes = field(default_factory=lambda: Sizes(NO_NETWORK))  # shapes at the example's sizes
    alias: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Step] = field(default_factory=dict)
    quantized: dict[str, Step] = field(default_factory=dict)  # name of an op's result -> its quantize step
    halos: dict[str, Axes] = field(default_factory=dict)
    homes: dict[str, Home | Every] = field(default_factory=dict)
    made: dict[str, Layer] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    handed: dict[str, str] = field(default_factory=dict)
    readers: Counter[str] = field(default_factory=Counter)  # how many steps read what a step makes
    ranges: dict[str, str] = field(default_factory=dict)  # of codes on ranges of their own, which value holds the range

    def network(self) -> Network:
        """The layers of the whole region. Raises RegionError for steps that make no sense together."""
        self._join_quantized()
        self.example.shapes.update(self.region.inputs)
        for step in self.region.steps:
            try:
                self._take(step)
            except (KeyError, IndexError, TypeError, ValueError, AssertionError, AttributeError, RuntimeError, ArithmeticError) as error:
                raise RegionError(f"step {step.out!r:.60} ({step.op:.40}) cannot be planned: {error!r:.200}") from error
        self._hand_out()
        return Network(self.region.inputs, self.region.outputs, self._wanted(), self.codes, self.halos, self.homes,
                       self.constants, self.handed)  # fmt: skip

    def _join_quantized(self) -> None:
        """Quantize steps that are part of the op before them: all that reads its floats is the one step."""
        others = (QUANTIZE, DEQUANTIZE, WEIGHT)
        results = {step.out for step in self.region.steps if step.op not in others and not step.op.startswith(KNOWN)}
        readers = self.readers
        readers.update(name for step in self.region.steps for name in set(step.reads()))
        readers.update(self.region.outputs)
        for step in self.region.steps:
            if step.op == QUANTIZE and (name := str(step.args[0])[1:]) in results and readers[name] == 1:
                self.quantized[name] = step

    def _take(self, step: Step) -> None:
        if step.op == QUANTIZE:
            if step.args[0][1:] not in self.quantized:
                self._quantize(step)
        elif step.op == DEQUANTIZE:
            self.alias[step.out] = self.value(step.args[0])
        elif step.op == WEIGHT:
            self.weights[step.out] = step
        elif step.op == DYNAMIC:
            plan_dynamic(step, self)
        elif step.op.startswith(KNOWN):
            args, kwargs = self.with_tensors(step.args), self.with_tensors(dict(step.kwargs))
            self.add(Computed(step.out, step.out, step.op.removeprefix(KNOWN), args, kwargs))
        elif step.op in NUMBERS or step.op in ("size", "dim"):
            args = tuple(f"%{self.value(a)}" if is_value(a) else a for a in step.args)
            self.add(Number(step.out, step.out, step.op, args))
        else:
            form_of(step, self).plan(step, self)

    def _quantize(self, step: Step) -> None:
        """Codes of an input; a sequence lies as its readers take it, the channels innermost for convolutions."""
        x, codes = step.args[0][1:], self._codes(step)
        if is_tensor(step.args[0]):  # as constant as it is
            made = self.constants[step.out] = codes.of(self.tensor(step.args[0])).contiguous()
            self.add(Constant(step.out, step.out, tuple(made.shape), codes))
            return
        if x not in dict(self.region.inputs):
            self._encode(step)
            return
        floats = {s.out for s in self.region.steps if s.op == DEQUANTIZE and s.args == (f"%{step.out}",)}
        sequences = any(_is_1d(s.op) and floats & set(s.reads()) for s in self.region.steps)
        last = len(self.example.shape(x)) >= 4 or sequences
        self.add(Quantize(step.out, step.out, x, codes, last))

    def _encode(self, step: Step) -> None:
        """Codes of a value that is used as floats, too, or of codes on other steps."""
        x, codes = self.operand(step.args[0]), self._codes(step)
        known = self.codes.get(x)
        if known is not None and same_codes(known, codes):
            self.alias[step.out] = x
        else:
            self.add(FloatMap(step.out, step.out, x, "QC_COPY", (), known, codes))

    def _codes(self, step: Step) -> Codes:
        (scale, zero), (low, high) = self.qparams[step.args[1]], step.args[2:4]
        if not (0 <= low <= high <= 255 and 0 <= zero <= 255 and 0 < scale < math.inf):
            raise ValueError(f"no codes of 8 bits: scale {scale}, zero point {zero}, {low} to {high}")
        return Codes(float(scale), int(zero), int(low), int(high))

    def _hand_out(self) -> None:
        """Floats in tensors of the caller's."""
        for name in dict.fromkeys(self.region.outputs):
            if name in self.alias:
                x = self.value(f"%{name}")
                if x in self.codes:
                    x = x if self.rank(x) <= 5 else self.rows(f"%{name}")
                    self.add(Dequantize(name, name, x, self.codes[x]))
                elif (made := self.made.get(self.source_of(x))) is not None and made.gives_places:
                    self.add(HandOutPlaces(name, name, x))
                else:
                    self.handed.setdefault(x, name)
                    self.add(HandOut(name, name, x))

    def _wanted(self) -> tuple[Layer, ...]:
        """Without the pads that only convolutions read, which take them for padding of their own, and parts of values that nobody reads."""
        read = {name for layer in self.layers if isinstance(layer, (Number, Computed)) for name in layer.asks} | set(self.region.outputs)
        wanted = []
        for layer in reversed(self.layers):
            if layer.out in read or not isinstance(layer, (Pick, Bundle, Take)):
                read.update(layer.reads)
                wanted.append(layer)
        return tuple(reversed(wanted))

    def add(self, layer: Layer, codes: Codes | None = None) -> str:
        """Appends a layer and returns the value that it makes, whose codes are `codes`, or those that the layer names."""
        layer = self._on_even(layer) if layer.steps_through else layer
        self.layers.append(layer)
        self.made[layer.out] = layer
        self.example.shapes[layer.out] = layer.shape(self.example)
        self.lies[layer.out] = self._lies(layer)
        codes = codes or getattr(layer, "codes", None)
        if codes is not None:
            self.codes[layer.out] = codes
        return layer.out

    def _lies(self, layer: Layer) -> str | None:
        found, dims = layer.lies(self.lies), getattr(layer, "dims", 0)
        return _pixels(len(self.example.shape(layer.out)), dims) if found == "pixels" and dims else found

    def operand(self, argument: Argument) -> str:
        """The value behind an argument that may be a tensor of the network's, a number, or an input."""
        if is_tensor(argument):
            return self.constant(f"constant.{argument[1:]}", self.tensor(argument))
        if isinstance(argument, (int, float)):
            return self.constant(f"number.{len(self.constants)}", torch.tensor(float(argument)))
        name = self.value(argument)
        if isinstance(self.made.get(name), (Computed, Number)):
            settled = f"{name}.settled"
            return settled if settled in self.made else self.add(Settled(settled, name, name))
        if name in dict(self.region.inputs):
            self.alias[name] = self.add(Given(f"{name}.given", name, name))
        return self.value(argument)

    def take_back(self, sums: Sums) -> None:
        for layer in (sums.clamp, sums.layer):
            if layer is not None:
                self.layers.remove(layer)
                del self.made[layer.out]

    def constant(self, name: str, tensor: Tensor) -> str:
        if name not in self.constants:
            self.constants[name] = tensor.to(torch.float32).contiguous()
            self.add(Constant(name, name, tuple(tensor.shape)))
        return name

    def weight(self, argument: Argument, channels: int = 0) -> tuple[Tensor, Tensor]:
        """int8 weight and its scales, one for each channel (along that axis), in float64."""
        codes, scale, zero_point, axis = self.weights[str(argument)[1:]].args
        weight, scales = self.tensor(codes), self.tensor(scale).double().reshape(-1)
        if weight.dtype is not torch.int8 or axis not in (None, channels) or bool(torch.count_nonzero(self.tensor(zero_point))):
            raise ValueError("a weight is no int8 tensor with scales along its channels and zero points of 0")
        return weight.contiguous(), scales.expand(weight.shape[channels]).contiguous()

    def result(self, step: Step) -> tuple[str, Codes | None]:
        """Name and codes of what a step makes; the codes are None where it hands out floats, or several values."""
        found = self.quantized.get(step.out)
        if found is not None:
            return found.out, self._codes(found)
        if step.out not in self.region.outputs:
            return step.out, None
        self.alias[step.out] = f"{step.out}.floats"  # the name itself is that of what the caller gets
        return self.alias[step.out], None

    def label(self, step: Step) -> str:
        return step.out

    def pixels(self, argument: Argument, pads: Axes, dims: int | None = None) -> str:
        """A value as a convolution or a pool wants it: channels side by side, with a halo of its zero point."""
        name, dims = self.value(argument), len(pads) if dims is None else dims
        if self.lies.get(name) != _pixels(self.rank(name), dims) or (any(pads) and name in self.homes):
            name = self.add(Relayout(f"{name}.pixels.{len(self.layers)}", name, name, "pixels", dims), self.codes.get(name))
        if any(pads):
            before = self.halos.get(name, (0,) * len(pads))
            self.halos[name] = tuple(max(a, b) for a, b in zip(before, pads, strict=True))
        return name

    def rows(self, argument: Argument) -> str:
        """A value whose last dimension lies side by side."""
        name = self.value(argument)
        if self.lies.get(name) == "rows":
            return name
        return self.add(Relayout(f"{name}.rows.{len(self.layers)}", name, name, "rows"), self.codes.get(name))

    def _on_even(self, layer: Layer) -> Layer:
        """The layer on operands whose dimensions merge into as few as it steps through; those that are spread over one another again and
        again are copied to where they are spread.
        """
        values = tuple(dict.fromkeys(layer.reads))
        again = layer.by_element and needs_copies([self.example.shape(name) for name in values])
        even = {name: self._even(name, values if again else ()) for name in values if again or self.rank(name) > STEPPED}
        changed = {f.name: even[value] for f in fields(layer) if isinstance(value := getattr(layer, f.name), str) and value in even}
        return replace(layer, **changed)

    def _even(self, name: str, values: tuple[str, ...]) -> str:
        """A value with nothing between its elements; `values`: operands over which it is spread before."""
        codes, number = self.codes.get(name), len(self.layers)
        x = self.add(Spread(f"{name}.spread.{number}", name, name, values), codes) if values else name
        return self.add(Relayout(f"{name}.even.{number}", name, x, "even"), codes)

    def like(self, argument: Argument, other: str) -> str:
        """A value that lies as `other` does, which it is put together with; of many dimensions each is brought in order by itself."""
        name = self.value(argument)
        if self.rank(name) > STEPPED:
            return name
        lies, alike = self.lies.get(name), self.rank(name) == self.rank(other)  # pixels of fewer dimensions are others
        if lies is not None and lies == self.lies.get(other) and (alike or lies == "rows"):
            return name
        return self.add(Relayout(f"{name}.like.{len(self.layers)}", name, name, "like", other=other), self.codes.get(name))

    def may_move(self, name: str, codes: Codes) -> bool:
        """Whether a value can be made in its place in a cat, on the cat's steps."""
        layer = self.made.get(name)
        if layer is None or not layer.owns or not layer.lies_anywhere or isinstance(layer, Quantize):
            return False
        free = name not in self.homes and name not in self.halos
        return free and name in self.codes and same_codes(self.codes[name], codes)

    def lies_as(self, name: str, parts: Sequence[str]) -> bool:
        """Whether a value can be made beside the first of `parts`: how the whole lies, the part says that is made first."""
        if not parts or self.lies.get(name) == self.lies.get(parts[0]):
            return True
        return self.lies.get(name) is None and self.layers.index(self.made[name]) > self.layers.index(self.made[parts[0]])

    def move(self, name: str, whole: str, dim: int, before: tuple[str, ...]) -> None:
        self.homes[name] = Home(whole, dim, before)
