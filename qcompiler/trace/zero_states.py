"""The zeros that torch's recurrent layers start with where they are given no state, as values of the trace."""

from __future__ import annotations

import torch
from torch import nn


def with_zero_states(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments of a leaf with its initial state given. A packed sequence, whose batch is another, is left as it is."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return args, kwargs
    given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
    x = given.get("input")
    if given.get("hx") is not None or not isinstance(x, torch.Tensor):
        return args, kwargs
    return (x, _zeros(module, x)), {}


def _zeros(module: nn.RNNBase | nn.RNNCellBase, x: torch.Tensor) -> object:
    """h_0, of LSTMs (h_0, c_0): (layers and directions, batch, width); a cell's (batch, width); without batch where x has none."""
    cell = isinstance(module, nn.RNNCellBase)
    batched = x.dim() == (2 if cell else 3)
    batch = [x.shape[0 if cell or module.batch_first else 1]] if batched else []
    layers = [] if isinstance(module, nn.RNNCellBase) else [module.num_layers * (2 if module.bidirectional else 1)]
    width, projected = module.hidden_size, getattr(module, "proj_size", 0)
    hidden = x.new_zeros([*layers, *batch, projected or width])
    return (hidden, x.new_zeros([*layers, *batch, width])) if isinstance(module, nn.LSTM | nn.LSTMCell) else hidden
