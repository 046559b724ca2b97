"""The borders of the int8 part of a model written by hand or converted in eager mode: Quantize and DeQuantize."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from qcompiler.errors import InputError
from qcompiler.ir.check_state import assigns, check_state
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.ends import note_ends, noted_ends
from qcompiler.nn.quantized.from_float import output_qparams, trained_ends

__all__ = ["DeQuantize", "Quantize"]


class Quantize(nn.Module):
    """A float tensor as a quantized one of `dtype` (torch.quint8 or qint8), per tensor: round(x / scale) + zero_point, saturated.

    `scale` and `zero_point` are buffers of one element, kept in float64 and int64. `factory_kwargs`: device, dtype of the scale.
    """

    scale: Tensor
    zero_point: Tensor
    least = 0
    most = 255

    def __init__(self, scale: float, zero_point: int, dtype: torch.dtype = torch.quint8, factory_kwargs: Any = None) -> None:
        super().__init__()
        made = {"dtype": torch.float64, **(factory_kwargs or {})}
        self.register_buffer("scale", torch.tensor([float(scale)], **made))
        self.register_buffer("zero_point", torch.tensor([int(zero_point)], **{**made, "dtype": torch.int64}))
        self.dtype = dtype
        self.least, self.most = 0, 255  # the codes that a trained one gives

    def forward(self, X: Tensor) -> Tensor:
        """X, float of any shape, quantized. InputError where it is quantized already or not float32."""
        if X.is_quantized:
            if is_scripting():
                raise RuntimeError("Quantize takes a float tensor, this one is quantized already")
            self._refuse(X)
        if not is_scripting() and X.dtype != torch.float32:
            self._refuse_dtype(X)
        if self.least > 0 or self.most < 255:
            X = torch.maximum(X, ((self.least - self.zero_point) * self.scale).to(X.dtype))
            X = torch.minimum(X, ((self.most - self.zero_point) * self.scale).to(X.dtype))
        return torch.quantize_per_tensor(X, self.scale, self.zero_point, self.dtype)

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_ends(destination, prefix, (self.least, self.most))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, *rest: Any) -> None:
        check_state(self, state_dict, prefix, assigns(local_metadata))
        self.least, self.most = noted_ends(local_metadata, (self.least, self.most), prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    @torch.jit.unused
    def _refuse(self, X: Tensor) -> None:
        where = place_of(self)
        raise InputError(f"Quantize takes a float tensor, got a {X.dtype} one of shape {tuple(X.shape)}", code="quantized-twice",
                         where=where, hint="two QuantStubs in a row? one is enough")  # fmt: skip

    @torch.jit.unused
    def _refuse_dtype(self, X: Tensor) -> None:
        where = place_of(self)
        raise InputError(f"Quantize takes a torch.float32 tensor, got a {X.dtype} one of shape {tuple(X.shape)}", code="input-type",
                         where=where, hint="call .float() on it")  # fmt: skip

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> "Quantize":
        """The Quantize with the qparams that `mod.activation_post_process` observed."""
        made = Quantize(*output_qparams(mod, place_of(mod)), torch.quint8)
        made.least, made.most = trained_ends(mod)
        return made

    def extra_repr(self) -> str:
        return f"scale={self.scale.item()}, zero_point={self.zero_point.item()}, dtype={self.dtype}" + (
            f", {self.least}..{self.most}" if (self.least, self.most) != (0, 255) else ""
        )


class DeQuantize(nn.Module):
    """A quantized tensor as a float32 one. A float tensor, from a part of the model that stayed float, passes as it is."""

    def forward(self, Xq: Tensor) -> Tensor:
        """The real values of Xq."""
        return Xq.dequantize()

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> "DeQuantize":
        """A DeQuantize: there is nothing to know of `mod`."""
        return DeQuantize()
