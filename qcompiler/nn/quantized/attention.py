"""nn.quantized.MultiheadAttention: made from an observed one of nn.quantizable."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qcompiler.nn import quantizable
from qcompiler.nn.float_classes import FloatClasses
from qcompiler.nn.quantized.parts import convert_parts, not_from_float


class MultiheadAttention(quantizable.MultiheadAttention):
    """nn.MultiheadAttention on quint8 tensors: int8 linears, attention in float. The weights are quint8, scale 1/256."""

    _FLOAT_MODULE: ClassVar[FloatClasses] = None
    _OBSERVED_MODULE: ClassVar[object] = quantizable.MultiheadAttention

    def _weights_out(self, weights: Tensor) -> Tensor:
        return torch.quantize_per_tensor(weights, 1.0 / 256, 0, torch.quint8)

    def _get_name(self) -> str:
        return "QuantizedMultiheadAttention"

    @classmethod
    def from_float(cls, other: object) -> Any:
        """Raises ConfigError: the way goes through an observed module."""
        raise not_from_float("MultiheadAttention")

    @classmethod
    def from_observed(cls, other: nn.Module) -> Any:
        """The int8 form of a calibrated quantizable.MultiheadAttention."""
        return convert_parts(other, {quantizable.MultiheadAttention: cls})

    @torch.jit.unused
    def dequantize(self) -> nn.MultiheadAttention:
        """An nn.MultiheadAttention with the values of the int8 weights."""
        parts: list[Any] = [self.linear_Q, self.linear_K, self.linear_V]
        made = nn.MultiheadAttention(self.embed_dim, self.num_heads, self.dropout, parts[0].bias() is not None, self.bias_k is not None,
                                     self.add_zero_attn, self.kdim, self.vdim, self.batch_first)  # fmt: skip
        state = {f"{p}_proj_weight": m.weight().dequantize() for p, m in zip("qkv", parts)}
        if made._qkv_same_embed_dim:
            state = {"in_proj_weight": torch.cat(list(state.values()))}
        if made.in_proj_bias is not None:
            state["in_proj_bias"] = torch.cat([m.bias() for m in parts])
        out: Any = self.out_proj
        state |= {"out_proj.weight": out.weight().dequantize()} | ({} if out.bias() is None else {"out_proj.bias": out.bias()})
        state |= {name: getattr(self, name) for name in ("bias_k", "bias_v") if getattr(self, name) is not None}
        made.load_state_dict(state)
        return made.eval()
