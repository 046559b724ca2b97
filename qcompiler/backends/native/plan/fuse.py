"""Sums and tables into the convolution before them: the value between is never written.

conv -> q; q + r -> y   becomes   y = the sum of q and r   in the convolution's epilogue, but for depthwise ones, whose kernels take none
conv -> q; table[q] -> y   becomes   y = table[q]
Both give the same codes as the layers one by one. The convolution may make either operand of a sum or a difference: its own comes first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from qcompiler.backends.native.plan.conv import Conv, Residual
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.network import Network
from qcompiler.backends.native.plan.pointwise import Map, Pair
from qcompiler.backends.native.plan.relayout import Relayout
from qcompiler.backends.native.plan.settled import Computed
from qcompiler.backends.native.plan.shape import Number
from qcompiler.backends.native.plan.sizes import Sizes


def fuse(network: Network, example: Sizes) -> Network:
    """`example`: shapes of the values at the sizes of the example; a sum is fused where both operands have one shape there. At others a
    constant may be spread over what the inputs give, and so may what it is added to, which a convolution then does not make.
    """
    fuser = _Fuser(network, example)
    for index in range(len(network.layers)):
        fuser.visit(index)
    layers = tuple(layer for layer in fuser.layers if layer is not None)
    return replace(network, layers=layers)


class _Fuser:
    def __init__(self, network: Network, example: Sizes) -> None:
        self.network, self.example = network, example
        self.layers: list[Layer | None] = list(network.layers)
        self.readers = Counter(name for layer in network.layers for name in layer.reads)
        self.readers.update(network.outputs)
        self.readers.update(name for layer in network.layers if isinstance(layer, (Number, Computed)) for name in layer.asks)
        self.at = {layer.out: index for index, layer in enumerate(network.layers)}
        self.moving = {name for name, _ in network.inputs}
        for layer in network.layers:
            self.moving.update([layer.out] if self.moving.intersection(layer.reads) else [])
        self.like: dict[str, list[int]] = {}
        for index, layer in enumerate(network.layers):
            if isinstance(layer, Relayout) and layer.wants == "like":
                self.like.setdefault(layer.other, []).append(index)

    def visit(self, index: int) -> None:
        layer = self.layers[index]
        if isinstance(layer, Map) and layer.table is not None and layer.table.dim() == 1:
            conv = self._only_for(layer.x)
            if conv is not None:
                self._put(index, conv, replace(conv, out=layer.out, table=layer.table))
        elif isinstance(layer, Pair) and layer.op == "add":
            self._sum(index, layer)

    def _only_for(self, name: str) -> Conv | None:
        """The convolution that makes a value, if it may do more: one other layer reads the value, which lies in no cat."""
        found = self.layers[self.at[name]] if name in self.at else None
        free = isinstance(found, Conv) and found.can_add and found.table is None
        alone = self.readers[name] == 1 and name not in self.network.homes and name not in self.network.halos
        return found if free and alone and isinstance(found, Conv) else None

    def _sum(self, index: int, pair: Pair) -> None:
        if self.example.shape(pair.a) != self.example.shape(pair.b):
            return
        both = (
            (pair.a, pair.a_codes, pair.b, pair.b_codes, pair.times),
            (pair.b, pair.b_codes, pair.a, pair.a_codes, (pair.times[1], pair.times[0])),
        )
        for own, codes, other, other_codes, times in sorted(both, key=lambda one: -self.at.get(one[0], -1)):
            conv = self._only_for(own) if own in self.moving or other not in self.moving else None
            if conv is not None and conv.residual is None and conv.codes == codes and not conv.is_depthwise:
                low, high = pair.codes.limits(pair.bounds)
                residual = Residual(other, other_codes, low, high, times)
                self._put(index, conv, replace(conv, out=pair.out, residual=residual, of_sum=pair.codes))
                return

    def _put(self, index: int, old: Conv, new: Conv) -> None:
        """`new` stands where the other layer stood, behind everything that it reads."""
        self.layers[self.at.pop(old.out)] = None
        for place in self.like.pop(old.out, ()):  # copied to lie as a value does that nobody writes any more, and as all of its kind do
            layer = self.layers[place]
            assert isinstance(layer, Relayout)
            self.layers[place] = replace(layer, wants="pixels" if old.dims else "rows", dims=old.dims, other="")
        self.layers[index] = replace(new, label=f"{old.label} + {new.out}")
        self.at[new.out] = index
