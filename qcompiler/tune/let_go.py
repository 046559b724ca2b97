"""The memory of a search, given back as soon as it is needed no more.

An fx graph refers to itself, so the tensors of one that was judged would wait for the garbage collector. And the C library keeps what is
freed between pieces that are in use: of EfficientNet-Lite0 as much as the search itself needs.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

from torch import nn


def let_go(made: nn.Module, of: object) -> None:
    """Takes all tensors from a graph that is needed no more. What it has in common with the prepared module that it was made of stays."""
    kept = {id(module) for module in of.modules()} if isinstance(of, nn.Module) else set[int]()
    for module in made.modules():
        if id(module) not in kept:
            module._parameters.clear()
            module._buffers.clear()
    give_back()


def give_back() -> None:
    """Hands freed memory to the system, where the C library has a call for it. A few milliseconds."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], object] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
