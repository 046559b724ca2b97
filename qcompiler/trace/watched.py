"""What a forward can change that no graph can carry: arrays of numpy, sources of random numbers, iterators, weak dicts.

Each is looked at before and after a trace. A module that changes one stays as it is, where a call of it goes on doing so; what the trace
changed is put back. What cannot be put back (a generator that went on) is an error.
"""

from __future__ import annotations

import array
import contextlib
import copy
import itertools
import operator
import random
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Numbers = np.random.Generator | np.random.RandomState
Read = Callable[..., object]
Write = Callable[..., object]
_LARGEST = 2**24  # elements of an array that is copied to compare it later


@dataclass(frozen=True)
class Watched:
    """A thing of the user's. `owner`: path of the module that leads to it. `before`: what it held; `write` puts that back."""

    name: str
    owner: str
    value: object
    read: Read
    write: Write | None
    before: object

    @property
    def what(self) -> str:
        return type(self.value).__qualname__

    def changed(self) -> bool:
        return not _same(self.read(self.value), self.before)

    def restore(self) -> None:
        if self.write is not None and self.changed():
            self.write(self.value, self.before)


def watch(value: object, name: str, owner: str) -> Watched | None:
    """None for what cannot change, or not in a way that can be seen."""
    found = next(((read, write) for kind, read, write in _KINDS if isinstance(value, kind)), None)
    if found is None or (isinstance(value, np.ndarray) and (value.dtype.hasobject or value.size > _LARGEST)):
        return None
    with contextlib.suppress(Exception):  # an iterator of the user's may do anything
        return Watched(name, owner, value, *found, found[0](value))
    return None


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(a.shape == b.shape and a.tobytes() == b.tobytes())
    return bool(a.text == b.text if isinstance(a, Bits) and isinstance(b, Bits) else a == b)


@dataclass(frozen=True)
class Bits:
    """The state of a generator of numpy: as text to compare, and as what is put back."""

    text: str
    state: dict[str, object]


def _array(value: Array) -> Array:
    return value.copy()


def _write_array(value: Array, before: Array) -> None:
    value[...] = before


def _write_items(value: array.array[int], before: array.array[int]) -> None:
    value[:] = before


def _bits(value: Numbers) -> Bits:
    state = value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state(legacy=False)
    return Bits(_text(state), dict(state))


def _text(state: object) -> str:
    if isinstance(state, dict):
        return "".join(f"{key} {_text(value)} " for key, value in state.items())
    return state.tobytes().hex() if isinstance(state, np.ndarray) else repr(state)


def random_numbers() -> object:
    """The state of the sources of random numbers that Python and numpy have for the whole process."""
    return random.getstate(), _text(np.random.get_state(legacy=False))


def _write_bits(value: Numbers, before: Bits) -> None:
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = before.state
    else:
        value.set_state(before.state)


def _contents(value: weakref.WeakKeyDictionary[object, object]) -> object:
    return [(id(key), id(item)) for key, item in value.items()]


def _position(value: Iterator[object]) -> object:
    """How far an iterator is."""
    if isinstance(value, types.GeneratorType):
        return value.gi_frame.f_lasti if value.gi_frame is not None else None
    if isinstance(value, itertools.count):
        return repr(value)
    return operator.length_hint(value)


_KINDS: tuple[tuple[type | tuple[type, ...], Read, Write | None], ...] = (
    (np.ndarray, _array, _write_array),
    (array.array, copy.copy, _write_items),
    (random.Random, random.Random.getstate, random.Random.setstate),
    ((np.random.Generator, np.random.RandomState), _bits, _write_bits),
    ((weakref.WeakKeyDictionary, weakref.WeakValueDictionary), _contents, None),
    (Iterator, _position, None),
)
