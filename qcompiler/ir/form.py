"""What one argument of a call is made of: tensors, numbers and fixed values, in nested containers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

NUMBERS = (int, float)
PLAIN = (bool, str, type(None))
CONTAINERS = ("list", "tuple", "named", "dict")
KINDS = ("tensor", "number", "value", *CONTAINERS, "object")


@dataclass(frozen=True)
class Form:
    """One argument, as the examples gave it.

    kind: "tensor" (`name`: its dtype; `shape`), "number" (`value`: the example's int or float; `name`: "fixed" where no other will do),
    "value" (`value`: a bool, str or None), a container ("list", "tuple", "named" tuple, "dict"), or "object" (anything else). `name`: of
    a named tuple's or an object's class. `keys`: of a dict; the fields of a named tuple.
    `parts`: the forms of what a container holds, in order.
    """

    kind: str
    value: Any = None
    name: str = ""
    shape: tuple[int, ...] = ()
    keys: tuple[Any, ...] = ()
    parts: tuple[Form, ...] = ()

    @staticmethod
    def of(example: Any) -> Form:
        if isinstance(example, torch.Tensor):
            return Form("tensor", name=str(example.dtype).removeprefix("torch."), shape=tuple(map(int, example.shape)))
        example = example.item() if isinstance(example, np.generic) else example
        if type(example) in NUMBERS:
            return Form("number", example)
        if type(example) in PLAIN:
            return Form("value", example)
        name = type(example).__name__
        if isinstance(example, tuple) and hasattr(example, "_fields"):
            return Form("named", name=name, keys=tuple(example._fields), parts=tuple(map(Form.of, example)))
        if type(example) in (list, tuple):
            return Form(name, parts=tuple(map(Form.of, example)))
        if isinstance(example, dict) and all(type(key) in (str, int) for key in example) and not hasattr(example, "__dataclass_fields__"):
            return Form("dict", keys=tuple(example), parts=tuple(map(Form.of, example.values())))
        return Form("object", name=name)

    def __str__(self) -> str:
        """As messages show it: `[torch.float32[2, 8], None]`."""
        if self.kind == "tensor":
            return f"torch.{self.name}{list(self.shape)}"
        if self.kind == "number":
            return repr(self.value) if self.name else type(self.value).__name__
        if self.kind == "value":
            return repr(self.value)
        inside = [f"{key!r}: {part}" if self.kind == "dict" else f"{key}={part}" for key, part in zip(self.keys, self.parts, strict=False)]
        inside = inside or list(map(str, self.parts))
        text = ", ".join(inside)
        return {"list": f"[{text}]", "tuple": f"({text}{',' if len(inside) == 1 else ''})", "dict": f"{{{text}}}",
                "named": f"{self.name}({text})"}.get(self.kind, self.name)  # fmt: skip

    def walk(self, path: str) -> Iterator[tuple[str, Form]]:
        """This form and those inside, each with how it is reached."""
        yield path, self
        for spelled, part in zip(self.steps(), self.parts, strict=True):
            yield from part.walk(path + spelled)

    def steps(self) -> list[str]:
        """How each part is reached from its container."""
        if self.kind == "named":
            return [f".{key}" for key in self.keys]
        return [f"[{key!r}]" for key in self.keys or range(len(self.parts))]


def misfit(form: Form, value: object, path: str) -> str | None:
    """Why a value is none of a form, in one clause; None where it fits. Sizes of tensors and values of numbers may differ."""
    if form.kind == "tensor":
        fits = isinstance(value, torch.Tensor) and value.dim() == len(form.shape) and str(value.dtype) == f"torch.{form.name}"
        return None if fits else _told(form, value, path)
    if form.kind == "number":
        given = as_number(value, type(form.value))
        return _told(form, value, path) if given is None or (form.name and given != form.value) else None
    if form.kind == "value":
        return None if value is form.value or (type(value) is type(form.value) and value == form.value) else _told(form, value, path)
    if form.kind == "object":
        kind = getattr(value, "stands_for", "") or type(value).__name__  # a record of a loaded module goes in as it came out
        return None if kind == form.name else _told(form, value, path)
    return _misfit_inside(form, value, path)


def _misfit_inside(form: Form, value: object, path: str) -> str | None:
    if form.kind == "dict":
        if not isinstance(value, dict) or tuple(value) != form.keys:
            return _told(form, value, path)
        items = list(value.values())
    elif not isinstance(value, (list, tuple)):
        return _told(form, value, path)
    elif len(value) != len(form.parts):
        return f"{path}: the traced model holds the number of values in {path!r} fixed: expected {form}, got {Form.of(value)}"
    else:
        items = list(value)
    steps = form.steps()
    return next((text for i, part in enumerate(form.parts) if (text := misfit(part, items[i], path + steps[i])) is not None), None)


def _told(form: Form, value: object, path: str) -> str:
    return f"{path} must be {form}, got {Form.of(value)}"


def as_number(value: object, kind: type) -> int | float | None:
    """A given number as an int or a float: Python's, NumPy's, or a tensor of one element without dimensions; None for others."""
    if isinstance(value, torch.Tensor) and value.dim() == 0 and not value.is_complex():
        value = value.item()
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) not in NUMBERS or (kind is int and type(value) is float):
        return None
    return kind(value)  # type: ignore[no-any-return]


def likeness(form: Form, value: Any) -> int:
    """How many sizes and numbers of a fitting value are those of the form's example."""
    if form.kind == "tensor":
        return sum(a == b for a, b in zip(form.shape, value.shape, strict=True))
    if form.kind == "number":
        return int(as_number(value, type(form.value)) == form.value)
    items = value.values() if form.kind == "dict" else value if form.kind in CONTAINERS else ()
    return sum(likeness(part, item) for part, item in zip(form.parts, items, strict=False))
