"""Data as a user hands it over, one call's arguments at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from qcompiler.errors import ConfigError
from qcompiler.inputs.input_text import refuse_arrays
from qcompiler.inputs.kinds import refuse_kinds


def check_data(data: object, what: str = "calibration data") -> None:
    """Raises ConfigError for what cannot be walked."""
    refuse_arrays(data if isinstance(data, np.ndarray) else (), what)
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        text = f"{what} must be a tensor or an iterable of batches, got {type(data).__name__}"
        raise ConfigError(text, code="calibration-data", hint="a batch is a tensor, a tuple of arguments or a dict of keywords")


def batches(data: Any) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Each item as (args, kwargs): a tensor is one argument, a mapping is keywords; of (inputs, labels) of a DataLoader, the inputs.

    One tensor is one batch.
    """
    labelled = isinstance(data, torch.utils.data.DataLoader)
    for index, item in enumerate([data] if isinstance(data, torch.Tensor) else data):
        given = _arguments(item, labelled)
        refuse_arrays(given, f"batch {index}")
        refuse_kinds(given, f"a tensor of batch {index}")
        yield given


def call_examples(inputs: Any, forms: Any) -> list[tuple[object, dict[str, object]]]:
    """Arguments and keywords of each form of a call: a dict is keywords beside `inputs`, a pair (args, kwargs) is both."""
    found: list[tuple[Any, dict[str, Any]]] = []
    for index, form in enumerate(forms):
        if isinstance(form, Mapping):
            found.append((inputs, dict(form)))
        elif isinstance(form, (tuple, list)) and len(form) == 2 and isinstance(form[1], Mapping):
            found.append((form[0], dict(form[1])))
        else:
            raise ConfigError(f"call form {index} is a {type(form).__name__}", code="call-forms",
                              hint="a form is a dict of keywords, or a pair of a tuple of arguments and a dict of keywords")  # fmt: skip
    if not found:
        raise ConfigError("example_kwargs is an empty list", code="call-forms", hint="give one dict of keywords for each form of the call")
    return found


def _arguments(item: object, labelled: bool) -> tuple[tuple[object, ...], dict[str, object]]:
    if isinstance(item, Mapping):
        return (), dict(item)
    if isinstance(item, (tuple, list)):
        return tuple(item[:1] if labelled and len(item) == 2 else item), {}
    return (item,), {}
