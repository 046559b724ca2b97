"""The memory of a search, given back as soon as it is needed no more.

An fx graph refers to itself, so the tensors of one that was judged would wait for the garbage collector. And the C library keeps what is
freed between pieces that are in use: of EfficientNet-Lite0 as much as the search itself needs.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from qcompiler.config.corrections import Corrections
from qcompiler.workflow.twins import Twin, twins


def let_go(of: object, *made: nn.Module) -> None:
    """Takes all tensors from graphs that are needed no more. What they have in common with the prepared module `of` stays."""
    kept = {id(module) for module in of.modules()} if isinstance(of, nn.Module) else set[int]()
    for module in (module for graph in made for module in graph.modules()):
        if id(module) not in kept:
            module._parameters.clear()
            module._buffers.clear()
    give_back()


@contextmanager
def twins_for_now(prepared: object, corrections: Corrections | None = None) -> Iterator[list[Twin]]:
    """The twins of a prepared module, whose tensors go at the end of the `with`."""
    made = twins(prepared, corrections)
    try:
        yield made
    finally:
        let_go(prepared, *(graph for twin in made for graph in (twin.floats, twin.quantized)))


def give_back() -> None:
    """Hands freed memory to the system, where the C library has a call for it. A few milliseconds."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], object] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
