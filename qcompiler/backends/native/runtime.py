"""What a program calls: a native region, made once, and its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from qcompiler.backends.native.operator import stands_in, through_torch
from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.native.steps import Region


def native_region(
    description: Mapping[str, Any], tensors: Sequence[Tensor], scales: Sequence[float], zero_points: Sequence[int]
) -> NativeRegion:
    """Plans the region, generates its C, and compiles it or takes it from the cache."""
    return NativeRegion(Region.from_data(description), tensors, list(zip(scales, zero_points, strict=True)))


native_region.once = True  # type: ignore[attr-defined]
native_region.copies = True  # type: ignore[attr-defined]  # what it is given is the module's own tensors, by which torch.export names them


def run_region(region: NativeRegion, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """What the region computes from float tensors: tensors, and numbers that follow from sizes."""
    if stands_in(inputs):
        return through_torch(region, inputs)
    return region(*inputs)
