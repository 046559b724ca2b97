"""An observer at its place in the graph."""

from __future__ import annotations

import torch
from torch import nn

from qcompiler.errors import CalibrationError, NumericsError, Where


class Watch(nn.Module):
    """An observer at its place in the graph; names the node when the data cannot be observed."""

    def __init__(self, observer: nn.Module, place: Where) -> None:
        super().__init__()
        self.observer = observer
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            self.observer(x)
        except NumericsError as error:
            raise CalibrationError(error.message, code=error.code, where=self.place,
                                   hint="look at this batch, and at the layers before this node") from error  # fmt: skip
        return x
