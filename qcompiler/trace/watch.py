"""Whether code that nobody follows asks how tensors lie in memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

P = ParamSpec("P")
T = TypeVar("T")
QUESTIONS = frozenset((
    "is_contiguous", "dim_order", "stride", "storage_offset", "data_ptr", "const_data_ptr", "untyped_storage", "storage", "_typed_storage",
    "is_set_to", "_is_view", "as_strided", "as_strided_",
))  # fmt: skip


class Watch(TorchFunctionMode):
    """`asked`: the first such question."""

    asked = ""

    def __torch_function__(
        self, func: Callable[..., T], types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> T:
        name = getattr(func, "__name__", "")
        if name in QUESTIONS or (name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") == "_base"):
            self.asked = self.asked or name
        return func(*args, **(kwargs or {}))

    def over(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, watched where torch passes its calls to nobody."""

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with torch._C._EnableTorchFunction(), self:  # type: ignore[attr-defined]
                return function(*args, **kwargs)

        return run


def asked_in_script(module: nn.Module) -> str:
    """The question of a scripted module in this one, which Python does not see."""
    for part in module.modules():
        with contextlib.suppress(AttributeError, RuntimeError):
            if isinstance(part, torch.jit.ScriptModule) and (found := next(_questions(part), "")):
                return found
    return ""


def _questions(module: torch.jit.ScriptModule) -> Iterator[str]:
    for node in module.inlined_graph.nodes():
        yield from _in_node(node)


def _in_node(node: torch._C.Node) -> Iterator[str]:
    if (name := node.kind().removeprefix("aten::")) in QUESTIONS:
        yield name
    for block in node.blocks():
        for inner in block.nodes():
            yield from _in_node(inner)
