"""A region as layers: what a planner makes, and what the C and the sizes are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from qcompiler.backends.native.emit.constants import room_of
from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.homes import Every, Home
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.place import Axes


@dataclass(frozen=True)
class Network:
    """`inputs`: (name, the example's shape) of the tensors it takes. `outputs`: what it hands out. `codes`: of each value that is codes.

    `halos`: how wide a rim of zero points the readers of a value want, for its dimensions of space. `homes`: values that are made in
    their place in a cat. `constants`: float tensors that are values, in the order in which they lie in the data. `handed`: values that
    are handed out as floats -> the layer that does so.
    """

    inputs: tuple[tuple[str, Axes], ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    codes: Mapping[str, Codes]
    halos: Mapping[str, Axes]
    homes: Mapping[str, Home | Every]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    handed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def rims(self) -> Mapping[str, str]:
        """Which layer, by its result, writes the rim around which value: the one that makes the value, or its first part."""
        found = {}
        for name in (name for name, pads in self.halos.items() if any(pads)):
            parts = (layer.out for layer in self.computing if layer.out in self.homes and self.homes[layer.out].whole == name)
            found[next(parts, name)] = name
        return found

    @cached_property
    def whole(self) -> frozenset[str]:
        """Values between whose pixels nothing lies, at all sizes."""
        own = {layer.out for layer in self.layers if layer.owns} | {name for name, pads in self.halos.items() if any(pads)}
        return frozenset(own - set(self.homes))

    @cached_property
    def tensor_outputs(self) -> tuple[str, ...]:
        """What is handed out as tensors, once each: the rest are numbers."""
        made = {layer.out for layer in self.layers if layer.computes}
        return tuple(name for name in dict.fromkeys(self.outputs) if name in made)

    @cached_property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Of what is handed out as tensors."""
        made = {layer.out: layer.dtype for layer in self.layers}
        return {name: made[name] for name in self.tensor_outputs}

    @cached_property
    def io(self) -> Mapping[str, int]:
        """The number of each tensor that the caller gives or gets."""
        return {name: index for index, name in enumerate((*(name for name, _ in self.inputs), *self.tensor_outputs))}

    @cached_property
    def constant_offsets(self) -> Mapping[str, int]:
        """Where each constant begins in the data: they are its first blocks."""
        offsets, end = {}, 0
        for name, tensor in self.constants.items():
            offsets[name] = end
            end += room_of(tensor.nbytes)
        return offsets

    @property
    def computing(self) -> tuple[Layer, ...]:
        """The layers that have C functions, in order."""
        return tuple(layer for layer in self.layers if layer.computes)
