"""Plain values in JSON: numbers, text, dtypes, devices, slices, tuples, lists and dicts, each in one form that reads back as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from qcompiler.errors import QCompilerError
from qcompiler.files.dtypes import DTYPE_NAMES, DTYPES

MAX_DEPTH = 32
FORMATS = {"contiguous_format", "channels_last", "channels_last_3d", "preserve_format"}
LAYOUTS = {"strided"}
Write = Callable[[Any], Any]  # JSON data of a value of a caller's own classes, None for any other value
Read = Mapping[str, Callable[[Any], Any]]  # by tag, what makes such a value of its JSON data; ValueError for bad data
NONE: Read = {}


class EncodeError(QCompilerError):
    """A value that has no form in a file."""

    default_code = "codegen-argument"


def to_json(value: object, own: Write | None = None) -> Any:
    """JSON data of a value. `own` writes values of the caller's own classes. Raises EncodeError for what has no form."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if own is not None and (made := own(value)) is not None:
        return made
    if isinstance(value, list):
        return [to_json(v, own) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [to_json(v, own) for v in value]}
    if isinstance(value, dict):  # pairs: the order of keys is the order the user sees
        return {"dict": [[to_json(k, own), to_json(v, own)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [to_json(v, own) for v in (value.start, value.stop, value.step)]}
    return _special_to_json(value)


def _special_to_json(value: object) -> object:
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


def from_json(data: object, own: Read = NONE, depth: int = 0) -> Any:
    """The value that `to_json` wrote. Raises ValueError for anything else."""
    if depth > MAX_DEPTH:
        raise ValueError("argument nested too deep")
    if data is None or isinstance(data, (bool, str, float)):
        return data
    if isinstance(data, int):
        if not -(2**63) <= data < 2**63:
            raise ValueError("integer beyond 64 bits")
        return data
    if isinstance(data, list):
        return [from_json(v, own, depth + 1) for v in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("argument is not a tagged value")
    ((tag, body),) = data.items()
    return own[tag](body) if tag in own else _tagged(tag, body, own, depth)


def _tagged(tag: str, body: object, own: Read, depth: int) -> object:
    def items(length: int | None = None) -> list[Any]:
        if not isinstance(body, list) or (length is not None and len(body) != length):
            raise ValueError(f"bad {tag}")
        return [from_json(v, own, depth + 1) for v in body]

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


def _named(tag: str, body: object) -> Any:
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


def canonical(data: object) -> str:
    """JSON text with sorted keys, ASCII, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
