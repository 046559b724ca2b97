"""Kernels on the memory layouts that other kernels hand them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from tests.flow import QUANTIZED, flow


class Mean(nn.Module):
    """A mean behind a 3-d convolution, whose kernel makes channels_last_3d."""

    def __init__(self, dim: tuple[int, ...] | None, keepdim: bool) -> None:
        super().__init__()
        self.conv, self.dim, self.keepdim = nn.Conv3d(3, 8, 3), dim, keepdim

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.mean() if self.dim is None else y.mean(self.dim, self.keepdim)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [(2, 3, 4), (3, 4), (1,), None])
def test_mean_behind_conv3d(dim: tuple[int, ...] | None, keepdim: bool) -> None:
    torch.manual_seed(0)
    model, x = Mean(dim, keepdim).eval(), torch.randn(2, 3, 4, 8, 8)
    module = flow(model, (x,), prepare_custom_config=QUANTIZED).module
    assert all(row.int8 for row in qcompiler.explain(module).rows)
    found = module(x).dequantize()
    assert found.shape == model(x).shape
    assert (found - model(x)).abs().max() < 0.05  # a mean of values in steps of about 0.02
    assert dim is None or compute_sqnr(model(x), found) > 20
