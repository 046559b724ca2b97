"""The switch between moving and frozen batch-norm statistics, for modules that train a convolution and its batch norm as one."""

from __future__ import annotations

from typing import Any, Self

from torch import nn


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


def freeze_bn_stats(module: Any) -> None:
    """For `model.apply`: keep batch-norm statistics as they are. Modules without the switch are left alone."""
    if isinstance(module, FreezableBatchNorm):
        module.freeze_bn_stats()


def update_bn_stats(module: Any) -> None:
    """For `model.apply`: let batch-norm statistics move in train mode."""
    if isinstance(module, FreezableBatchNorm):
        module.update_bn_stats()
