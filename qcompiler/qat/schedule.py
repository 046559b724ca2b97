"""When in a training which part of the quantization is learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from qcompiler.errors import ConfigError, NumericsError, Where
from qcompiler.fake_quantize import FakeQuantizeBase
from qcompiler.qat.freeze import freeze_bn_stats, update_bn_stats


class QATSchedule:
    """Switches observers, batch-norm statistics and fake quantization of a prepared model, graph or eager, by epoch.

        schedule = QATSchedule(prepared, freeze_bn_from=3, observe_until=4)
        for epoch in range(8):
            schedule.step()
            train_one_epoch(prepared)

    Epochs count from 0. `fake_quant_from`: before it values pass unrounded and are only observed. `freeze_bn_from`: from it on
    batch norm uses its running statistics, so that the folded weights no longer move with them. `observe_until`: from it on
    ranges are kept, so that the last epochs train with the qparams that are converted. None: that switch is left alone.

    The numbers above are those of torchvision's recipe (references/classification/train_quantization.py,
    --num-batch-norm-update-epochs 3 and --num-observer-update-epochs 4 of 8 or more epochs); that freezing the statistics late
    gains accuracy is measured in Krishnamoorthi, arXiv:1806.08342, section 3.2.2.

    A switch is set where an epoch wants it otherwise than the one before, so between steps you may set others. ConfigError for a
    model without fake quantization.
    """

    def __init__(
        self, model: nn.Module, *, observe_until: int | None = None, freeze_bn_from: int | None = None, fake_quant_from: int | None = None
    ) -> None:
        if not any(isinstance(module, FakeQuantizeBase) for module in model.modules()):
            raise ConfigError("the model has no fake quantization", code="not-prepared", hint="prepare_qat or prepare_qat_fx first")
        self.model = model
        self.observe_until, self.freeze_bn_from, self.fake_quant_from = observe_until, freeze_bn_from, fake_quant_from
        self.epoch = -1
        self._set: dict[str, bool] = {}

    def step(self, epoch: int | None = None) -> None:
        """Begin the next epoch, or epoch number `epoch` (a resumed training). Raises NumericsError where NaN or inf passed."""
        self.check()
        self.epoch = self.epoch + 1 if epoch is None else epoch
        wanted = {
            "frozen": None if self.freeze_bn_from is None else self.epoch >= self.freeze_bn_from,
            "observing": None if self.observe_until is None else self.epoch < self.observe_until,
            "rounding": None if self.fake_quant_from is None else self.epoch >= self.fake_quant_from,
        }
        for name, on in wanted.items():
            if on is not None and self._set.get(name) != on:
                self._apply(name, on)
                self._set[name] = on

    def _apply(self, name: str, wanted: bool) -> None:
        for module in self.model.modules():
            if name == "frozen":
                (freeze_bn_stats if wanted else update_bn_stats)(module)
            elif isinstance(module, FakeQuantizeBase) and name == "observing":
                module.enable_observer(wanted)
            elif isinstance(module, FakeQuantizeBase):
                module.enable_fake_quant(wanted)

    def check(self) -> None:
        """Raise NumericsError, with the module, where a scale is no finite number. Reads every scale: once an epoch is cheap."""
        for path, module in self.model.named_modules():
            if isinstance(module, FakeQuantizeBase) and not bool(torch.isfinite(module.scale).all()):
                raise NumericsError(f"NaN or inf passed through {path or 'the model'}", code="nan", where=Where(module_path=path or None),
                                    hint="look at the data and the learning rate")  # fmt: skip

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint needs to go on."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the epoch of `state`: its switches are set now, the next `step` begins the one after."""
        if state["epoch"] >= 0:
            self.step(state["epoch"])
