"""Parameters and buffers that int8 ops read as values, not as weights: their codes are a region's own, and no caller hands them in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from tests.native_nets import converted, example, region_of, steps_apart
from tests.test_native_export import build, computed


class Net(nn.Module):
    """Convolutions on both sides of an op that takes a tensor of the module's own."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], buffer: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.op = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), op
        own = example(shape, 3)
        self.register_buffer("own", own) if buffer else self.register_parameter("own", nn.Parameter(own))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self.first(x), self.own))  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "sum": (lambda y, own: F.relu(y + own), (1, 8, 6, 6)),
    "a row for all": (lambda y, own: F.relu(own - y), (6,)),
    "matmul": (lambda y, own: y @ own, (6, 6)),
    "matmul from the left": (lambda y, own: own @ y, (6, 6)),
    "beside": (lambda y, own: torch.cat([y, own.expand(y.shape[0], -1, -1, -1)], 3), (1, 8, 6, 2)),
    "moved": (lambda y, own: y + own.permute(2, 0, 1), (6, 6, 8)),
    "convolved": (lambda y, own: y + F.conv2d(own, torch.full((8, 1, 3, 3), 0.1), padding=1, groups=8), (1, 8, 6, 6)),
    "pooled": (lambda y, own: y + F.max_pool2d(own, 3, 1, 1), (1, 8, 6, 6)),
    "chosen": (lambda y, own: torch.maximum(y, own[..., [3, 2, 1, 0, 0, 1]]), (1, 8, 6, 4)),
}


@pytest.mark.parametrize("buffer", [False, True], ids=["parameter", "buffer"])
@pytest.mark.parametrize("name", NETS)
def test_the_region_takes_what_the_caller_gives(name: str, buffer: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = example((2, 3, 8, 8))
    module, graph = converted(Net(*NETS[name], buffer).eval(), x)
    assert [given for given, _ in region_of(module).network.inputs] == ["x"]
    for given in (x, example((5, 3, 8, 8), 6)):
        assert max(steps_apart(module, graph, given).values()) <= 1
    if not buffer:
        folder = qcompiler.export_c(module, tmp_path / "c", name="net")
        _, results = computed(build(folder, "net"), "net", [x])
        assert np.array_equal(results, module(x).numpy().reshape(-1))


class Counting(nn.Module):
    """A buffer that each call changes is no constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("kept", torch.zeros(1, 8, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.kept.mul_(0.5).add_(y.mean(0, keepdim=True))
        return self.last(y + self.kept)  # type: ignore[no-any-return]


def test_what_a_call_changes_is_read_anew() -> None:
    torch.manual_seed(0)
    x = example((2, 3, 8, 8))
    model = Counting().eval()
    module: Any = converted(model, x)[0]
    model.kept.copy_(module.kept)
    with torch.no_grad():
        for _ in range(3):
            expected, found = model(x), module(x)
            assert float((found - expected).norm()) < 0.1 * float(expected.norm())  # ranges are those of one call
            assert float((module.kept - model.kept).norm()) < 0.2 * float(model.kept.norm())
