"""What takes rows of a table, or elements of a row, by numbers that are found at run time, and how far these may reach.

Numbers that layers find, or that sizes settle, are checked where places are planned; those that torch or the caller gives, at each call.
Kernels look at each number once more: one that nothing has gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.sizes import Sizes


class ByNumber:
    """A layer of this kind. `source`: the value that its numbers are the elements of, seen in any shape."""

    source: str

    @property
    def numbers(self) -> str:
        """The value of the numbers."""
        raise NotImplementedError

    @property
    def meaning(self) -> str:
        """What the numbers are, for people."""
        raise NotImplementedError

    @property
    def from_end(self) -> bool:
        """Whether negative numbers count from the end."""
        return False

    def reach(self, sizes: Sizes) -> int:
        """How many rows or elements there are."""
        raise NotImplementedError

    def of_what(self, reach: int) -> str:
        """What has so many."""
        raise NotImplementedError

    def check_numbers(self, sizes: Sizes) -> None:
        """Raises ValueError for places that layers find, or that the sizes give, of which some may lie beyond reach."""
        reach, longest, known = self.reach(sizes), sizes.longest.get(self.source, 0), sizes.settled.get(self.source)
        if longest > reach:
            raise ValueError(f"a place among {longest} elements may lie outside of {self.of_what(reach)}")
        if known is not None and known.numel() and not (known.min() >= 0 and known.max() < reach):
            raise ValueError(f"rows {int(known.min())} to {int(known.max())} of {self.of_what(reach)}")


def numbers_given(layers: Sequence[Layer]) -> dict[str, list[ByNumber]]:
    """Of each input that gives such numbers, the layers that take them."""
    made, found = {layer.out: layer for layer in layers}, dict[str, list[ByNumber]]()
    for layer in layers:
        if isinstance(layer, ByNumber):
            name = layer.numbers
            while name in made and len(made[name].reads) == 1 and not made[name].gives_places:
                name = made[name].reads[0]
            if name not in made:
                found.setdefault(name, []).append(layer)
    return found
