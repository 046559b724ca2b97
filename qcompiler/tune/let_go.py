"""The memory of a search, given back as soon as it is needed no more.

An fx graph refers to itself, so the tensors of one that was judged would wait for the garbage collector. And the C library keeps what is
freed between pieces that are in use: of EfficientNet-Lite0 as much as the search itself needs.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import fx, nn

from qcompiler.config.corrections import Corrections
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms
from qcompiler.workflow.twins import Twin, twins

SPARE = 2**26  # bytes that the C library may keep
_then = [0]  # what the process had when memory was given back the last time


def let_go(of: object, *made: nn.Module) -> None:
    """Takes all tensors from graphs that are needed no more. What they have in common with the prepared module `of` stays."""
    kept = {id(module) for module in of.modules()} if isinstance(of, nn.Module) else set[int]()
    for module in (module for graph in made for module in graph.modules()):
        if id(module) not in kept:
            module._parameters.clear()
            module._buffers.clear()
    give_back()


def graphs_of(module: nn.Module | None) -> list[fx.GraphModule]:
    """The graphs that stay with a converted module, one for each form of its call."""
    forms = module.call_forms if isinstance(module, CallForms) else [module]
    found = [form._graph() for form in forms if isinstance(form, Executable)]
    return [graph for graph in found if graph is not None]


@contextmanager
def twins_for_now(prepared: object, corrections: Corrections | None = None) -> Iterator[list[Twin]]:
    """The twins of a prepared module, whose tensors go at the end of the `with`."""
    made = twins(prepared, corrections)
    try:
        yield made
    finally:
        let_go(prepared, *(graph for twin in made for graph in (twin.floats, twin.quantized)))


def give_back(spare: int = 0) -> None:
    """Hands freed memory to the system, where the C library has a call for it. A few milliseconds, and time to get it again: `spare` bytes
    that the process may have grown by since the last time."""
    trim = _trim()
    if trim is not None and (not spare or _own_memory() > _then[0] + spare):
        trim(0)
        _then[0] = _own_memory()


def _own_memory() -> int:
    """Bytes of the process that are in memory and of no file."""
    try:
        _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    except OSError:
        return 0
    return (resident - of_files) * mmap.PAGESIZE


@functools.cache
def _trim() -> Callable[[int], object] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
