"""Why an op without a row has no int8 form in torch, in a user's words; most have no more to say than that they have none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SUMS = "it adds up values without bound, which leaves the range of 8 bits"
MASK = "int8 has no kernel that chooses by a mask"
INDICES = "its int8 kernel gives no indices"
WIDE = "its results span too wide a range for 8 bits"
BILINEAR = "int8 has no kernel for a product of three factors"

REASONS: dict[object, str] = {
    **dict.fromkeys((torch.cumsum, "cumsum", torch.cumprod, "cumprod", torch.prod, "prod", torch.logsumexp, "logsumexp"), SUMS),
    **dict.fromkeys((torch.where, "where", "masked_fill", torch.masked_fill, "masked_scatter"), MASK),
    **dict.fromkeys((F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices, F.adaptive_max_pool1d_with_indices,
                     F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices), INDICES),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, "log_softmax"), WIDE),
    **dict.fromkeys((torch.einsum, torch.tensordot), "int8 has no kernel for sums of products by index; matmul has one"),
    **dict.fromkeys((F.bilinear, nn.Bilinear), BILINEAR),
    F.scaled_dot_product_attention: "torch's int8 matmul computes in float, so its product of queries and keys gains nothing",
}  # fmt: skip
