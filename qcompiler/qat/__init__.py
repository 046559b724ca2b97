"""Quantization-aware training: what the graph flow and the modules of `nn.qat` share."""

from qcompiler.qat.conv_bn import conv_bn
from qcompiler.qat.freeze import FreezableBatchNorm, freeze_bn_stats, update_bn_stats
from qcompiler.qat.schedule import QATSchedule
from qcompiler.qat.weights import qat_qconfig, weight_fake_quant

__all__ = ["FreezableBatchNorm", "QATSchedule", "conv_bn", "freeze_bn_stats", "qat_qconfig", "update_bn_stats", "weight_fake_quant"]
