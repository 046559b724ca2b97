"""Steps of a region -> layers: what reads what, which codes a value has, and how its readers want it to lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from qcompiler.backends.native.plan.codes import Codes, same_codes
from qcompiler.backends.native.plan.conv import Conv
from qcompiler.backends.native.plan.edges import Dequantize, Quantize
from qcompiler.backends.native.plan.families import family_of
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.network import Every, Home, Network
from qcompiler.backends.native.plan.pick import Pick
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.pointwise import Map, Pair
from qcompiler.backends.native.plan.pool import Pool
from qcompiler.backends.native.plan.resize import Resize
from qcompiler.backends.native.plan.shape import Cat, Number, Relayout
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.transposed import Phases
from qcompiler.backends.native.read import NUMBERS
from qcompiler.backends.native.steps import DEQUANTIZE, QUANTIZE, WEIGHT, Region, RegionError, Step, is_tensor, is_value, leaves
from qcompiler.ir.nested import rewrite

NO_NETWORK = Network((), (), (), {}, {}, {})


class Facts(Protocol):
    """What a family asks about the arguments of a step to say whether it takes it."""

    def rank(self, argument: Any) -> int: ...

    def is_codes(self, argument: Any) -> bool: ...

    def is_number(self, argument: Any) -> bool: ...

    def weight_fault(self, argument: Any, channels: int = 0) -> str | None: ...


@dataclass
class Planner:
    """`codes`: of each value so far. `alias`: names of values that are others under another name, dequantized ones among them."""

    region: Region
    tensors: Sequence[Tensor]
    qparams: Sequence[tuple[float, int]]
    layers: list[Layer] = field(default_factory=list)
    codes: dict[str, Codes] = field(default_factory=dict)
    lies: dict[str, str | None] = field(default_factory=dict)  # "pixels" or "rows" where a value surely lies so
    example: Sizes = field(default_factory=lambda: Sizes(NO_NETWORK))  # shapes at the example's sizes
    alias: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Step] = field(default_factory=dict)
    quantized: dict[str, Step] = field(default_factory=dict)  # name of an op's result -> its quantize step
    halos: dict[str, Axes] = field(default_factory=dict)
    homes: dict[str, Home | Every] = field(default_factory=dict)
    made: dict[str, Layer] = field(default_factory=dict)

    def network(self) -> Network:
        """The layers of the whole region. Raises RegionError for steps that make no sense together."""
        results = {step.out for step in self.region.steps if step.op not in (QUANTIZE, DEQUANTIZE, WEIGHT)}
        for step in self.region.steps:
            if step.op == QUANTIZE and (name := str(step.args[0])[1:]) in results:
                self.quantized[name] = step
        self.example.shapes.update(self.region.inputs)
        for step in self.region.steps:
            try:
                self._take(step)
            except (KeyError, IndexError, TypeError, ValueError, AssertionError, AttributeError, RuntimeError, ArithmeticError) as error:
                raise RegionError(f"step {step.out!r:.60} ({step.op:.40}) cannot be planned: {error!r:.200}") from error
        self._hand_out()
        return Network(self.region.inputs, self.region.outputs, self._wanted(), self.codes, self.halos, self.homes)

    def _take(self, step: Step) -> None:
        if step.op == QUANTIZE:
            if step.args[0][1:] not in self.quantized:
                self._quantize(step)
        elif step.op == DEQUANTIZE:
            self.alias[step.out] = self.value(step.args[0])
        elif step.op == WEIGHT:
            self.weights[step.out] = step
        elif step.op in NUMBERS or step.op in ("size", "dim"):
            args = tuple(f"%{self.value(a)}" if is_value(a) else a for a in step.args)
            self.add(Number(step.out, step.out, step.op, args))
        else:
            family_of(step.op).plan(step, self)

    def _quantize(self, step: Step) -> None:
        """Codes of an input; a sequence lies as its readers take it, the channels innermost for convolutions."""
        x = step.args[0][1:]
        floats = {s.out for s in self.region.steps if s.op == DEQUANTIZE and s.args == (f"%{step.out}",)}
        sequences = any(s.op.endswith("1d") and floats & set(s.reads()) for s in self.region.steps)
        last = len(self.example.shape(x)) >= 4 or sequences
        self.add(Quantize(step.out, step.out, x, self._codes(step), last))

    def _codes(self, step: Step) -> Codes:
        (scale, zero), (low, high) = self.qparams[step.args[1]], step.args[2:4]
        if not (0 <= low <= high <= 255 and 0 <= zero <= 255 and 0 < scale < math.inf):
            raise ValueError(f"no codes of 8 bits: scale {scale}, zero point {zero}, {low} to {high}")
        return Codes(float(scale), int(zero), int(low), int(high))

    def _hand_out(self) -> None:
        """Floats for what is handed out and is codes."""
        for name in dict.fromkeys(self.region.outputs):
            if name in self.alias:
                x = self.value(f"%{name}") if self.rank(self.value(f"%{name}")) <= 5 else self.rows(f"%{name}")
                self.add(Dequantize(name, name, x, self.codes[x]))

    def _wanted(self) -> tuple[Layer, ...]:
        """Without the pads that only convolutions read, which take them for padding of their own."""
        read = {name for layer in self.layers for name in layer.reads} | set(self.region.outputs)
        read |= {leaf[1:] for layer in self.layers if isinstance(layer, Number) for leaf in leaves(layer.args) if is_value(leaf)}
        return tuple(layer for layer in self.layers if layer.out in read or not isinstance(layer, Pick))

    def with_tensors(self, value: Any) -> Any:
        """An argument with the tensors that it names."""
        return rewrite(value, lambda leaf: self.tensor(leaf) if is_tensor(leaf) else leaf)

    def add(self, layer: Layer, codes: Codes | None = None) -> str:
        """Appends a layer and returns the value that it makes, whose codes are `codes`, or those that the layer names."""
        self.layers.append(layer)
        self.made[layer.out] = layer
        self.example.shapes[layer.out] = layer.shape(self.example)
        self.lies[layer.out] = self._lies(layer)
        codes = codes or getattr(layer, "codes", None)
        if codes is not None:
            self.codes[layer.out] = codes
        return layer.out

    def value(self, argument: Any) -> str:
        """The value behind an argument: codes where it is a dequantized one."""
        name = str(argument)[1:]
        while name in self.alias:
            name = self.alias[name]
        return name

    def rank(self, name: str) -> int:
        return len(self.example.shape(name))

    def tensor(self, argument: Any) -> Tensor:
        if not is_tensor(argument):
            raise ValueError(f"{argument!r:.40} is no tensor")
        return self.tensors[int(argument[1:])]

    def weight(self, argument: Any, channels: int = 0) -> tuple[Tensor, Tensor]:
        """int8 weight and its scales, one for each channel (along that axis), in float64."""
        codes, scale, zero_point, axis = self.weights[argument[1:]].args
        weight, scales = self.tensor(codes), self.tensor(scale).double().reshape(-1)
        if weight.dtype is not torch.int8 or axis not in (None, channels) or bool(torch.count_nonzero(self.tensor(zero_point))):
            raise ValueError("a weight is no int8 tensor with scales along its channels and zero points of 0")
        return weight.contiguous(), scales.expand(weight.shape[channels]).contiguous()

    def result(self, step: Step) -> tuple[str, Codes | None]:
        """Name and codes of what a step makes; the codes are None where it hands out floats, or several values."""
        found = self.quantized.get(step.out)
        return (step.out, None) if found is None else (found.out, self._codes(found))

    def label(self, step: Step) -> str:
        return step.out

    def pixels(self, argument: Any, pads: Axes, dims: int | None = None) -> str:
        """A value as a convolution or a pool wants it: channels side by side, with a halo of its zero point."""
        name, dims = self.value(argument), len(pads) if dims is None else dims
        if self.lies.get(name) != "pixels" or (any(pads) and name in self.homes):
            name = self.add(Relayout(f"{name}.pixels.{len(self.layers)}", name, name, "pixels", dims), self.codes[name])
        if any(pads):
            before = self.halos.get(name, (0,) * len(pads))
            self.halos[name] = tuple(max(a, b) for a, b in zip(before, pads, strict=True))
        return name

    def rows(self, argument: Any) -> str:
        """A value whose last dimension lies side by side."""
        name = self.value(argument)
        if self.lies.get(name) == "rows":
            return name
        return self.add(Relayout(f"{name}.rows.{len(self.layers)}", name, name, "rows"), self.codes[name])

    def like(self, argument: Any, other: str) -> str:
        """A value that lies as `other` does, which it is put together with."""
        name = self.value(argument)
        if self.lies.get(name) is not None and self.lies.get(name) == self.lies.get(other):
            return name
        return self.add(Relayout(f"{name}.like.{len(self.layers)}", name, name, "like", other=other), self.codes[name])

    def _lies(self, layer: Layer) -> str | None:
        known = {self.lies.get(name) for name in layer.reads}
        match layer:
            case Conv():
                return "pixels" if layer.dims else "rows"
            case Resize() | Phases():
                return "pixels"
            case Pool():
                return "rows" if layer.squeeze else "pixels"
            case Quantize():
                return "pixels" if layer.channels_last else "rows"
            case Relayout():
                return self.lies.get(layer.other) if layer.wants == "like" else layer.wants
            case Pick():
                return known.pop() if layer.by_axes else "rows"
            case Pair() | Map() | Cat():
                return known.pop() if len(known) == 1 else None
        return None

    def may_move(self, name: str, codes: Codes) -> bool:
        """Whether a value can be made in its place in a cat, on the cat's steps."""
        layer = self.made.get(name)
        root = layer is not None and layer.owns and not isinstance(layer, Quantize)
        return root and name not in self.homes and name not in self.halos and same_codes(self.codes[name], codes)

    def move(self, name: str, whole: str, dim: int, before: tuple[str, ...]) -> None:
        self.homes[name] = Home(whole, dim, before)
