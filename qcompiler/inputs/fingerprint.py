"""Which weights a model was quantized from: a checksum of each, which travels with the result, through save and load as well. And which
data it was calibrated on, a number for each batch."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from qcompiler.raw import raw_bits

WEIGHTS = "_qcompiler_weights"  # on converted modules: {name: checksum} of the float model; gone once other weights are loaded


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A checksum of every float parameter and saved buffer, by its name in the state_dict."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    return {name: _checksum(t) for name, t in tensors.items() if t.is_floating_point() and t.device.type == "cpu"}


def _checksum(tensor: torch.Tensor) -> str:
    raw: Any = raw_bits(tensor).numpy()
    return f"{zlib.crc32(raw):08x}"


def number_of_call(args: tuple[object, ...], kwargs: Mapping[str, object]) -> float:
    """The same for the same data, another one for other data; NaN, which is equal to nothing, where it holds what has no bytes to read."""
    found = 0
    leaves, shape = tree_flatten((args, dict(kwargs)))
    for leaf in (*leaves, str(shape)):
        if isinstance(leaf, torch.Tensor):
            if leaf.layout is not torch.strided or leaf.is_quantized:
                return math.nan
            raw: Any = raw_bits(leaf).numpy()
            found = zlib.crc32(raw, zlib.crc32(f"{tuple(leaf.shape)} {leaf.dtype}".encode(), found))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            found = zlib.crc32(repr(leaf).encode(), found)
        else:
            return math.nan
    return float(found)


def other_weights(model: nn.Module, recorded: Mapping[str, str]) -> tuple[list[str], int]:
    """The names under which the model has other values than the recorded ones, and how many names both have."""
    found = fingerprints(model)
    known = [name for name in found if name in recorded]
    return [name for name in known if found[name] != recorded[name]], len(known)
