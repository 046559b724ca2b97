"""Quantized tensors and modules (made from float ones as `prepare` would), and the float64 truth that they are compared with."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.config.qconfig import QConfig, default_per_channel_qconfig, default_qconfig
from qcompiler.observers import MinMaxObserver

ENGINES = [e for e in ("x86", "fbgemm", "onednn", "qnnpack") if e in torch.backends.quantized.supported_engines]
PER_CHANNEL, PER_TENSOR = default_per_channel_qconfig, default_qconfig


def codes(*shape: int, seed: int = 0, high: int = 127, scale: float = 0.02, zero_point: int = 60) -> Tensor:
    """A quint8 tensor with codes of 0..high: up to 127 none of the kernels saturates."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, high + 1, shape, dtype=torch.uint8, generator=generator)
    return torch._make_per_tensor_quantized_tensor(values, scale, zero_point)


def activation(*shape: int, scale: float = 0.03, zero_point: int = 100, dtype: torch.dtype = torch.quint8, high: int = 255,
               seed: int | None = None) -> Tensor:  # fmt: skip
    """A quint8 tensor with codes of 0..high, or a qint8 one of the same values; seeded by its rank where no seed is given."""
    codes = torch.randint(0, high + 1, shape, generator=torch.Generator().manual_seed(len(shape) if seed is None else seed))
    codes = codes.to(torch.uint8) if dtype is torch.quint8 else (codes - 128).to(torch.int8)
    return torch._make_per_tensor_quantized_tensor(codes, scale, zero_point if dtype is torch.quint8 else zero_point - 128)


def real(q: Tensor) -> Tensor:
    """The exact values of a quantized tensor, in float64."""
    if q.qscheme() is torch.per_tensor_affine:
        return (q.int_repr().double() - q.q_zero_point()) * q.q_scale()
    shape = [-1 if i == q.q_per_channel_axis() else 1 for i in range(q.dim())]
    return (q.int_repr().double() - q.q_per_channel_zero_points().double().reshape(shape)) * q.q_per_channel_scales().reshape(shape)


def distance(got: Tensor, exact: Tensor) -> int:
    """Largest difference in quanta of the result's own qparams."""
    assert got.shape == exact.shape
    ends = (0, 255) if got.dtype is torch.quint8 else (-128, 127)
    codes = (torch.round(exact / got.q_scale()) + got.q_zero_point()).clamp(*ends)
    return int((got.int_repr().double() - codes).abs().max()) if exact.numel() else 0


def random_norm(bn: Any, seed: int = 3) -> Any:
    """A BatchNorm that was trained: no statistic or parameter left at its start."""
    generator = torch.Generator().manual_seed(seed)
    for tensor, low in ((bn.running_mean, -0.5), (bn.running_var, 0.3), (bn.weight, 0.5), (bn.bias, -0.5)):
        if tensor is not None:
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return bn


def calibrated(mod: nn.Module, *inputs: Tensor, qconfig: QConfig = PER_CHANNEL) -> Any:
    """The float module with a qconfig, and an observer that saw its result."""
    mod.eval()
    mod.qconfig = qconfig  # type: ignore[assignment]
    observer = MinMaxObserver()
    with torch.no_grad():
        observer(mod(*(x.dequantize() for x in inputs)))
    mod.activation_post_process = observer
    return mod


def truth(mod: nn.Module, q: Any, *inputs: Tensor) -> Tensor:
    """The float module in float64 on the real values of the int8 inputs and of the weight that `q` holds."""
    mod = copy.deepcopy(mod).double()
    base: Any = mod[0] if isinstance(mod, nn.Sequential) else mod
    if callable(getattr(q, "weight", None)):
        base.weight.data = real(q.weight())
    del mod.activation_post_process  # a child of a Sequential, too
    with torch.no_grad():
        return mod(*(real(x) for x in inputs))  # type: ignore[no-any-return]


def error(q: Any, exact: Tensor, *inputs: Tensor) -> int:
    """Largest distance in quanta from the exact result."""
    result = q(*inputs)
    assert result.dtype is torch.quint8
    # torch's batch_norm hands an empty batch back as it is
    assert not exact.numel() or (result.q_scale(), result.q_zero_point()) == (q.scale, q.zero_point)
    return distance(result, exact)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two quantized tensors agree bit for bit."""
    return torch.equal(a.int_repr(), b.int_repr()) and (a.q_scale(), a.q_zero_point()) == (b.q_scale(), b.q_zero_point())


def through_file(value: Any, save: Any = torch.save, load: Any = None) -> Any:
    """What comes back from a file."""
    file = io.BytesIO()
    save(value, file)
    file.seek(0)
    return load(file) if load is not None else torch.load(file, weights_only=False)
