"""Data as a user hands it over, one call's arguments at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


def batches(data: Any) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Each item as (args, kwargs): a tensor is one argument, a mapping is keywords; of (inputs, labels) of a DataLoader, the inputs.

    One tensor is one batch.
    """
    labelled = isinstance(data, torch.utils.data.DataLoader)
    for item in [data] if isinstance(data, torch.Tensor) else data:
        if isinstance(item, Mapping):
            yield (), dict(item)
        elif isinstance(item, (tuple, list)):
            yield (item[:1] if labelled and len(item) == 2 else tuple(item)), {}  # type: ignore[misc]
        else:
            yield (item,), {}
