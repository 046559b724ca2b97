"""Fake quantization whose scale is a trained parameter: learned step size quantization (Esser et al., ICLR 2020, arXiv:1902.08153).

With t = x / s, r = round(t) + z and y = (clamp(r, quant_min, quant_max) - z) * s, straight through the rounding:

    dy/dx = 1                 inside the range, 0 outside
    dy/ds = round(t) - t      inside;  clamp(r) - z  outside
    dy/dz = 0                 inside;  -s            outside        (Bhalgat et al., LSQ+, arXiv:2004.09576)

Gradients of s and z are scaled by 1 / sqrt(N * quant_max), N the number of values that share one s (section 2.2 of the first).
torch._fake_quantize_learnable_per_tensor_affine has the same formulas, but reads s back from the device at each call and takes
float32 gradients alone; hence a Function of our own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qcompiler.fake_quantize.modules import FakeQuantize, round_per_tensor
from qcompiler.observers import MovingAverageMinMaxObserver, register_observer
from qcompiler.observers.base import EPS
from qcompiler.ops.reference import per_axis


class _Round(torch.autograd.Function):
    """y of the module's text; `axis` None: one scale; `ends`: low, high, eps. A scale below `eps` counts as `eps`, and gets its gradient
    all the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, ends: tuple[int, int, float]) -> Tensor:
        low, high, eps = ends
        scale, zero_point = scale.clamp(min=eps), zero_point.round().clamp(low, high)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = axis, low, high
        if axis is None:
            return round_per_tensor(x, scale, zero_point.to(torch.int32), low, high)
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point.to(torch.int32), axis, low, high)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> object:
        x, scale, zero_point = ctx.saved_tensors
        axis, low, high = ctx.settings
        s, z = (scale, zero_point) if axis is None else (per_axis(scale, axis, x.dim()), per_axis(zero_point, axis, x.dim()))
        t = x * s.reciprocal()
        r = t.round() + z
        inside = (r >= low) & (r <= high)
        d_scale = d_zero = None
        factor = 1 / math.sqrt(x.numel() / scale.numel() * max(high, -low))
        if ctx.needs_input_grad[1]:
            d_scale = _total(grad * torch.where(inside, t.round() - t, r.clamp(low, high) - z), axis) * factor
        if ctx.needs_input_grad[2]:
            d_zero = _total(grad * torch.where(inside, torch.zeros_like(t), -s), axis) * factor
        return grad * inside, d_scale, d_zero, None, None


def _total(values: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return values.sum().reshape(1)
    others = [d for d in range(values.dim()) if d != axis % values.dim()]
    return values.sum(others) if others else values


@register_observer
class LearnableFakeQuantize(FakeQuantize):
    """Fake quantization with a learned scale, and a learned zero point if `learn_zero_point`.

    The first call takes both from the observer, which is not asked again (`initialized`; `restart` begins anew). So run one
    batch before the optimizer steps, and before the model is wrapped in DistributedDataParallel, which spreads parameters only
    when it is made. Per channel, `allocate` gives `scale` its size; the modules of nn.qat and the graph flow call it.
    """

    switches = (*FakeQuantize.switches, "initialized")
    initialized: Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        learn_zero_point: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)
        del self.scale, self.zero_point
        self.scale = nn.Parameter(torch.ones(1))  # type: ignore[assignment]
        self.learn_zero_point = learn_zero_point
        zero_point = torch.zeros(1)
        if learn_zero_point:
            self.zero_point = nn.Parameter(zero_point)  # type: ignore[assignment]
        else:
            self.register_buffer("zero_point", zero_point)
        self.add_switch("initialized", False)

    @property
    def observed(self) -> bool:
        return self.is_on("initialized")

    def restart(self) -> None:
        """Take scale and zero point from the observer again at the next call."""
        self._set("initialized", False)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The learned scale and the learned (rounded) zero point."""
        return self.in_use()

    def in_use(self) -> tuple[Tensor, Tensor]:
        scale = self.scale.detach().clamp(min=EPS)
        return scale, self.zero_point.detach().round().clamp(self.quant_min, self.quant_max).to(torch.int32)

    def set_reduce_range(self, reduce: bool) -> None:
        """The compiler's choice of 7 or 8 bits. What was learned keeps its scale; values beyond the range are clipped."""
        self.activation_post_process.set_reduce_range(reduce)

    def _resize(self, name: str, shape: torch.Size) -> None:
        if getattr(self, name).shape != shape:  # the same Parameter, which an optimizer may hold
            getattr(self, name).data = getattr(self, name).data.new_ones(shape)

    def _round(self, x: Tensor) -> Tensor:
        axis = self.ch_axis % x.dim() if self.is_per_channel else None
        rounded = _Round.apply(x, self.scale, self.zero_point, axis, (self.quant_min, self.quant_max, EPS))
        assert isinstance(rounded, Tensor)
        return rounded

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x
        if not self.is_on("initialized") and self.is_on("observer_enabled"):
            self.activation_post_process(x.detach())
            self._update()
            self._set("initialized", True)
        self.keep_safe(x)  # what was learned is moved back to what is allowed
        return self.rounded(x)
