"""Values without a batch: their channels are dimension 0 to one op and 1 to the next. Equal to the QUANTIZED graph within a step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import calibrate, convert_fx, convert_to_reference_fx, prepare_fx
from tests.native_layers import steps_apart, watched

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
Ops = tuple[nn.Module, ...]


class Net(nn.Module):
    def __init__(self, ops: Ops, run: Callable[..., Any]) -> None:
        super().__init__()
        self.ops, self.run = nn.ModuleList(ops), run

    def forward(self, x: Tensor) -> Any:
        return self.run(x, *self.ops)


def slopes(count: int) -> nn.Module:
    made = nn.PReLU(count)
    nn.init.uniform_(made.weight, -0.3, 1.0)
    return made


def norm(count: int) -> nn.Module:
    made = nn.BatchNorm1d(count).eval()
    nn.init.normal_(made.running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(made.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return made


CASES: dict[str, tuple[Callable[[], Ops], Callable[..., Any], tuple[int, ...]]] = {
    "prelu": (lambda: (nn.Conv2d(8, 12, 3), slopes(7), nn.Conv2d(12, 5, 1)), lambda x, a, b, c: c(b(a(x))), (8, 9, 7)),
    "batch norm": (
        lambda: (nn.Conv2d(8, 12, 3), norm(7), nn.Conv2d(12, 5, 1)),
        lambda x, a, b, c: c(F.batch_norm(a(x), b.running_mean, b.running_var)),
        (8, 9, 7),
    ),
    "conv1d": (lambda: (nn.Conv2d(8, 12, 3), nn.Conv1d(7, 6, 3, padding=1)), lambda x, a, b: b(a(x)), (8, 9, 7)),
    "max_pool1d": (lambda: (nn.Conv2d(8, 12, 3), nn.Conv2d(12, 6, 1)), lambda x, a, b: b(F.max_pool1d(a(x), 2)), (8, 9, 7)),
    "conv3d of an input": (lambda: (nn.Conv3d(4, 6, 2, padding=1), nn.Conv3d(6, 5, 2)), lambda x, a, b: b(F.relu(a(x))), (4, 6, 5, 7)),
    "conv2d of planes": (lambda: (nn.Conv3d(4, 6, 2), nn.Conv2d(5, 5, 2)), lambda x, a, b: b(F.relu(a(x))), (4, 6, 5, 7)),
    "conv2d": (lambda: (nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)), lambda x, a, b: b(F.relu(a(x))), (4, 9, 7)),
    "transposed": (lambda: (nn.ConvTranspose2d(8, 12, 2), nn.Conv1d(10, 5, 3)), lambda x, a, b: b(a(x)), (8, 9, 7)),
    "sum of both": (
        lambda: (nn.Conv2d(8, 8, 3, padding=1), nn.Conv1d(9, 9, 3, padding=1)),
        lambda x, a, b: b(a(x) + b(x)),
        (8, 9, 7),
    ),
    "cat of both": (
        lambda: (nn.Conv2d(8, 8, 3, padding=1), nn.Conv1d(9, 9, 3, padding=1)),
        lambda x, a, b: a(torch.cat([a(x), b(x)], 2)),
        (8, 9, 7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_channels_of_two_ops_in_two_dimensions(name: str) -> None:
    torch.manual_seed(0)
    ops, run, shape = CASES[name]
    model, data = Net(ops(), run).eval(), [torch.randn(shape) for _ in range(3)]
    prepared = prepare_fx(model, None, (data[0],), backend="native")
    calibrate(prepared, data)
    seen = watched(convert_fx(prepared), (data[0],), {})
    apart = steps_apart(seen.values, convert_to_reference_fx(prepared), (data[0],), {})
    assert len(apart) > 2 and max(apart.values()) <= 1
