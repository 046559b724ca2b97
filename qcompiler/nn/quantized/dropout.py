"""nn.quantized.Dropout."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from typing import ClassVar

from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Passes its input on, quantized or not, also in train mode: the place of an nn.Dropout in a converted model."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Dropout

    def forward(self, input: Tensor) -> Tensor:
        return input

    def _get_name(self) -> str:
        return "QuantizedDropout"

    @classmethod
    def from_float(cls, mod: nn.Dropout, use_precomputed_fake_quant: bool = False) -> "Dropout":
        """A Dropout with the float one's settings."""
        made = cls(mod.p, mod.inplace)
        made.train(mod.training)
        return made
