"""Arguments of a program's calls: Python literals and five kinds of reference, and their one form in JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from qcompiler.errors import QCompilerError
from qcompiler.files.dtypes import DTYPE_NAMES, DTYPES

MAX_DEPTH = 32
FORMATS = {"contiguous_format", "channels_last", "channels_last_3d", "preserve_format"}
LAYOUTS = {"strided"}


@dataclass(frozen=True)
class Ref:
    """The value of an input, or of an earlier call."""

    name: str


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


class EncodeError(QCompilerError):
    """An argument that a program cannot hold."""

    default_code = "codegen-argument"


REFERENCES: dict[str, type] = {"ref": Ref, "const": Const, "scale": Scale, "zero_point": ZeroPoint}
_ONE_KEY = {Ref: "ref", Const: "const", Scale: "scale", ZeroPoint: "zero_point"}


def walk(value: Any) -> Iterator[Any]:
    """Every leaf of a nested argument."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from walk(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from walk(item)
    elif isinstance(value, slice):
        yield from walk((value.start, value.stop, value.step))
    else:
        yield value


def rewrite(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested argument with every leaf replaced; dict keys stay."""
    if isinstance(value, (tuple, list)):
        items = [rewrite(item, change) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {key: rewrite(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(rewrite(value.start, change), rewrite(value.stop, change), rewrite(value.step, change))
    return change(value)


def to_json(value: Any) -> Any:
    """Plain JSON data of one argument. Raises EncodeError where it has none."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if type(value) in _ONE_KEY:
        return {_ONE_KEY[type(value)]: value.index if isinstance(value, (Scale, ZeroPoint)) else value.name}
    if isinstance(value, list):
        return [to_json(v) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [to_json(v) for v in value]}
    if isinstance(value, dict):  # pairs: the order of keys is the order the user sees
        return {"dict": [[to_json(k), to_json(v)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [to_json(v) for v in (value.start, value.stop, value.step)]}
    return _special_to_json(value)


def _special_to_json(value: Any) -> Any:
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"dtype": DTYPE_NAMES[value]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.layout):
        return {"layout": str(value).removeprefix("torch.")}
    if isinstance(value, complex):
        return {"complex": [to_json(value.real), to_json(value.imag)]}
    raise EncodeError(f"an argument of type {type(value).__qualname__} cannot be part of a compiled program")


def from_json(data: Any, depth: int = 0) -> Any:
    """The argument that `to_json` wrote. Raises ValueError for anything else."""
    if depth > MAX_DEPTH:
        raise ValueError("argument nested too deep")
    if data is None or isinstance(data, (bool, str, float)):
        return data
    if isinstance(data, int):
        if not -(2**63) <= data < 2**63:
            raise ValueError("integer beyond 64 bits")
        return data
    if isinstance(data, list):
        return [from_json(v, depth + 1) for v in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("argument is not a tagged value")
    ((tag, body),) = data.items()
    if tag in REFERENCES:
        wanted = int if tag in ("scale", "zero_point") else str
        if type(body) is not wanted:
            raise ValueError(f"bad {tag}")
        return REFERENCES[tag](body)
    return _tagged(tag, body, depth)


def _tagged(tag: str, body: Any, depth: int) -> Any:
    def items(length: int | None = None) -> list[Any]:
        if not isinstance(body, list) or (length is not None and len(body) != length):
            raise ValueError(f"bad {tag}")
        return [from_json(v, depth + 1) for v in body]

    if tag == "tuple":
        return tuple(items())
    if tag == "slice":
        return slice(*items(3))
    if tag == "dict":
        pairs = items()
        if not all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], (str, int, float, bool, type(None))) for p in pairs):
            raise ValueError("bad dict")
        return dict(pairs)
    if tag == "complex":
        real, imag = items(2)
        if not isinstance(real, float) or not isinstance(imag, float):
            raise ValueError("bad complex")
        return complex(real, imag)
    return _named(tag, body)


def _named(tag: str, body: Any) -> Any:
    if tag == "ellipsis" and body is True:
        return Ellipsis
    if isinstance(body, str):
        if tag == "float" and body in ("inf", "-inf", "nan"):
            return float(body)
        if tag == "dtype" and body in DTYPES:
            return DTYPES[body]
        if tag == "device" and body in ("cpu", "meta"):
            return torch.device(body)
        if tag == "memory_format" and body in FORMATS:
            return getattr(torch, body)
        if tag == "layout" and body in LAYOUTS:
            return getattr(torch, body)
    raise ValueError(f"unknown value tag {tag!r:.40}")
