"""What a backward pass reads again, in a file where that is much: else every value of a model is in memory at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.tune.shelf import LEAST, ROOM, NamelessFile, Written, can_be_written


@dataclass(frozen=True)
class Held:
    """A tensor that stayed in memory, and how often it had been changed in place by then."""

    tensor: Tensor
    version: int


Kept: TypeAlias = "Held | Written"


class Saved:
    """Within its `with`, torch keeps here what it saves for the backward pass: `ROOM` bytes in memory, the rest in a file without a name.

    A tensor that several ops save is kept once. What is in the file is as it was when it was saved; for what stayed in memory and was
    changed in place since, `get` raises RuntimeError, as torch does without this. `there`: tensors that are in memory in any case.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        self._there = {tensor.untyped_storage().data_ptr() for tensor in there}
        self._room, self._file = ROOM, NamelessFile()
        self._known: dict[object, tuple[weakref.ref[torch.UntypedStorage], Kept]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, self.get)
        self._stack = ExitStack()

    def __enter__(self) -> Saved:
        self._stack.callback(self._file.close)
        self._stack.enter_context(self._hooks)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        self._known.clear()

    def keep(self, tensor: Tensor) -> Kept:
        """What `get` makes the tensor of."""
        tensor = tensor.detach()
        if tensor.layout is not torch.strided or tensor.nbytes <= LEAST or tensor.untyped_storage().data_ptr() in self._there:
            return Held(tensor, tensor._version)
        storage = tensor.untyped_storage()
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor._version)
        of, found = self._known.get(key, (None, None))
        if of is None or found is None or of() is not storage:  # of a storage that is gone, another may have the place
            found = self._put(tensor)
            self._known[key] = weakref.ref(storage), found
        return found

    def get(self, kept: Kept) -> Tensor:
        found = self.look(kept)
        return found.read() if isinstance(found, Written) else found

    def look(self, kept: Kept) -> Tensor | Written:
        """As `get`, and what is in the file stays there, to be read by pieces."""
        if isinstance(kept, Written):
            return kept
        if kept.tensor._version != kept.version:
            raise RuntimeError("a value that its gradient needs was changed in place")
        return kept.tensor

    def _put(self, tensor: Tensor) -> Kept:
        if tensor.nbytes <= self._room or not can_be_written(tensor):
            self._room -= tensor.nbytes
            return Held(tensor, tensor._version)
        try:
            return self._file.put(tensor)
        except OSError:
            self._room = 2**63
            return Held(tensor, tensor._version)
