"""What normalizations divide by: for each of their rows the square, eps included. A row is what they bring to one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

RowPower = Callable[[Tensor, Mapping[str, Any]], Tensor]
EPS = 1e-5  # the default of all of them but rms_norm, whose is that of the dtype


def _last(attributes: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(range(-len(attributes["normalized_shape"]), 0))


def layer_norm(x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    power: Tensor = x.var(_last(attributes), correction=0) + attributes.get("eps", EPS)
    return power


def rms_norm(x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    eps = attributes.get("eps")
    power: Tensor = x.square().mean(_last(attributes)) + (torch.finfo(x.dtype).eps if eps is None else eps)
    return power


def group_norm(x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    power: Tensor = x.reshape(x.shape[0], attributes.get("num_groups", 1), -1).var(-1, correction=0) + attributes.get("eps", EPS)
    return power


def instance_norm(x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    power: Tensor = x.flatten(2).var(-1, correction=0) + attributes.get("eps", EPS)
    return power
