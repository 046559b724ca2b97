"""Steps of a region -> layers: what reads what, which codes a value has, and how its readers want it to lie."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.conv import Conv
from qcompiler.backends.native.plan.edges import Quantize
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.network import Home, Network
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.pointwise import Map, Pair
from qcompiler.backends.native.plan.pool import Pool, same_codes
from qcompiler.backends.native.plan.shape import Cat, Relayout
from qcompiler.backends.native.steps import Step, is_tensor

NO_NETWORK = Network((), (), (), {}, {}, {})


class Facts(Protocol):
    """What a family asks about the arguments of a step to say whether it takes it."""

    def rank(self, name: str) -> int:
        return len(self.example.shape(name))

    def tensor(self, argument: Any) -> Tensor:
        if not is_tensor(argument):
            raise ValueError(f"{argument!r:.40} is no tensor")
        return self.tensors[int(argument[1:])]

    def weight(self, argument: Any) -> tuple[Tensor, Tensor]:
        """int8 weight and its scales, one for each channel, in float64."""
        codes, scale, zero_point, axis = self.weights[argument[1:]].args
        weight, scales = self.tensor(codes), self.tensor(scale).double().reshape(-1)
        if weight.dtype is not torch.int8 or axis not in (None, 0) or bool(torch.count_nonzero(self.tensor(zero_point))):
            raise ValueError("a weight is no int8 tensor with scales along its first axis and zero points of 0")
        return weight.contiguous(), scales.expand(weight.shape[0]).contiguous()

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
            case Pool():
                return "rows" if layer.squeeze else "pixels"
            case Quantize():
                return "pixels" if layer.channels_last else "rows"
            case Relayout():
                return self.lies.get(layer.other) if layer.wants == "like" else layer.wants
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
