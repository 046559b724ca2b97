"""Ranges that follow what training does to a model: of its own tensors at each step, of data as they grow."""

from __future__ import annotations

from typing import Any

import torch

from qcompiler.fake_quantize.modules import FakeQuantize, FixedQParamsFakeQuantize
from qcompiler.fake_quantize.switches import FakeQuantizeBase
from qcompiler.observers import MovingAverageMinMaxObserver, register_observer


@register_observer
class CurrentFakeQuantize(FakeQuantize):
    """Fake quantization of a tensor of the model itself, a parameter or what is computed from parameters alone, that an op takes beside
    its data: the range is that of the values at hand.

    There are no statistics to keep: a parameter that starts at 1e-6 and grows has no average range, and its largest values must not
    be clipped, or they would learn nothing. So `disable_observer` changes nothing, and gradients pass straight through: dx = dy.
    """

    def __init__(self, observer: Any = MovingAverageMinMaxObserver, quant_min: int | None = None, quant_max: int | None = None,
                 **observer_kwargs: Any) -> None:  # fmt: skip
        super().__init__(observer, quant_min, quant_max, averaging_constant=1.0, **observer_kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            return x
        self.activation_post_process(x.detach())
        self._update()
        return self.rounded(x)

    def _round(self, x: torch.Tensor) -> torch.Tensor:
        return super()._round(x.detach()) + (x - x.detach())  # 0 in value


def current(like: FakeQuantizeBase) -> FakeQuantizeBase:
    """A CurrentFakeQuantize with the codes and the scheme of another fake quantization; that itself where it is of a user's own kind."""
    if not isinstance(like, FakeQuantize) or like.is_per_channel or isinstance(like, FixedQParamsFakeQuantize):
        return like
    made: Any = like.activation_post_process
    settings: dict[str, Any] = {"dtype": like.dtype, "qscheme": like.qscheme, "reduce_range": made.reduce_range, "eps": float(made.eps)}
    if made.has_customized_qrange:
        settings |= {"quant_min": made.quant_min, "quant_max": made.quant_max, "reduce_range": None}  # reduced already, where it is
    return CurrentFakeQuantize(**settings)


def hold_each_batch(made: FakeQuantizeBase) -> None:
    """For a value that trained parameters have a part in, with a moving average: its range follows one that grows.

    An average of a hundred steps would clip what is new, and what is clipped has no gradient: scales, gates and embeddings would
    hardly learn. Where values have settled, the range is the largest of the last hundred batches or so.
    """
    observer = getattr(made, "activation_post_process", None)
    if isinstance(observer, MovingAverageMinMaxObserver):
        observer.holds_batch = True
