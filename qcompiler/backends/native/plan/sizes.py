"""One set of input sizes: the shape of every value, its place, and the arena that holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from qcompiler.backends.native.plan.homes import Every, Home
from qcompiler.backends.native.plan.place import Axes, Place, dense, of_caller
from qcompiler.backends.native.steps import is_value
from qcompiler.errors import InputError, QCompilerError
from qcompiler.inputs.input_text import first_sentence
from qcompiler.ir.nested import rewrite

SLACK = 128  # readable bytes that kernels want behind a buffer: QC_SLACK
LINE = 64  # buffers start at cache lines


@dataclass
class Buffer:
    """`first`, `last`: the layers between which its bytes are in use."""

    bytes: int
    first: int
    last: int


class Sized(Protocol):
    """The layers that have sizes, and where their values lie, as `Network` says it."""

    @property
    def inputs(self) -> tuple[tuple[str, Axes], ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def layers(self) -> tuple[Any, ...]: ...
    @property
    def computing(self) -> tuple[Any, ...]: ...
    @property
    def constant_offsets(self) -> Mapping[str, int]: ...
    @property
    def homes(self) -> Mapping[str, Home | Every]: ...
    @property
    def rims(self) -> Mapping[str, str]: ...
    @property
    def halos(self) -> Mapping[str, Axes]: ...
    @property
    def handed(self) -> Mapping[str, str]: ...
    @property
    def io(self) -> Mapping[str, int]: ...
    @property
    def dtypes(self) -> Mapping[str, torch.dtype]: ...


@contextmanager
def refusing(layer: Any) -> Iterator[None]:
    """InputError that names the layer in the place of what torch, or a number that makes no sense, raises."""
    try:
        yield
    except QCompilerError:
        raise
    except Exception as error:
        text = f"{layer.label}: {type(error).__name__}: {first_sentence(error)}"
        raise InputError(text, code="input-shape", hint="does the float model take this input?") from error


@dataclass
class Sizes:
    """Filled layer by layer: first all shapes, then all places."""

    network: Sized
    shapes: dict[str, Any] = field(default_factory=dict)  # a shape, a tuple of shapes, or a number
    places: dict[str, Any] = field(default_factory=dict)  # a Place, or a tuple of them
    strides: dict[str, Axes] = field(default_factory=dict)  # of the float inputs, in elements
    copies: dict[str, Place] = field(default_factory=dict)  # of layers that move elements, and only where they must
    buffers: list[Buffer] = field(default_factory=list)
    computed: dict[str, Any] = field(default_factory=dict)  # what torch made of the sizes
    settled: dict[str, Tensor] = field(default_factory=dict)  # of that, what kernels read
    longest: dict[str, int] = field(default_factory=dict)  # of places that a layer finds: the length of the rows
    now: int = 0

    def filled(self) -> Sizes:
        """All shapes, then all places. Raises InputError where an op cannot take the sizes."""
        return self._each(self._shape)._each(self._place)

    def shaped(self) -> Sizes:
        """All shapes alone; sizes may be symbols of torch.export's. Raises InputError as `filled` does."""
        return self._each(self._shape)

    def _each(self, step: Callable[[Any], None]) -> Sizes:
        for index, layer in enumerate(self.network.layers):
            self.now = index
            with refusing(layer):
                step(layer)
        return self

    def _shape(self, layer: Any) -> None:
        self.shapes[layer.out] = layer.shape(self)

    def _place(self, layer: Any) -> None:
        for name in layer.reads:
            self._used(self.places.get(name))
        self.places[layer.out] = layer.place(self)

    def _used(self, place: Any) -> None:
        if isinstance(place, tuple):
            for one in place:
                self._used(one)
        elif isinstance(place, Place) and place.buffer >= 0:
            self.buffers[place.buffer].last = max(self.buffers[place.buffer].last, self.now)

    def shape(self, name: str) -> Axes:
        found = self.shapes[name]
        if not isinstance(found, tuple):
            raise TypeError(f"{name} is no tensor")
        return found

    def place(self, name: str) -> Place:
        found = self.places[name]
        if not isinstance(found, Place):
            raise TypeError(f"{name} is no tensor")
        return found

    def numbers(self, value: Any) -> Any:
        """An argument with the numbers that earlier steps computed."""
        return rewrite(value, lambda leaf: self.shapes[leaf[1:]] if is_value(leaf) else leaf)

    def arguments(self, value: Any) -> Any:
        """An argument with these numbers, and with the tensors that sizes settle."""
        return rewrite(value, lambda leaf: self.computed.get(leaf[1:], self.shapes[leaf[1:]]) if is_value(leaf) else leaf)

    def new(self, name: str, order: Sequence[int], size: int = 1) -> Place:
        """The place of a layer's result: its part of the value that it is a part of, else a buffer with the halo its readers want."""
        if name in self.places:  # a whole that was made for its first part
            return self.place(name)
        home = self.network.homes.get(name)
        if home is not None:
            whole = self.new(home.whole, order, size)
            self.places[home.whole] = whole
            if isinstance(home, Every):
                return whole.every(self.shape(name), home.starts, home.steps)
            start = sum(self.shape(before)[home.dim] for before in home.before)
            return whole.narrow(home.dim, start, self.shape(name)[home.dim])
        out = self.network.handed.get(name)
        if out is not None and tuple(order) == tuple(range(len(order))):
            return self.callers(out)
        return self.buffer(self.shape(name), order, size, self.around(name))

    def callers(self, name: str) -> Place:
        """A tensor of floats that the caller gets: contiguous, as torch says."""
        shape = self.shape(name)
        strides, _, _ = dense(shape, range(len(shape)), 4)
        return Place(shape, strides, 0, of_caller(self.network.io[name]), 4)

    def around(self, name: str) -> dict[int, int]:
        """The halo of a value: dimension -> elements on both sides. Space is what stands last."""
        pads, rank = self.network.halos.get(name, ()), len(self.shape(name))
        return {rank - len(pads) + i: pad for i, pad in enumerate(pads) if pad}

    def buffer(self, shape: Axes, order: Sequence[int], size: int = 1, around: Mapping[int, int] | None = None) -> Place:
        strides, offset, total = dense(shape, order, size, around)
        self.buffers.append(Buffer(total + SLACK, self.now, self.now))
        return Place(shape, strides, offset, len(self.buffers) - 1, size)
