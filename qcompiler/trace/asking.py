"""Questions of the user's code about the memory of traced tensors: answered as in the example and noted, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import SupportsInt

import torch

from qcompiler.ops.reference import lay_out
from qcompiler.trace.layouts import order_of, strides_in
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.questions import Question, answer
from qcompiler.trace.recording import Recording

_REFUSED = ("data_ptr", "const_data_ptr", "untyped_storage", "storage", "_typed_storage", "is_set_to", "_is_view")


def _ask(tracer: Recording, owner: Proxy, what: str, settings: tuple[tuple[str, object], ...]) -> object:
    if owner.stale:
        raise tracer.error(owner.stale)
    node, example = owner.laid or (owner.node, owner.example)
    given = answer(what, settings, example)
    tracer.asked.append(Question(node, what, settings, given, tracer.source()))
    return given


def _settings(tracer: Recording, owner: Proxy, what: str, **settings: object) -> object:
    return _ask(tracer, owner, what, tuple(settings.items()))


def strides(tracer: Recording, owner: Proxy, dim: SupportsInt | None = None) -> object:
    """`owner.stride()` and `owner.stride(dim)`: products of sizes where the tensor has no gaps, else the example's."""
    example: torch.Tensor = owner.laid[1] if owner.laid is not None else owner.example
    order = order_of(example)
    found: list[object] = list(example.stride())
    if strides_in(order, example.shape) == found:
        _ask(tracer, owner, "order", tuple(("", at) for at in order))
        sizes = tracer.sizes(owner)
        found = [math.prod([sizes[inner] for inner in order[order.index(at) + 1 :]]) for at in range(len(order))]
        tracer.of_strides.update(stride.node for stride in found if type(stride) is Proxy)
    else:
        _ask(tracer, owner, "stride", ())
    return tuple(found) if dim is None else found[int(dim)]


def laid_out(tracer: Recording, value: object, what: str) -> object:
    """A tensor as it lies in the example, for code that asks, and that nobody follows; a call where it lies otherwise is refused."""
    if type(value) is not Proxy or not value.is_tensor or not value.example.dim():
        return value
    order = order_of(value.example)
    if strides_in(order, value.example.shape) != list(value.example.stride()):
        raise tracer.error(f"{what}() in code that is not followed, of a tensor with gaps in memory,")
    tracer.asked.append(Question(value.node, "order", tuple(("", dim) for dim in order), True, tracer.source(), always=True))
    return tracer.record("call_function", lay_out, (value, order), {})


def _refuse(name: str) -> Callable[..., object]:
    def refused(tracer: Recording, *_: object, **__: object) -> object:
        raise tracer.error(f"{name}, which asks where a tensor lies in memory")

    return refused


ASKING: dict[object, Callable[..., object]] = {
    "is_contiguous": lambda tracer, owner, **settings: _settings(tracer, owner, "is_contiguous", **settings),
    "dim_order": lambda tracer, owner, **settings: _settings(tracer, owner, "dim_order", **settings),
    "storage_offset": lambda tracer, owner: _settings(tracer, owner, "storage_offset"),
    "stride": strides,
    **{name: _refuse(name) for name in _REFUSED},
}
