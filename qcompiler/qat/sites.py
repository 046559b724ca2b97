"""Fake quantization at its places in a graph that is trained: behind values, on weights, behind averages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, ConfigError, NumericsError, Where
from qcompiler.fake_quantize import FakeQuantizeBase, FixedQParamsFakeQuantize
from qcompiler.ir.types import QParams
from qcompiler.observers import FixedQParamsObserver
from qcompiler.observers.watch import Recorded, Watch

FRACTION = 4096  # parts of a step that averages are told apart by: 32 times the error of float32 at 255 steps
HOLDER = "weight_fake_quants"  # the submodule of a graph that holds the fake quantization of its weights


class FakeQuantWatch(Watch):
    """A fake-quantize module at its place in the graph: passes on what it makes of the value; names the node on NaN and inf.

    Without gradients (calibration, evaluation) a call that fails leaves it as it was and can be taken back, as a Watch's. With
    gradients it is training, where nothing is kept for that.
    """

    rounds = True

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.observer(x)  # type: ignore[no-any-return]
        self.before = () if torch.is_grad_enabled() else tuple(map(Recorded, self.parts))
        try:
            return self.observer(x)  # type: ignore[no-any-return]
        except BaseException as error:
            self.take_back()
            if not isinstance(error, NumericsError):
                raise
            raise CalibrationError(error.message, code=error.code, where=self.place,
                                   hint="look at this batch, and at the layers before this node") from error  # fmt: skip


def round_like(x: Tensor, watch: FakeQuantWatch) -> Tensor:
    """x, averages of values on the steps of the fake quantization at another place, rounded to those steps. Gradients go through.

    Averages of few integers often lie half-way between two. Kernels round (sum / n + zero point) to even; so does this, once the
    error of float32 is taken off: without it a quarter of the values behind a 2 x 2 pool would be a step apart.
    """
    fake_quant: Any = watch.observer
    if not fake_quant.is_on("fake_quant_enabled"):
        return x
    scale, zero_point = fake_quant.in_use()
    steps = torch.round(x.detach() / scale * FRACTION) / FRACTION
    integers = torch.clamp(torch.round(steps + zero_point), fake_quant.quant_min, fake_quant.quant_max)
    rounded: Tensor = (integers - zero_point) * scale
    return rounded + (x - x.detach())


round_like.simulates = True  # type: ignore[attr-defined]  # the rules of OBSERVED: it is no op of the model


def made_by(maker: Callable[[], object], role: str, where: Where) -> FakeQuantizeBase:
    """A fake-quantize module from a QConfig's maker; ConfigError where it makes something else."""
    made = maker()
    if not isinstance(made, FakeQuantizeBase):
        raise ConfigError(f"the {role} of this node's qconfig makes a {type(made).__name__}, which does not fake-quantize: nothing would "
                          "be learned of its rounding", code="not-fake-quantize", where=where,
                          hint="get_default_qat_qconfig_mapping(), or FakeQuantize.with_args(...) in the QConfig")  # fmt: skip
    return made


def fixed(qparams: QParams) -> FixedQParamsFakeQuantize:
    """Fake quantization of an op whose range is mathematical."""
    observer = FixedQParamsObserver.with_args(scale=qparams.scale, zero_point=qparams.zero_point, dtype=qparams.dtype,
                                              quant_min=qparams.quant_min, quant_max=qparams.quant_max)  # fmt: skip
    return FixedQParamsFakeQuantize(observer)


def switch_observers_off(model: nn.Module) -> None:
    """Keeps the qparams of all fake quantization in a model as they are, and fake-quantizes everywhere."""
    for module in model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.disable_observer()
            module.enable_fake_quant()
