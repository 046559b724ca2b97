"""The weights of a float and a quantized model in pairs, by the names in their state dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from qcompiler.debug.metrics import compute_sqnr
from qcompiler.ops.quantized_tensors import quantized_table, quantized_tensor
from qcompiler.ops.reference import unpack_4bit

SCALE, ZERO_POINT = "_scale", "_zero_point"  # what a state dict calls the qparams beside a weight
PACKED = "_packed_params._packed_params"  # torch.ao's: a tuple of weight and bias


def pair_weights(float_dict: Mapping[str, Any], quantized_dict: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Each quantized weight with the float one of its name: {key: {"float": tensor, "quantized": quantized tensor}}."""
    found = {}
    for key in quantized_dict:
        for name, quantized in _held(key, quantized_dict, float_dict):
            found[key] = {"float": float_dict[name], "quantized": quantized}
    return found


def _held(key: str, quantized: Mapping[str, Any], floats: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The float name and the quantized tensor of an entry that holds a weight."""
    value = quantized[key]
    if key.endswith(PACKED) and isinstance(value, tuple):
        key, value = key.removesuffix(PACKED) + "weight", value[0]
    name = _float_name(key, floats)
    if name is None or not isinstance(value, Tensor):
        return
    if value.is_quantized or value.dtype is torch.float16:
        yield name, value
    elif value.dtype in (torch.int8, torch.uint8) and key + SCALE in quantized and key + ZERO_POINT in quantized:
        made = as_rows if value.dtype is torch.uint8 else as_quantized
        yield name, made(value, quantized[key + SCALE], quantized[key + ZERO_POINT], floats[name])


def _float_name(key: str, floats: Mapping[str, Any]) -> str | None:
    """The weight's name in the float model: the same, or that of the first part of a fused module (`conv.0.weight`)."""
    path, dot, leaf = key.rpartition(".")
    names = (key, f"{path}{dot}0.{leaf}")
    return next((name for name in names if isinstance(floats.get(name), Tensor) and floats[name].is_floating_point()), None)


def as_quantized(values: Tensor, scale: Tensor, zero_point: Tensor, reference: Tensor) -> Tensor:
    """The quantized tensor of an int8 weight and its qparams.

    The channel axis is the dimension of as many entries as there are scales; of several, the one that is nearest `reference`.
    """
    if scale.numel() == 1:
        return quantized_tensor(values, scale, zero_point, None)
    axes = [axis for axis in range(values.dim()) if values.shape[axis] == scale.numel()]
    made = [quantized_tensor(values, scale, zero_point, axis) for axis in axes]
    return max(made, key=lambda q: compute_sqnr(reference, q)) if len(made) > 1 else made[0]


def as_rows(values: Tensor, scale: Tensor, zero_point: Tensor, reference: Tensor) -> Tensor:
    """The quantized tensor of an embedding's table: a scale and a float zero point a row, 8 bits a value or two values a byte."""
    packed = values.shape[-1] != reference.shape[-1]
    codes = unpack_4bit(values, reference.shape[-1]) if packed else values
    return quantized_table(codes, scale, zero_point, 4 if packed else 8)
