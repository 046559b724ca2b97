"""The integers of a converted module: how each value and each weight is held."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueScale:
    """One activation: real = scale * (code - zero_point), with codes from `low` to `high`.

    `name`: of the value, as explain, drawings and compare call it. `layer`: the module of the user's that makes it, empty for functions.
    `source`: the user's line. `stored`: the entry of the state_dict that holds the scale.
    """

    name: str
    layer: str
    source: str
    dtype: str
    scale: float
    zero_point: int
    low: int
    high: int
    stored: str = ""

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest real value that the codes stand for."""
        return self.scale * (self.low - self.zero_point), self.scale * (self.high - self.zero_point)

    def to_data(self) -> dict[str, object]:
        return {**vars(self), "range": list(self.range)}


@dataclass(frozen=True)
class WeightScale:
    """One weight: real = scale * (code - zero_point), where each channel along `axis` has its own; None: one for the tensor.

    `name`: its name in the model and in the state_dict, where its integers, `codes`, are.
    """

    name: str
    layer: str
    axis: int | None
    scale: Tensor
    zero_point: Tensor
    codes: Tensor

    @property
    def real(self) -> Tensor:
        """The numbers that the codes stand for, in float64."""
        shape = [1] * self.codes.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        return self.scale.double().reshape(shape) * (self.codes.double() - self.zero_point.double().reshape(shape))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest real value among its codes; zeros for no numbers."""
        real = self.real
        return (float(real.min()), float(real.max())) if real.numel() else (0.0, 0.0)

    def to_data(self, codes: bool) -> dict[str, object]:
        data = {"name": self.name, "layer": self.layer, "dtype": str(self.codes.dtype).removeprefix("torch."),
                "shape": list(self.codes.shape), "axis": self.axis, "scale": self.scale.flatten().tolist(),
                "zero_point": self.zero_point.flatten().tolist(), "range": list(self.range)}  # fmt: skip
        return data | ({"codes": self.codes.tolist()} if codes else {})


@dataclass(frozen=True)
class Scales:
    """`values` by name in the order of execution, `weights` by name. Ops in float have none, and neither have ranges that each call finds
    anew: those of int8 dynamic layers."""

    values: Mapping[str, ValueScale]
    weights: Mapping[str, WeightScale]

    def of_layer(self, path: str) -> Scales:
        """What belongs to a module of the user's, and to the modules inside of it."""
        values = {name: value for name, value in self.values.items() if _inside(value.layer, path)}
        return Scales(values, {name: weight for name, weight in self.weights.items() if _inside(weight.layer, path)})

    def to_data(self, codes: bool = False) -> dict[str, Any]:
        """Plain JSON data, as qcompiler/debug/schema/scales.schema.json describes it; `codes`: with the integers of weights."""
        values = [value.to_data() for value in self.values.values()]
        return {"format": "qcompiler-scales", "version": 1, "values": values, "weights": [w.to_data(codes) for w in self.weights.values()]}

    def to_json(self, codes: bool = False) -> str:
        return json.dumps(self.to_data(codes), indent=1, allow_nan=False)


def _inside(layer: str, path: str) -> bool:
    return layer == path or layer.startswith(f"{path}.")


def weight_scales(state: Mapping[str, Tensor], axes: Mapping[str, int | None]) -> dict[str, WeightScale]:
    """The weights of a state_dict: tensors of integers beside which stand their scales and zero points. `axes`: where others than the
    first dimension, or none, have a scale each."""
    found = {}
    for name, codes in sorted(state.items()):
        scale, zero_point = state.get(f"{name}_scale"), state.get(f"{name}_zero_point")
        if scale is None or zero_point is None or codes.dtype not in (torch.int8, torch.uint8):
            continue
        axis = axes.get(name, 0) if scale.numel() > 1 else None
        found[name] = WeightScale(name, name.rpartition(".")[0], axis, scale, zero_point, codes)
    return found
