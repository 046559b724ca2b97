"""What kernels that add in 16 bits want, on the engine and the instruction set to run on: activations of 7 bits, or depthwise weights
with larger scales. Decided before training, which then learns with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qcompiler.backends.torch.target import TorchTarget
from qcompiler.errors import ConfigError, Where
from qcompiler.fake_quantize import FakeQuantize
from qcompiler.fake_quantize.following import hold_each_batch
from qcompiler.observers import ObserverBase
from qcompiler.ops.spec import Family
from qcompiler.quantization.observation import observers_of


def target_of(isa: str | None) -> TorchTarget:
    """torch's current quantized engine on an instruction set (None: this machine's)."""
    engine = torch.backends.quantized.engine
    return TorchTarget(engine, isa) if isa else TorchTarget(engine)


def reduce_where_needed(model: nn.Module, isa: str | None) -> None:
    """Before training or calibration is used: tells the activation observers that left it open."""
    reduce = target_of(isa).reduces_all
    for _, _, observer in observers_of(model):
        if isinstance(observer, ObserverBase):
            observer.set_reduce_range(reduce)


def hold_batches(model: nn.Module) -> None:
    """Before training: ranges of activations follow what training does to them, also of a parameter behind a QuantStub."""
    for _, _, observer in observers_of(model):
        if isinstance(observer, FakeQuantize):
            hold_each_batch(observer)


def keep_depthwise_safe(model: nn.Module, isa: str | None) -> None:
    """Before training: the weights' fake quantization keeps scales at which 16-bit sums cannot overflow, as convert wants them."""
    target = target_of(isa)
    for module in model.modules():
        fake_quant = getattr(module, "weight_fake_quant", None)
        if isinstance(module, nn.modules.conv._ConvNd) and isinstance(fake_quant, FakeQuantize):
            limit = target.limit_of(Family.CONVOLUTION, module.weight, vars(module)) if not module.transposed else None
            fake_quant.least_scale = limit.least_scale if limit is not None else None


def check_trained(model: nn.Module, isa: str | None) -> None:
    """Raises ConfigError where fake-quantize modules trained with more bits than the kernels can take now."""
    target = target_of(isa)
    for path, _, observer in observers_of(model) if target.reduces_all else ():
        inner: Any = observer.activation_post_process if isinstance(observer, FakeQuantize) else None
        if hasattr(inner, "min_val") and inner.reduce_range is None and inner.quant_max - inner.quant_min > 127:
            raise ConfigError(f"{path} was trained with 8-bit activations; kernels of {target.engine} on {target.isa} take 7",
                              code="range-bits", where=Where(module_path=path),
                              hint="set torch.backends.quantized.engine, and isa, as they will be before prepare_qat")  # fmt: skip
