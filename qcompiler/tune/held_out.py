"""The data of a search, in two: what ranges and corrections are found on, and what each step is judged on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.debug.metrics import tensors
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.inputs.batches import batches, check_data
from qcompiler.raw import raw_bits


@dataclass(frozen=True)
class Item:
    """One batch: the arguments of the call, and `given`, the batch as it was handed over, for the metric."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    given: object

    @property
    def call(self) -> object:
        """As calibrate takes it."""
        return (*self.args,) if not self.kwargs else dict(self.kwargs)

    @property
    def rows(self) -> int:
        """How many rows it has along the first dimension of its first tensor."""
        first = next(tensors([self.args, dict(self.kwargs)]), None)
        return first.shape[0] if first is not None and first.dim() else 1


def read(data: object, labelled: bool) -> list[Item]:
    """Every batch; `labelled`: each is a pair of inputs and labels. Raises ConfigError and CalibrationError for what is no such data."""
    check_data(data, "the data to tune on")
    loader = isinstance(data, torch.utils.data.DataLoader)
    given = [data] if isinstance(data, Tensor) else list(data)  # type: ignore[call-overload]
    if labelled:
        for index, item in enumerate(given):
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                text = f"batch {index} is a {type(item).__name__}, and a metric needs pairs of inputs and labels"
                raise ConfigError(text, code="tune-labels", hint="inputs are a tensor, a tuple of arguments or a dict of keywords")
    inputs = [item[0] if labelled or (loader and isinstance(item, (tuple, list)) and len(item) == 2) else item for item in given]
    items = [Item(args, kwargs, item) for (args, kwargs), item in zip(batches(inputs), given)]
    for index, item in enumerate(items):
        if any(t.is_floating_point() and bool(t.isnan().any()) for t in tensors([item.args, dict(item.kwargs)])):
            raise CalibrationError(f"batch {index}: NaN in it", code="nan", hint="look at this batch")
    return items


def split(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """(to calibrate and correct on, held out), drawn with the seed and in the order of the data."""
    if len(items) < 2:
        raise CalibrationError(f"{len(items)} batch{'es' * (len(items) != 1)} of data: one is held out, one to calibrate on",
                               code="tune-batches", hint="split a tensor into batches: data.split(8)")  # fmt: skip
    count = min(max(round(len(items) * share), 1), len(items) - 1)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[:count])
    return [item for i, item in enumerate(items) if i not in held], [item for i, item in enumerate(items) if i in held]


def checksum(items: Sequence[Item]) -> str:
    """Of all numbers of the data."""
    found = 0
    for tensor in _tensors(items):
        raw = raw_bits(tensor).numpy()
        found = zlib.crc32(raw.data, zlib.crc32(str((tuple(tensor.shape), tensor.dtype)).encode(), found))
    return f"{found:08x}"


def _tensors(items: Sequence[Item]) -> Iterator[Tensor]:
    for item in items:
        yield from tensors([item.args, dict(item.kwargs), item.given])
