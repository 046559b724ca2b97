"""The stand-in for a value while a model is traced: it carries the example's value and records what is done with it."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import Target

from qcompiler.errors import TraceError

Args = tuple[Any, ...]  # of a call that the user's code makes
Kwargs = dict[str, Any]


class Sizes(tuple):  # type: ignore[type-arg]
    """The shape of a traced tensor: a tuple of size proxies that behaves like torch.Size."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return torch.Size

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        item = tuple.__getitem__(self, index)
        return Sizes(item) if isinstance(index, slice) else item

    def __add__(self, other: tuple[Any, ...]) -> Sizes:
        return Sizes(tuple.__add__(self, tuple(other)))

    def __repr__(self) -> str:
        return f"torch.Size({list(self)})"


class Following(Protocol):
    """What a proxy asks of the tracer that made it."""

    def call(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> Any:
        """What stands for the result of a call that the user's code makes."""

    def dispatch(self, func: Any, args: Args, kwargs: Kwargs, frame: FrameType | None) -> object:
        """What stands for the result of a torch function that the user's code calls."""

    def record(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> Any:
        """Run a call on the examples, append its node, return what stands for the result."""

    def attribute(self, owner: Proxy, name: str) -> object:
        """`owner.name`."""

    def sizes(self, proxy: Proxy) -> Sizes:
        """The shape of a traced tensor."""

    def update(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> Any:
        """Carry out an out-of-place call and let its first argument refer to the result."""

    def mutate_to(self, owner: Proxy, value: object) -> None:
        """`x.data = value`."""

    def set_item(self, target: Target, index: Any, value: Any) -> None:
        """`target[index] = value`."""

    def truth(self, proxy: Proxy) -> bool:
        """Which way the user's code goes at a condition."""

    def number(self, proxy: Proxy, how: str) -> Any:
        """The value of a number for a builtin that needs it."""

    def index(self, proxy: Proxy, frame: FrameType) -> Any:
        """The number for a caller that needs one at once."""

    def fix(self, proxy: Proxy, how: str) -> Any:
        """The concrete value of a proxy that was computed from sizes, held by a guard."""

    def word(self, proxy: Proxy, how: str, frame: FrameType | None) -> object:
        """What a size is spelled as in a text."""

    def hits(self, proxy: Proxy) -> Iterator[torch.Tensor] | None:
        """The loop over the places where a mask holds; None where a tensor lists no such places."""

    def error(self, message: str, place: tuple[str | None, int | None] | None = None) -> TraceError:
        """A TraceError at a line of the user's code, by default the current one."""


@dataclass(frozen=True)
class View:
    """The call that made a view: `args` without the tensor that it is a view of, which is `parent` and had this size then; `piece`:
    which of several results; `shape`: that of the view then."""

    parent: Proxy
    op: str
    target: str | Callable[..., object]
    args: Args
    kwargs: Kwargs
    size: torch.Size
    piece: int | None = None
    shape: torch.Size | None = None


class Proxy(fx.Proxy):
    """One traced value. `example` is a tensor, or a number or truth value that was computed from sizes.

    A proxy is the variable, not the value: an in-place operation makes it refer to another node. `view_of` is the
    call that made it a view of another tensor; `stale` says why its value is no longer known. `laid`: what lies in memory as it does (a
    node and an example), where that is not its value since that was changed in place.
    """

    tracer: Following  # type: ignore[assignment]

    def __init__(self, node: fx.Node, tracer: Following, example: Any) -> None:
        super().__init__(node, cast(fx.Tracer, tracer))  # where the operators of fx.Proxy end, in its `create_proxy`
        self.example = example
        self.view_of: View | None = None
        self.stale: str | None = None
        self.laid: tuple[fx.Node, torch.Tensor] | None = None

    @property
    def kind(self) -> type:
        """The class that this stands for. (`session` teaches isinstance; a `__class__` that lies would have torch's C++ code
        take this object for a tensor and read its memory as one.)"""
        kind = type(self.example)
        return torch.Tensor if issubclass(kind, torch.Tensor) else kind

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.example, torch.Tensor)

    # ---- attributes and methods of the value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "example" not in self.__dict__ or not hasattr(self.example, name):
            raise AttributeError(name)
        return self.tracer.attribute(self, name)

    @property
    def data(self) -> Any:
        return self.tracer.call("call_method", "detach", (self,), {})

    @data.setter
    def data(self, value: Any) -> None:
        self.tracer.mutate_to(self, value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.set_item(self, index, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{type(self.example).__name__!r} object is not callable")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.clone() if self.is_tensor else self

    def __copy__(self) -> Any:
        return self.detach() if self.is_tensor else self

    # ---- leaving the trace: a size becomes concrete behind a guard, data cannot

    def __bool__(self) -> bool:
        if type(self.example) is bool or self.is_tensor:
            return self.tracer.truth(self)
        return bool(operator.ne(self, 0))

    def __int__(self) -> int:
        return int(self.tracer.number(self, "int()"))

    def __float__(self) -> float:
        return float(self.tracer.number(self, "float()"))

    def __complex__(self) -> complex:
        return complex(self.tracer.fix(self, "complex()"))

    def __index__(self) -> int:
        return operator.index(self.tracer.index(self, sys._getframe(1)))

    def __hash__(self) -> int:
        return id(self) >> 4 if self.is_tensor else hash(self.tracer.fix(self, "hash()"))

    def __array__(self, *args: Any, **kwargs: Any) -> object:
        return np.asarray(self.tracer.fix(self, "conversion to numpy"), *args, **kwargs)

    def __len__(self) -> int:
        if not self.is_tensor or not self.example.dim():
            raise TypeError("len() of a 0-d tensor" if self.is_tensor else f"{type(self.example).__name__!r} has no len()")
        return int(self.tracer.number(self.tracer.sizes(self)[0], "len()"))

    def __iter__(self) -> Iterator[Any]:
        if not self.is_tensor or not self.example.dim():
            raise TypeError("iteration over a 0-d tensor" if self.is_tensor else f"{type(self.example).__name__!r} is not iterable")
        hits = self.tracer.hits(self)
        return iter(self.unbind(0)) if hits is None else hits

    def __contains__(self, item: Any) -> bool:
        return bool(self.tracer.fix(self, "`in`"))

    def __reversed__(self) -> object:
        return self.flip(0) if self.example.dim() else self

    def __repr__(self) -> str:
        return str(self._in_text("a text", ""))

    def __format__(self, spec: str) -> str:
        return self._in_text("a text", spec)

    def _in_text(self, how: str, spec: str) -> str:
        if self.is_tensor:
            return f"<traced {tuple(self.example.shape)}>"
        frame = sys._getframe(2)
        return format(self.tracer.word(self, how, frame), spec)

    # ---- numbers from sizes

    def _scalar(self, function: Callable[..., Any], *args: Any) -> object:
        return self.tracer.record("call_function", function, (self, *args), {})

    def __abs__(self) -> Any:
        return self._scalar(operator.abs if self.is_tensor else abs)

    def __round__(self, digits: int | None = None) -> object:
        return self._scalar(round) if digits is None else self._scalar(round, digits)

    def __floor__(self) -> object:
        return self._scalar(math.floor)

    def __ceil__(self) -> object:
        return self._scalar(math.ceil)

    def __trunc__(self) -> object:
        return self._scalar(math.trunc)

    def __divmod__(self, other: Any) -> object:
        return self // other, self % other

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Only for calls outside the tracer's mode, which takes all others."""
        found = first_proxy((args, kwargs))
        assert found is not None
        return found.tracer.dispatch(orig_method, args, kwargs or {}, None)


def _augmented(name: str) -> Callable[[Proxy, object], object]:
    """`x += y`: in place for a tensor, so that all who hold it see the new value."""
    function = getattr(operator, name)

    def method(self: Proxy, other: Any) -> object:
        if not self.is_tensor:
            return function(self, other)
        return self.tracer.update("call_function", function, (self, other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"):
    setattr(Proxy, f"__i{_name.rstrip('_')}__", _augmented(_name))


class Method:
    """A bound method of a traced tensor."""

    def __init__(self, owner: Proxy, name: str) -> None:
        self.owner = owner
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.tracer.call("call_method", self.name, (self.owner, *args), kwargs)


def first_proxy(value: Any) -> Proxy | None:
    """Any proxy in a nest of containers, or None."""
    kind = type(value)
    if kind is Proxy:
        return value  # type: ignore[no-any-return]
    if issubclass(kind, (tuple, list)):
        items: Any = tuple.__iter__(value) if issubclass(kind, tuple) else value
    elif issubclass(kind, dict):
        items = value.values()
    elif kind is slice:
        items = (value.start, value.stop, value.step)
    elif hasattr(kind, "__dataclass_fields__"):
        items = vars(value).values() if hasattr(value, "__dict__") else ()
    else:
        return None
    for item in items:
        if (found := first_proxy(item)) is not None:
            return found
    return None
