"""Observers with settings bound, under the names of torch.ao.

Unlike torch.ao's, activation observers have no range bound: 8 bits, or 7 where the chosen kernel needs it
(`set_reduce_range`).
"""

from __future__ import annotations

import torch

from qcompiler.observers.histogram import HistogramObserver
from qcompiler.observers.minmax import MinMaxObserver, PerChannelMinMaxObserver
from qcompiler.observers.special import FixedQParamsObserver, PlaceholderObserver, RecordingObserver, ReuseInputObserver

# Smallest scale at which xnnpack's requantization factor (input * weight / output scale) stays above its limit of 2**-32.
XNNPACK_EPS = 2.0**-12

default_observer = MinMaxObserver.with_args()
default_placeholder_observer = PlaceholderObserver.with_args()
default_debug_observer = RecordingObserver.with_args()
default_reuse_input_observer = ReuseInputObserver.with_args()
default_histogram_observer = HistogramObserver.with_args()

default_weight_observer = MinMaxObserver.with_args(dtype=torch.int8, qscheme=torch.per_tensor_symmetric)
default_per_channel_weight_observer = PerChannelMinMaxObserver.with_args(dtype=torch.int8, qscheme=torch.per_channel_symmetric)
weight_observer_range_neg_127_to_127 = default_weight_observer.with_args(quant_min=-127, quant_max=127, eps=XNNPACK_EPS)
per_channel_weight_observer_range_neg_127_to_127 = default_per_channel_weight_observer.with_args(
    quant_min=-127, quant_max=127, eps=XNNPACK_EPS
)

default_dynamic_quant_observer = PlaceholderObserver.with_args(dtype=torch.uint8, quant_min=0, quant_max=255, is_dynamic=True)

default_float_qparams_observer = PerChannelMinMaxObserver.with_args(
    dtype=torch.uint8, qscheme=torch.per_channel_affine_float_qparams, ch_axis=0
)
default_float_qparams_observer_4bit = default_float_qparams_observer.with_args(dtype=torch.quint4x2)

# -1 is 0 and 1 - 1/128 is 255; 0 is 0 and 1 - 1/256 is 255
default_fixed_qparams_range_neg1to1_observer = FixedQParamsObserver.with_args(scale=2.0 / 256.0, zero_point=128)
default_fixed_qparams_range_0to1_observer = FixedQParamsObserver.with_args(scale=1.0 / 256.0, zero_point=0)
