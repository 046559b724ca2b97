"""Corrections: what a user or a search lays over the decisions of a conversion. Plain data that is merged, saved and loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from qcompiler.errors import ArtifactError, ConfigError
from qcompiler.files.atomic import atomic_write
from qcompiler.files.safetensors import read_safetensors, safetensors

TENSORS = ("codes", "scales", "biases", "weights", "columns")
NAMES = "names"  # the tensor of a file that holds the sets of names, as JSON in bytes


@dataclass(frozen=True, eq=False)
class Corrections:
    """An overlay on what convert_fx would decide. `a | b` is both, where the later one wins; `bool(a)` is whether it holds anything.

    `codes`: integers of a weight, by its name in the QUANTIZED graph, in the dtype and shape that they have there. `scales`: real per step,
    float64, one a channel or one for all, by the same name. `biases`: float32, one a channel, by the name of the op's node, also of ops
    that had none. `ranges`: (lowest, highest) real number of a value, by the name of its node; values that share steps share the range.
    `weights`: float32 weights in place of the model's, by their names, before anything is measured or rounded on them. `columns`: float32
    factors, one a column of a linear's weight, by its name: the weight is multiplied by them, and the value that the linear reads by one
    over them, which gets the name `scaled_name(value)` and needs a range. `keep_float`: as in convert_fx. `dynamic`: linears whose input is
    rounded at run time, named as in `keep_float`.
    Raises ConfigError for entries of a wrong kind. Of several forms of the call, each takes those that name something in it.
    """

    codes: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    keep_float: frozenset[str] = frozenset()
    dynamic: frozenset[str] = frozenset()
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in TENSORS:
            object.__setattr__(self, part, dict(_tensors(part, getattr(self, part))))
        object.__setattr__(self, "ranges", dict(_ranges(self.ranges)))
        for part in ("keep_float", "dynamic"):
            object.__setattr__(self, part, frozenset(_names(part, getattr(self, part))))

    def __or__(self, later: Corrections) -> Corrections:
        """Both. A float weight or columns of the later one make codes and scales of the earlier one void, as scales do with codes."""
        changed = later.weights.keys() | later.columns.keys()
        stale = changed | later.scales.keys()
        return Corrections(
            codes={name: held for name, held in self.codes.items() if name not in stale} | dict(later.codes),
            scales={name: held for name, held in self.scales.items() if name not in changed} | dict(later.scales),
            biases={**self.biases, **later.biases},
            ranges={**self.ranges, **later.ranges},
            weights={**self.weights, **later.weights},
            keep_float=self.keep_float | later.keep_float,
            dynamic=self.dynamic | later.dynamic,
            columns={**self.columns, **later.columns},
        )

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) for part in fields(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Corrections):
            return NotImplemented
        plain = all(getattr(self, part) == getattr(other, part) for part in ("ranges", "keep_float", "dynamic"))
        return plain and all(_equal(getattr(self, part), getattr(other, part)) for part in TENSORS)

    def __hash__(self) -> int:
        return hash((*(frozenset(getattr(self, part)) for part in TENSORS), frozenset(self.ranges.items()), self.keep_float, self.dynamic))

    def __str__(self) -> str:
        counts = [f"{len(getattr(self, part.name))} {part.name.replace('_', ' ')}" for part in fields(self) if getattr(self, part.name)]
        return ", ".join(counts) or "no corrections"

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file. Raises ArtifactWriteError where that cannot be written."""
        held = {f"{part}/{name}": tensor for part in TENSORS for name, tensor in getattr(self, part).items()}
        held |= {f"ranges/{name}": torch.tensor(ends, dtype=torch.float64) for name, ends in self.ranges.items()}
        names = json.dumps({part: sorted(getattr(self, part)) for part in ("keep_float", "dynamic")})
        held[NAMES] = torch.tensor(list(names.encode()), dtype=torch.uint8)
        atomic_write(Path(path), safetensors(held))

    @staticmethod
    def load(path: str | Path) -> Corrections:
        """What `save` wrote. Raises ArtifactError for a file that is not there, that it did not write, or that is damaged."""
        return _loaded(Path(path))


def scaled_name(name: str) -> str:
    """What a value is called whose channels `columns` scale."""
    return f"{name}_scaled"


def _tensors(part: str, given: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{part} of corrections are a mapping of names to tensors, not a {type(given).__name__}", code="correction")
    for name, tensor in given.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConfigError(
                f"{part} of corrections map names to tensors, not {name!r:.80} to a {type(tensor).__name__}", code="correction"
            )
        if tensor.device.type != "cpu":
            raise ConfigError(f"{part} of corrections: {name!r} is on the device {tensor.device}, not on cpu", code="correction")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{part} of corrections: {name!r} holds NaN or inf", code="correction")
        yield name, tensor.detach()


def _ranges(given: Mapping[str, tuple[float, float]]) -> Iterator[tuple[str, tuple[float, float]]]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"ranges of corrections are a mapping of names to pairs, not a {type(given).__name__}", code="correction")
    for name, ends in given.items():
        try:
            low, high = map(float, ends)
        except (TypeError, ValueError):
            low = high = math.nan
        if not isinstance(name, str):
            raise ConfigError(f"ranges of corrections map names to pairs, not {name!r:.80}", code="correction")
        if not (-float("inf") < low <= high < float("inf")):
            raise ConfigError(f"ranges of corrections: {name!r} has {ends!r:.80}, which is no range", code="correction")
        yield name, (low, high)


def _names(part: str, given: Iterable[str]) -> Iterable[str]:
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{part} of corrections are names", code="correction")
    return names


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(held.dtype is two[name].dtype and torch.equal(held, two[name]) for name, held in one.items())


def _loaded(path: Path) -> Corrections:
    try:
        held = read_safetensors(path)
        names = json.loads(bytes(held.pop(NAMES).tolist()))
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in (*TENSORS, "ranges")}
        for key, tensor in held.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        ranges = {name: (float(ends[0]), float(ends[1])) for name, ends in parts.pop("ranges").items()}
        return Corrections(**parts, ranges=ranges, keep_float=frozenset(names["keep_float"]), dynamic=frozenset(names["dynamic"]))
    except (OSError, KeyError, IndexError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(f"{path}: no corrections: {error!s:.200}", code="artifact-corrupt") from error


NO_CORRECTIONS = Corrections()
