"""What a quantized, observed or trained module says of the float modules that it stands for."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

FloatClasses: TypeAlias = type[nn.Module] | tuple[type[nn.Module], ...] | None  # one class, several, or none that a conversion swaps
