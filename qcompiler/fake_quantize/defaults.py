"""Fake quantization with settings bound, under the names of torch.ao."""

from __future__ import annotations

import torch

from qcompiler.fake_quantize.learnable import LearnableFakeQuantize
from qcompiler.fake_quantize.modules import FakeQuantize, FixedQParamsFakeQuantize, FusedMovingAvgObsFakeQuantize
from qcompiler.observers import (
    HistogramObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
)
from qcompiler.observers.defaults import XNNPACK_EPS

_activation = {"observer": MovingAverageMinMaxObserver, "quant_min": 0, "quant_max": 255, "dtype": torch.uint8}
_weight = {
    "observer": MovingAverageMinMaxObserver,
    "quant_min": -128,
    "quant_max": 127,
    "dtype": torch.int8,
    "qscheme": torch.per_tensor_symmetric,
    "averaging_constant": 1.0,  # weights are seen anew at each step: no memory
}
_channel_weight = {
    **_weight,
    "observer": MovingAveragePerChannelMinMaxObserver,
    "qscheme": torch.per_channel_symmetric,
    "ch_axis": 0,
}
_narrow = {"quant_min": -127, "quant_max": 127, "eps": XNNPACK_EPS}

default_fake_quant = FakeQuantize.with_args(**_activation)
default_dynamic_fake_quant = default_fake_quant.with_args(is_dynamic=True, averaging_constant=1.0)
default_histogram_fake_quant = default_fake_quant.with_args(observer=HistogramObserver)
default_weight_fake_quant = FakeQuantize.with_args(**_weight)
default_per_channel_weight_fake_quant = FakeQuantize.with_args(**_channel_weight)
default_embedding_fake_quant = default_per_channel_weight_fake_quant.with_args(
    qscheme=torch.per_channel_affine_float_qparams, dtype=torch.uint8, quant_min=0, quant_max=255
)
default_embedding_fake_quant_4bit = default_embedding_fake_quant.with_args(dtype=torch.quint4x2, quant_min=0, quant_max=15)
default_fused_act_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(**_activation)
default_fused_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(**_weight)
default_fused_per_channel_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(**_channel_weight)
fused_wt_fake_quant_range_neg_127_to_127 = default_fused_wt_fake_quant.with_args(**_narrow)
fused_per_channel_wt_fake_quant_range_neg_127_to_127 = default_fused_per_channel_wt_fake_quant.with_args(**_narrow)
default_fixed_qparams_range_neg1to1_fake_quant = FixedQParamsFakeQuantize.with_args(observer=default_fixed_qparams_range_neg1to1_observer)
default_fixed_qparams_range_0to1_fake_quant = FixedQParamsFakeQuantize.with_args(observer=default_fixed_qparams_range_0to1_observer)
default_lsq_act_fake_quant = LearnableFakeQuantize.with_args(**_activation)
default_lsq_wt_fake_quant = LearnableFakeQuantize.with_args(**_weight)
default_lsq_per_channel_wt_fake_quant = LearnableFakeQuantize.with_args(**_channel_weight)
