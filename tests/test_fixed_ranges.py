"""conv -> an op of a fixed range -> an op that keeps its input's -> linear, as models write it: every pair, with each op kept float in
turn, on each engine.

The op of a fixed range is computed in float where only results read it; whatever copies it must then not wait for its integers.
(test_stays_float has the same for every row of the table.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import calibrate, convert_fx, explain, prepare_fx
from qcompiler.debug import compute_sqnr
from tests.flow import ENGINES, randn

FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: F.softmax(x, 1),
    "hardsigmoid": F.hardsigmoid,
}
SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "adaptive_pool": lambda x: F.adaptive_avg_pool2d(x, 2),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.shape[0], -1),
    "slice": lambda x: x[:, :, 1:],
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "unsqueeze": lambda x: x.unsqueeze(1),
}
PAIRS = [(fixed, same) for fixed in FIXED for same in SAME]
X = randn(2, 3, 6, 6)
LOWEST = 20.0  # dB: the steps of 1/256 that softmax over 8 channels uses a part of, and two more roundings to 8 bits


class Pairs(nn.Module):
    """A branch for each pair behind one convolution each, with and without a result in front of the linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, 3) for _ in PAIRS)
        with torch.no_grad():
            sizes = [SAME[same](FIXED[fixed](conv(X))).shape[-1] for conv, (fixed, same) in zip(self.convs, PAIRS, strict=True)]
        self.linears = nn.ModuleList(nn.Linear(size, 4) for size in sizes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for conv, linear, (fixed, same) in zip(self.convs, self.linears, PAIRS, strict=True):
            value = SAME[same](FIXED[fixed](conv(x)))
            found[f"{fixed} {same}"] = linear(value)
            if same in ("mean", "max_pool", "slice"):  # read as floats, too
                found[f"{fixed} {same} itself"] = value
        return found


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Pairs().eval()


@pytest.fixture(scope="module", params=ENGINES)
def prepared(model: nn.Module, request: pytest.FixtureRequest) -> Any:
    made = prepare_fx(model, None, (X,), engine=request.param)
    calibrate(made, [X, randn(2, 3, 6, 6, seed=1)])
    return made


def check(model: nn.Module, module: Any, floats: tuple[str, ...] = ()) -> None:
    with torch.no_grad():
        expected, found = model(X), module(X)
    poor = {name: db for name, value in expected.items() if (db := compute_sqnr(value, found[name])) < LOWEST}
    assert not poor, poor
    rows = [row for row in explain(module).rows if row.op in ("conv2d", "linear")]
    assert len(rows) == 2 * len(PAIRS)
    assert {row.module_path for row in rows if not row.int8} == {path for path in floats if path.startswith(("convs", "linears"))}


def test_all_pairs(model: nn.Module, prepared: Any) -> None:
    check(model, convert_fx(prepared))


@pytest.mark.parametrize("what", ["convs", "fixed", "same", "linears"])
def test_all_pairs_with_each_op_kept_float(model: nn.Module, prepared: Any, what: str) -> None:
    if what in ("convs", "linears"):
        names = [f"{what}.{i}" for i in range(len(PAIRS))]
    else:
        fixed = [row for row in explain(prepared).rows if row.op in ("tanh", "sigmoid", "softmax", "hardsigmoid")]
        others = [row for row in explain(prepared).rows if row.op not in ("conv2d", "linear") and row not in fixed]
        names = [f"%{row.node}" for row in (fixed if what == "fixed" else others)]
    check(model, convert_fx(prepared, keep_float=names), tuple(names))
