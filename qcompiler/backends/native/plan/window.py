"""The window of a convolution or a pool, in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Three = tuple[int, int, int]
LARGEST = 2**20  # of a window's sizes, which the C holds in 32 bits


@dataclass(frozen=True)
class Window:
    """In the order depth, height, width; what a layer with fewer dimensions lacks is 1, or 0 for the padding."""

    kernel: Three
    stride: Three = (1, 1, 1)
    dilation: Three = (1, 1, 1)
    pad: Three = (0, 0, 0)
    after: Three | None = None  # the padding behind the last element, where it is another one; a negative one leaves elements out

    def __post_init__(self) -> None:
        for values, least in ((self.kernel, 1), (self.stride, 1), (self.dilation, 1), (self.pad, -LARGEST), (self.behind, -LARGEST)):
            if not all(least <= value <= LARGEST for value in values):
                raise ValueError(f"{values} are no sizes of a window")

    @property
    def behind(self) -> Three:
        return self.pad if self.after is None else self.after

    @staticmethod
    def of(dims: int, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Window:
        return Window(three(kernel, dims, 1), three(stride, dims, 1), three(dilation, dims, 1), three(padding, dims, 0))

    def result(self, size: int, axis: int, up: bool = False) -> int:
        """How many windows fit along an axis; `up`: the last one may end outside (ceil_mode)."""
        kernel, stride, pad = self.kernel[axis], self.stride[axis], self.pad[axis]
        room = size + pad + self.behind[axis] - self.dilation[axis] * (kernel - 1) - 1
        if room < 0:
            raise ValueError(f"the window is larger than the input of {size} elements")
        found = (-(-room // stride) if up else room // stride) + 1
        return found - 1 if up and (found - 1) * stride >= size + pad else found


def window_fault(kwargs: Mapping[str, Any]) -> str | None:
    """Why the settings of a convolution give no window; None where they do."""
    if kwargs.get("padding_mode", "zeros") != "zeros":
        return f"padding mode {kwargs['padding_mode']!r:.20} has no C form"
    if any(isinstance(kwargs.get(name), str) for name in ("padding", "stride", "dilation")):
        return "its padding is computed from its sizes"
    return None


def three(value: Any, dims: int, other: int) -> Three:
    """A number, or one for each dimension, as three."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    values = values * dims if len(values) == 1 else values
    if len(values) != dims or not all(type(v) is int for v in values):
        raise ValueError(f"{value!r:.40} is not {dims} whole numbers")
    return (other,) * (3 - dims) + values  # type: ignore[return-value]
