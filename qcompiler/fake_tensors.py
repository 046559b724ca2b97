"""Runs on shapes alone: torch's fake tensors, without its log, and without the detours of its Python for what keeps a shape."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false, suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode

_aten = torch.ops.aten
ELEMENTWISE = frozenset([
    _aten.hardswish.default, _aten.hardsigmoid.default, _aten.silu.default, _aten.gelu.default, _aten.elu.default, _aten.mish.default,
    _aten.leaky_relu.default, _aten.softplus.default, _aten.hardtanh.default, _aten.clamp.default, _aten.clamp_min.default,
])  # fmt: skip
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class ShapesAlone(FakeTensorMode):
    """Answers a BatchNorm that does not train and common activations as one new tensor of floats, laid out as the kernel's. Torch
    takes up to fifteen steps in Python, four fifths of the time of a convolutional network, and lays out some BatchNorms otherwise."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def dispatch(self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] = MappingProxyType({})) -> Any:
        if func is _aten.native_batch_norm.default and not args[5] and args[0].numel() and _all_float(args[:5]):
            none = super().dispatch(_aten.new_empty.default, types, (args[0], [0]), {})
            made = super().dispatch(_aten.empty_like.default, types, (args[0],), {"memory_format": _format(args[0])})
            return made, none, none
        if func in ELEMENTWISE and args[0].is_floating_point() and is_plain(args[0]):
            return super().dispatch(_aten.empty_like.default, types, (args[0],), {})
        return super().dispatch(func, types, args, kwargs)


def _all_float(values: Sequence[Any]) -> bool:
    """Of one dtype, as the kernel wants it, and on one device."""
    found = {(value.dtype, value.device) for value in values if value is not None}
    return len(found) == 1 and values[0].is_floating_point()


def is_plain(value: Tensor) -> bool:
    """Whether results of elements lie as it does, which size 1 and overlaps leave open."""
    return value.numel() > 0 and (
        value.stride() == _packed(value.shape) or (min(value.shape) > 1 and is_non_overlapping_and_dense_or_false(value))
    )


def _packed(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _format(value: Tensor) -> torch.memory_format:
    """How the kernel of BatchNorm lays out its result."""
    if value.is_contiguous():
        return torch.contiguous_format
    last = LAST.get(value.dim())
    return last if last is not None and value.is_contiguous(memory_format=last) else suggest_memory_format(value)


@contextmanager
def in_silence() -> Iterator[None]:
    """torch logs what an op says of sizes that it does not take; where shapes are tried, that is an answer."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was
