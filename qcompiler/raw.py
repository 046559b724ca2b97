"""The bytes of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def raw_bits(tensor: Tensor) -> Tensor:
    """The elements of a strided tensor as bytes in a row, in C order; a view of its memory where it lies so, and holds these values:
    conjugates and negatives are a mark on other values' memory.

    A tensor of one element may have any stride, which counts as contiguous and which torch still refuses to see as bytes.
    """
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)
