"""The fake quantization of a weight, made from a qconfig to fit the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.config.qconfig import QConfig, as_qconfig
from qcompiler.errors import ConfigError
from qcompiler.fake_quantize import FakeQuantize
from qcompiler.observers import UniformQuantizationObserverBase
from qcompiler.observers.weights import take_axis


def qat_qconfig(value: object, owner: str) -> QConfig:
    """The QConfig that `value` stands for; ConfigError, naming `owner`, where there is none or its weights are not fake-quantized."""
    qconfig = as_qconfig(value)
    if qconfig is None:
        raise ConfigError(f"{owner} needs a qconfig", code="no-qconfig",
                          hint="qconfig=get_default_qat_qconfig(), or set it on the float module")  # fmt: skip
    made = qconfig.weight()
    if isinstance(made, UniformQuantizationObserverBase):
        raise ConfigError(f"the qconfig of {owner} observes weights with {type(made).__name__}, which does not fake-quantize",
                          code="no-fake-quant", hint="take a qconfig for training: get_default_qat_qconfig()")  # fmt: skip
    return qconfig


def weight_fake_quant(qconfig: QConfig, weight: Tensor, axis: int | None, device: Any = None) -> nn.Module:
    """What `qconfig.weight` makes, for this weight: its output channels along `axis`; None: the kernel wants one scale.

    Per-channel buffers get their final size, so that nothing is resized in training.
    """
    made = qconfig.weight()
    assert isinstance(made, nn.Module)
    if isinstance(made, FakeQuantize) and made.is_per_channel:
        made = made.per_tensor() if axis is None else made
        if axis is not None:
            take_axis(made, axis, weight)
            made.allocate(weight.shape[axis])
    on = weight.device if device is None else torch.device(device)
    return made if on.type == "meta" else made.to(on)  # type: ignore[no-any-return]
