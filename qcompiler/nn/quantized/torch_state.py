"""state_dicts that torch.nn.quantized's modules wrote, with quantized tensors in them, as ours have them: plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qcompiler.ops.quantized_tensors import qparams_of_tensor


def plain_state(state_dict: Mapping[str, Any], prefix: str) -> Mapping[str, object]:
    """The state_dict with the quantized weight of the module at `prefix` taken apart; one of ours stays as it is.

    torch keeps a convolution's weight and bias under these names (a bias of None, too), a linear's as a pair in `_packed_params`.
    """
    state = dict(state_dict)
    state.pop(f"{prefix}_packed_params.dtype", None)
    pair = state.pop(f"{prefix}_packed_params._packed_params", None)
    if pair is not None:
        state[f"{prefix}weight"], state[f"{prefix}bias"] = pair
    if state.get(f"{prefix}bias", 0) is None:
        del state[f"{prefix}bias"]
    weight = state.get(f"{prefix}weight")
    if isinstance(weight, Tensor) and weight.is_quantized:
        state[f"{prefix}weight"] = weight.int_repr()
        state[f"{prefix}weight_scale"], state[f"{prefix}weight_zero_point"] = qparams_of_tensor(weight)
    return state
