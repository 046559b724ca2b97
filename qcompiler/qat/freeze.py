"""The switch between moving and frozen batch-norm statistics, which `train()` leaves as it is."""

from __future__ import annotations

from functools import partial
from typing import Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FreezableBatchNorm(nn.Module):
    """Base of modules whose batch norm can be frozen: then running statistics are used, in train mode too, and do not move.

    Frozen survives `train()`. A subclass reads `bn_is_training` in its forward.
    """

    freeze_bn: bool = False

    def freeze_bn_stats(self) -> Self:
        """Use the running statistics as they are from now on."""
        self.freeze_bn = True
        self._follow()
        return self

    def update_bn_stats(self) -> Self:
        """Use and record the statistics of batches while in train mode."""
        self.freeze_bn = False
        self._follow()
        return self

    @property
    def bn_is_training(self) -> bool:
        return self.training and not self.freeze_bn

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._follow()
        return self

    def _follow(self) -> None:
        """Bring a batch-norm submodule into the mode that the switch says."""
        if isinstance(bn := getattr(self, "bn", None), nn.Module):
            bn.train(self.bn_is_training)


def freeze_bn_stats(module: object) -> None:
    """For `model.apply`: keep batch-norm statistics as they are, in train mode too. For trained modules and any BatchNorm."""
    if isinstance(module, FreezableBatchNorm):
        module.freeze_bn_stats()
    elif isinstance(module, _BatchNorm) and "train" not in vars(module):
        vars(module).update(_wanted_mode=module.training, train=partial(_train_frozen, module))
        module.eval()


def update_bn_stats(module: object) -> None:
    """For `model.apply`: let batch-norm statistics move in train mode again."""
    if isinstance(module, FreezableBatchNorm):
        module.update_bn_stats()
    elif isinstance(module, _BatchNorm) and "train" in vars(module):
        del module.train
        module.train(vars(module).pop("_wanted_mode"))


def _train_frozen(module: nn.Module, mode: bool = True) -> nn.Module:
    """`module.train` while its statistics are frozen. Graphs read `module.training` at each call, so no subclass would do."""
    vars(module)["_wanted_mode"] = mode
    return nn.Module.train(module, False)
