"""What torch computes from sizes where those are planned (known.py), and how kernels read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.backends.native.known import DTYPES, function_of
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.place import Axes, Place, dense, settled_at
from qcompiler.backends.native.plan.planning import Argument
from qcompiler.backends.native.plan.samples import Samples
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.steps import is_value, leaves
from qcompiler.ir.nested import rewrite


@dataclass(frozen=True, eq=False)
class Computed(Layer):
    """function(*args, **kwargs) of numbers, of tensors of the network's and of what was computed before."""

    function: str
    args: tuple[Argument, ...]
    kwargs: Mapping[str, Argument]

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def stays(self, samples: Samples) -> bool:
        """What kernels read of it says."""
        return True

    @property
    def asks(self) -> tuple[str, ...]:
        """Whose sizes, and what of those, it needs."""
        return tuple(leaf[1:] for leaf in leaves((self.args, self.kwargs)) if is_value(leaf))

    def shape(self, sizes: Sizes) -> Axes:
        found = sizes.computed[self.out] = self._value(sizes)
        return tuple(found.shape) if isinstance(found, Tensor) else ()

    def _value(self, sizes: Sizes) -> object:
        args, kwargs = rewrite((self.args, dict(self.kwargs)), lambda leaf: self._leaf(leaf, sizes))
        if not any(isinstance(leaf, (torch.SymInt, torch.SymFloat)) or _is_meta(leaf) for leaf in leaves((args, kwargs))):
            with torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False):  # whatever is set around the call
                return function_of(self.function)(*args, **kwargs)
        if self.function == "operator.setitem":
            return None  # it changes no shape, and what it looks at would be held fixed
        with torch.device("meta"):  # sizes that are symbols: there is nothing but a shape
            args, kwargs = rewrite((args, kwargs), lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf)
            return function_of(self.function)(*args, **kwargs)

    def _leaf(self, leaf: Argument, sizes: Sizes) -> Argument:
        if is_value(leaf):
            return sizes.computed[leaf[1:]] if leaf[1:] in sizes.computed else sizes.shapes[leaf[1:]]
        return DTYPES.get(leaf, leaf) if isinstance(leaf, str) else leaf

    def place(self, sizes: Sizes) -> None:
        """Nowhere: kernels read it as Settled."""

    def text(self) -> str:
        return f"{self.function} of sizes"


def _is_meta(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


@dataclass(frozen=True, eq=False)
class Settled(Layer):
    """What was computed, or a number, as floats that kernels read: it lies beside the sizes. Bools are 1 and 0."""

    x: str

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def stays(self, samples: Samples) -> bool:
        return torch.equal(*self._both(samples))

    def by_sample(self, samples: Samples) -> bool:
        """Whether all samples have the same."""
        whole, part = self._both(samples)
        return torch.equal(whole, whole[:1].expand_as(whole)) and torch.equal(part, whole[: len(part)])

    def _both(self, samples: Samples) -> tuple[Tensor, Tensor]:
        return samples.whole.settled[self.out], samples.part.settled[self.out]

    def shape(self, sizes: Sizes) -> Axes:
        found = sizes.settled[self.out] = self._floats(sizes)
        return tuple(found.shape)

    def _floats(self, sizes: Sizes) -> Tensor:
        if self.x in sizes.computed:
            return torch.clone(sizes.computed[self.x].to(torch.float32), memory_format=torch.contiguous_format)
        number = sizes.shapes[self.x]
        return torch.tensor(float(number)) if isinstance(number, (int, float)) else torch.empty((), device="meta")

    def place(self, sizes: Sizes) -> Place:
        shape = sizes.shape(self.out)
        strides, _, _ = dense(shape, range(len(shape)), 4)
        return Place(shape, strides, 0, settled_at(list(sizes.settled).index(self.out)), 4)

    def text(self) -> str:
        return f"floats of {self.x}"
