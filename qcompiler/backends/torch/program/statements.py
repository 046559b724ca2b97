"""The parts of a program, its arguments and its statements, and their forms in JSON."""

from __future__ import annotations

import keyword
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.quote import comment
from qcompiler.backends.torch.program.values import from_json, to_json
from qcompiler.errors import QCompilerError
from qcompiler.executable.form_data import form_from_data, form_to_data
from qcompiler.files.dtypes import DTYPES
from qcompiler.ir.form import Form
from qcompiler.ir.nested import walk


class ProgramError(QCompilerError):
    """Data that is not a valid program."""

    default_code = "bad-program"


@dataclass(frozen=True)
class Input:
    """One argument of forward. `dtype`, `rank` and `shape` as seen with the example inputs, None where it is no tensor.

    `form`: what an argument that is no tensor is made of; None where that is not known (older files).
    Another shape of the same rank may do as well: `shape` is for messages.
    """

    name: str
    dtype: str | None = None
    rank: int | None = None
    optional: bool = False
    default: Any = None
    shape: tuple[int, ...] | None = None
    form: Form | None = None

    @property
    def number(self) -> type | None:
        """int or float for an argument that is one, unless it is held fixed by its default."""
        return type(self.form.value) if self.form is not None and self.form.kind == "number" else None

    def __str__(self) -> str:
        known = self.shape if self.shape is not None else "?" * (self.rank or 0)
        if self.rank is None and self.form is not None:
            return str(self.form)
        return f"torch.{self.dtype}[{', '.join(map(str, known))}]" if self.rank is not None else ""


@dataclass(frozen=True)
class Call:
    """One statement `out = op(*args, **kwargs)`; `out` is None where nothing reads the result.

    `origin` names the nodes of the traced model that it computes (see ir.types.Source), for those who compare with it.
    """

    out: str | None
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    comment: str = ""
    origin: tuple[str, ...] = ()

    def values(self) -> tuple[Any, ...]:
        """Every leaf of its arguments; many ask, so they are found once."""
        found: tuple[Any, ...] | None = self.__dict__.get("_values")
        if found is None:
            found = self.__dict__["_values"] = (*walk(self.args), *walk(list(self.kwargs.values())))
        return found

    @property
    def leaf(self) -> str | None:
        """Path of the submodule that is called or handed on, if one is."""
        return str(self.args[0]) if self.op in (registry.LEAF, registry.SUBMODULE) else None


def is_name(text: object) -> bool:
    """Whether generated source may use it as a variable: an ASCII identifier, no keyword, not self."""
    return isinstance(text, str) and text.isascii() and text.isidentifier() and not keyword.iskeyword(text) and text != "self"


def is_argument(text: object) -> bool:
    """Whether it can be an argument of forward, which keeps the user's name: any identifier as Python itself spells it."""
    if not isinstance(text, str) or not text.isidentifier() or keyword.iskeyword(text) or text == "self":
        return False
    return unicodedata.normalize("NFKC", text) == text


def input_data(i: Input) -> dict[str, object]:
    data: dict[str, Any] = {"name": i.name, "dtype": i.dtype, "rank": i.rank}
    data |= {"shape": list(i.shape)} if i.shape is not None else {}
    data |= {"form": form_to_data(i.form)} if i.form is not None and i.rank is None else {}
    return data | {"default": to_json(i.default)} if i.optional else data


def call_data(c: Call) -> dict[str, object]:
    data: dict[str, Any] = {"out": c.out, "op": c.op, "args": [to_json(a) for a in c.args]}
    if c.kwargs:
        data["kwargs"] = {k: to_json(v) for k, v in c.kwargs.items()}
    return data | ({"comment": c.comment} if c.comment else {}) | ({"origin": list(c.origin)} if c.origin else {})


def typed(value: object, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}")
    return value


def read_input(data: Any) -> Input:
    dtype, rank = data["dtype"], data["rank"]
    if (dtype is not None and dtype not in DTYPES) or (rank is not None and type(rank) is not int):
        raise ValueError("bad input")
    shape = tuple(typed(size, int) for size in typed(data["shape"], list)) if "shape" in data else None
    if shape is not None and len(shape) != rank:
        raise ValueError("bad input")
    form = form_from_data(data["form"]) if "form" in data else None
    return Input(data["name"], dtype, rank, "default" in data, from_json(data.get("default")), shape, form)


def read_call(data: Any) -> Call:
    kwargs = {k: from_json(v) for k, v in typed(data.get("kwargs", {}), dict).items()}
    args = tuple(from_json(a) for a in typed(data["args"], list))
    origin = tuple(typed(name, str) for name in typed(data.get("origin", []), list))
    return Call(data["out"], typed(data["op"], str), args, kwargs, comment(typed(data.get("comment", ""), str)), origin)
