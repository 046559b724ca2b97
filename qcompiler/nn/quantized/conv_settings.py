"""Settings of convolutions: their checks, and sizes of one number or one a dimension. For int8 and dynamic modules alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qcompiler.errors import ConfigError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
Size = int | Sequence[int]


def sizes(value: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values


def weight_shape(in_channels: int, out_channels: int, kernel: tuple[int, ...], groups: int, transposed: bool) -> tuple[int, ...]:
    """(O, I / groups, *kernel), transposed (I, O / groups, *kernel). ConfigError where the groups do not divide the channels."""
    if groups < 1 or in_channels % groups or out_channels % groups or out_channels < 1:
        raise ConfigError(f"{in_channels} in and {out_channels} out channels cannot be split in {groups} groups", code="channels")
    return (in_channels, out_channels // groups, *kernel) if transposed else (out_channels, in_channels // groups, *kernel)


def check_padding(padding: Size | str, padding_mode: str, stride: Size) -> None:
    """Raises ConfigError for a padding that nn.Conv* does not take either."""
    if padding_mode not in PADDING_MODES:
        raise ConfigError(f"padding_mode {padding_mode!r} is not known", code="padding-mode", hint=f"one of {', '.join(PADDING_MODES)}")
    if isinstance(padding, str) and padding not in ("same", "valid"):
        raise ConfigError(f"padding {padding!r} is not known", code="padding", hint="a size, 'same' or 'valid'")
    if padding == "same" and any(s != 1 for s in sizes(stride, 1)):
        raise ConfigError("padding='same' needs stride 1", code="padding")


def check_transposed(padding_mode: str) -> None:
    """Raises ConfigError for anything but zeros."""
    if padding_mode != "zeros":
        raise ConfigError(f"a transposed convolution has padding_mode 'zeros', not {padding_mode!r}", code="padding-mode")
