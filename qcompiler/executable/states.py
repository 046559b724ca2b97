"""Modules whose programs keep state: buffers that hold it stay the same objects, whatever is put into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

STATES = "_states"  # names of a module's own buffers that hold state
_assigned = [0]


def assignments() -> int:
    """How often a tensor was assigned to a module of this kind, in this process."""
    return _assigned[0]


class KeepsState(nn.Module):
    """A module in which `module.h = value` puts a tensor, a number, or None (no value yet) into a state, and whose state_dict may
    hold states of other shapes than the module's."""

    def __setattr__(self, name: str, value: Any) -> None:
        held = self.__dict__.get("_buffers", {}).get(name)
        if held is None or name not in self.__dict__.get(STATES, ()) or not (value is None or isinstance(value, (Tensor, int, float))):
            _assigned[0] += held is not None or name in self.__dict__.get("_parameters", ())
            super().__setattr__(name, value)
            return
        fill(held, torch.zeros(0) if value is None else value if isinstance(value, Tensor) else torch.tensor(value))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in self.__dict__.get(STATES, ()):
            held, given = self._buffers.get(name), state_dict.get(prefix + name)
            if held is not None and isinstance(given, Tensor) and given.dtype == held.dtype and given.shape != held.shape:
                fill(held, given)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]


def fill(held: Tensor, value: Tensor) -> None:
    """Point the tensor that holds a state at a copy of a value, in its own dtype."""
    with torch.no_grad():
        held.set_(value.detach().to(held.dtype, copy=True))  # type: ignore[call-overload]


def mark_states(scope: nn.Module, names: list[str]) -> None:
    """Note which buffers of a module hold state."""
    if names or STATES in scope.__dict__:
        scope.__dict__[STATES] = tuple(names)


@contextmanager
def states_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Bring back, in the end, what these states hold now."""
    before = [(held, held.detach().clone()) for held in tensors]
    try:
        yield
    finally:
        for held, value in before:
            fill(held, value)
