"""What lowered graphs and emitted programs call where no operator of torch does it in one."""

from __future__ import annotations

import warnings

import torch

DEPRECATION = "torch.quantize_per_tensor, torch.quantize_per_channel and other quantized tensor creation functions"


def silence_quantized_dtypes() -> None:
    """Spends torch's once-per-process warning that quantized dtypes go away (pytorch issue 184982).

    The warning is about this back end's own doing; the filters of the process stay as they are.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DEPRECATION)
        torch._make_per_tensor_quantized_tensor(torch.zeros(1, dtype=torch.uint8), 1.0, 0)


silence_quantized_dtypes()
