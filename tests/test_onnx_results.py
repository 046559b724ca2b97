"""What goes out of an ONNX file in float: names, values, and what is refused since runtimes would give other ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from tests.onnx_runs import run, session


class Named(nn.Module):
    """Its results have the names of nodes, and of an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.head(x)
        return {
            "head": y, "x": y * 2, "log_softmax": F.log_softmax(y, 1), "isnan": torch.isnan(y), "any": (y * 0.01).any(1),
            "inverted": ~(y * 9).long(),
        }  # fmt: skip


def test_results_keep_their_names_and_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Named().eval(), torch.randn(2, 3)
    made = qcompiler.prepare_fx(model, qcompiler.QConfigMapping().set_global(None), (x,), backend="onnx")
    qcompiler.calibrate(made, [x], progress=False)
    path = qcompiler.export_onnx(made, tmp_path / "named.onnx", dynamic_shapes={})
    opened = session(path)
    names = [output.name for output in opened.get_outputs()]
    assert names == ["head", "x.1", "log_softmax", "isnan", "any", "inverted"]  # the argument is x
    for got, expected in zip(run(opened, (x,)), model(x).values(), strict=True):
        torch.testing.assert_close(got, expected)


class TwoSizes(nn.Module):
    def forward(self, x: Tensor, resized: str = "") -> Tensor:
        return x.relu() if not resized else F.interpolate(x, size=4, mode="bilinear", antialias=True)


def test_one_name_for_two_sizes_is_refused(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 6)
    made = qcompiler.prepare_fx(TwoSizes().eval(), None, (x,), backend="onnx")
    qcompiler.calibrate(made, [x], progress=False)
    with pytest.raises(qcompiler.ConfigError, match="the name of two dimensions"):
        qcompiler.export_onnx(made, tmp_path / "two.onnx", dynamic_shapes={"x": {2: "n", 3: "n"}})


def test_antialias_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 differs from torch in most pixels."""
    x = torch.randn(1, 3, 8, 8)
    made = qcompiler.prepare_fx(TwoSizes().eval(), None, (x, "yes"), backend="onnx")
    qcompiler.calibrate(made, [(x, "yes")], progress=False)
    with pytest.raises(qcompiler.UnsupportedOpError, match="antialias"):
        qcompiler.export_onnx(made, tmp_path / "small.onnx", dynamic_shapes={})
