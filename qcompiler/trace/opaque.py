"""What a statement on its own gives that is neither a tensor nor a number: a list whose length depends on data, and the like."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import fx

from qcompiler.trace.proxy import Following


class Opaque:
    """Stands for such a value. It can be handed on, and returned; whatever else is done with it ends the trace of that statement."""

    def __init__(self, node: fx.Node, tracer: Following, example: object) -> None:
        self.node, self.tracer, self.example = node, tracer, example

    def _refuse(self, *_: object) -> NoReturn:
        raise self.tracer.error(f"use of a {type(self.example).__name__} whose content depends on data")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    __hash__ = None  # type: ignore[assignment]


for _name in (
    "iter", "len", "getitem", "setitem", "delitem", "contains", "bool", "eq", "ne", "add", "radd", "iadd", "mul", "rmul", "reversed",
    "call", "lt", "gt", "le", "ge", "repr", "str", "copy", "deepcopy",
):  # fmt: skip
    setattr(Opaque, f"__{_name}__", Opaque._refuse)
