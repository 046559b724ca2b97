"""The one form in JSON of what an argument of a program is made of."""

from __future__ import annotations

import math
from typing import Any

from qcompiler.ir.form import KINDS, PLAIN, Form

MAX_DEPTH = 32


def form_to_data(form: Form) -> dict[str, object]:
    """Plain JSON data; what is empty is left out."""
    data: dict[str, Any] = {"kind": form.kind}
    if form.kind == "number":
        kind, value = type(form.value).__name__, form.value
        return data | {"name": kind, "value": value if math.isfinite(value) else repr(value)} | ({"fixed": True} if form.name else {})
    data |= {"name": form.name} if form.name else {}
    data |= {"value": form.value} if form.kind == "value" else {}
    data |= {"shape": list(form.shape)} if form.kind == "tensor" else {}
    data |= {"keys": list(form.keys)} if form.keys else {}
    return data | ({"parts": [form_to_data(part) for part in form.parts]} if form.parts else {})


def form_from_data(data: object, depth: int = 0) -> Form:
    """The form that `form_to_data` wrote. Raises ValueError for anything else."""
    if type(data) is not dict or data.get("kind") not in KINDS or depth > MAX_DEPTH:
        raise ValueError("bad form")
    kind, name, value = data["kind"], data.get("name", ""), data.get("value")
    shape, keys, parts = (_listed(data, key) for key in ("shape", "keys", "parts"))
    if kind == "number":
        if (name, type(value)) not in (("int", int), ("float", float), ("float", int), ("float", str)):
            raise ValueError("bad form")
        return Form(kind, value if name == "int" else float(value or 0), "fixed" if data.get("fixed") is True else "")
    if type(name) is not str or type(value) not in PLAIN or len(keys) != (len(parts) if kind in ("named", "dict") else 0):
        raise ValueError("bad form")
    if not all(type(size) is int for size in shape) or not all(type(key) in (str, int) for key in keys):
        raise ValueError("bad form")
    return Form(kind, value, name, tuple(shape), tuple(keys), tuple(form_from_data(part, depth + 1) for part in parts))


def _listed(data: dict[str, Any], key: str) -> list[Any]:
    found = data.get(key, [])
    if type(found) is not list:
        raise ValueError("bad form")
    return found
