"""The example of a model that is given data alone: the first batch of it."""

from __future__ import annotations

from typing import Any

import torch

from qcompiler.errors import CalibrationError
from qcompiler.inputs.batches import batches, check_data


def first_batch(calibration_data: Any) -> tuple[object, tuple[object, ...], dict[str, object]]:
    """(data to calibrate with, positional arguments of its first batch, keywords of it). CalibrationError where there is none."""
    check_data(calibration_data)
    data = [calibration_data] if isinstance(calibration_data, torch.Tensor) else calibration_data
    if iter(data) is data:
        data = list(data)  # a generator is read twice: for the example and for calibration
    first = next(iter(batches(data)), None)
    if first is None:
        raise CalibrationError("0 batches of calibration data", code="no-batches")
    return data, *first
