"""What goes out of an ONNX file in float: names, values, and what is refused since runtimes would give other ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from tests.onnx_runs import run, run_in_openvino, session


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


class Smooths(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.conv, self.settings = nn.Conv2d(3, 4, 3, padding=1), settings

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), antialias=True, **self.settings)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("settings", [
    {"size": (5, 4)}, {"size": (5, 4), "align_corners": True}, {"size": 23}, {"scale_factor": (0.4, 0.7)}, {"scale_factor": 0.37},
    {"scale_factor": 0.37, "recompute_scale_factor": True}, {"scale_factor": (0.37, 1.8), "align_corners": True},
], ids=str)  # fmt: skip
def test_antialias(mode: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """torch's own weights, in both runtimes: the op Resize has others."""
    torch.manual_seed(0)
    model, x = Smooths(mode=mode, **settings).eval(), torch.randn(2, 3, 17, 13)
    made = qcompiler.prepare_fx(model, qcompiler.QConfigMapping().set_global(None), (x,), backend="onnx")
    qcompiler.calibrate(made, [x], progress=False)
    path = qcompiler.export_onnx(made, tmp_path / "small.onnx", dynamic_shapes={"x": {0: "n"}})
    given = torch.randn(3, 3, 17, 13)
    expected = model(given)
    torch.testing.assert_close(run(session(path), (given,))[0], expected, atol=2e-5, rtol=1e-5)
    assert compute_sqnr(expected, run_in_openvino(path, (given,))[0][0]) > 40  # it computes floats in bfloat16 where the CPU has that


class Shrinks(nn.Module):
    """Sizes that no expression gives, and another input whose sizes may change all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        small = F.interpolate(self.conv(x), scale_factor=0.4)
        return small.flatten(2).transpose(1, 2) @ y.flatten(1)[:, : small.shape[1], None]


@pytest.mark.parametrize("shapes", [
    {"x": {0: "n"}, "y": {0: "n"}}, {"y": {2: "m"}}, {"x": (None, None, None, None), "y": (None, None, "m")}, {},
], ids=str)  # fmt: skip
def test_a_size_that_nothing_explains_is_written_where_its_dimension_is_held(shapes: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = Shrinks().eval(), torch.randn(2, 3, 17, 13), torch.randn(2, 3, 5)
    made = qcompiler.prepare_fx(model, qcompiler.QConfigMapping().set_global(None), (x, y), backend="onnx")
    qcompiler.calibrate(made, [(x, y)], progress=False)
    path = qcompiler.export_onnx(made, tmp_path / "small.onnx", dynamic_shapes=shapes)
    names = {size for one in session(path).get_inputs() for size in one.shape if isinstance(size, str)}
    assert names == {name for name in ("n", "m") if f"'{name}'" in str(shapes)}
    batch = 3 if "n" in names else 2
    given = torch.randn(batch, 3, 17, 13), torch.randn(batch, 3, 7 if "m" in names else 5)
    torch.testing.assert_close(run(session(path), given)[0], model(*given), atol=1e-5, rtol=1e-5)


def test_antialias_of_a_size_that_changes_is_refused(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    made = qcompiler.prepare_fx(TwoSizes().eval(), None, (x, "yes"), backend="onnx")
    qcompiler.calibrate(made, [(x, "yes")], progress=False)
    with pytest.raises(qcompiler.UnsupportedOpError, match=r"antialias.*dynamic_shapes=\{\} holds"):
        qcompiler.export_onnx(made, tmp_path / "small.onnx")


class Unrounded(nn.Module):
    """An int8 op whose result is also read as it was before it is rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(20, 8), nn.Linear(8, 8)

    def forward(self, i: Tensor) -> Tensor:
        x = self.words(i)
        return x + self.last(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def test_a_value_that_is_read_rounded_and_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    i = torch.randint(0, 20, (3, 5))
    made = qcompiler.prepare_fx(Unrounded().eval(), None, (i,), backend="onnx")
    qcompiler.calibrate(made, [i], progress=False)
    (got,) = run(session(qcompiler.export_onnx(made, tmp_path / "net.onnx")), (i,))
    assert compute_sqnr(qcompiler.convert_to_reference_fx(made)(i), got) > 50


class Sorts(nn.Module):
    """Two calls without a form; behind them stands what reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.fft(x).real).relu() + torch.bucketize(x, torch.tensor([0.0, 1.0]))


def test_what_has_no_form_is_named_and_not_what_reads_it(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    made = qcompiler.prepare_fx(Sorts().eval(), None, (x,), backend="onnx")
    qcompiler.calibrate(made, [x], progress=False)
    with pytest.raises(qcompiler.UnsupportedOpError, match=r"2 calls have no ONNX form:\n  %fft_fft: .*\n  %bucketize: .*\n"):
        qcompiler.export_onnx(made, tmp_path / "net.onnx")
