"""Arguments of a program's calls: plain values and four kinds of reference, and their one form in JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qcompiler.files import values
from qcompiler.ir.nested import Ref


@dataclass(frozen=True)
class Const:
    """A tensor of the state_dict, under its dotted name."""

    name: str


@dataclass(frozen=True)
class Scale:
    """Entry `index` of the module's activation scales (real per step)."""

    index: int


@dataclass(frozen=True)
class ZeroPoint:
    """Entry `index` of the module's activation zero points (in steps)."""

    index: int


_ONE_KEY: dict[type, tuple[str, str]] = {
    Ref: ("ref", "name"), Const: ("const", "name"), Scale: ("scale", "index"), ZeroPoint: ("zero_point", "index"),
}  # fmt: skip


def _written(value: object) -> object:
    if type(value) not in _ONE_KEY:
        return None
    tag, field = _ONE_KEY[type(value)]
    return {tag: getattr(value, field)}


def _reader(kind: type, tag: str, field: str) -> Callable[[object], object]:
    def read(body: object) -> Any:
        if type(body) is not (int if field == "index" else str):
            raise ValueError(f"bad {tag}")
        return kind(body)

    return read


_READ = {tag: _reader(kind, tag, field) for kind, (tag, field) in _ONE_KEY.items()}


def to_json(value: object) -> Any:
    """Plain JSON data of one argument. Raises EncodeError where it has none."""
    return values.to_json(value, _written)


def from_json(data: object) -> Any:
    """The argument that `to_json` wrote. Raises ValueError for anything else."""
    return values.from_json(data, _READ)
