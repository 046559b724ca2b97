"""`int`, `float`, `len`, `min` and `max` of sizes follow each call, as the arithmetic around them does: nothing of them is held."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.backends.native.plan.forms import c_forms
from qcompiler.backends.native.read import NUMBERS
from qcompiler.backends.native.regions import regions_of
from qcompiler.errors import InputError
from qcompiler.ops.table import OPS

Forward = Callable[..., Tensor]


class Net(nn.Module):
    def __init__(self, function: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def up_to_a_multiple(y: Tensor) -> Tensor:
    height, width = (int(math.ceil(float(n) / 8) * 8) for n in y.shape[-2:])
    return F.pad(y, (0, width - y.shape[-1], 0, height - y.shape[-2]))


def to_a_side(y: Tensor) -> Tensor:
    """As detectors scale an image: the shorter side to 16, but the longer one to 24 at most."""
    shape = y.shape[-2:]
    scale = min(16 / min(shape), 24 / max(shape))
    return F.interpolate(y, scale_factor=scale, mode="bilinear", recompute_scale_factor=True)


def on_a_canvas(y: Tensor) -> Tensor:
    sides = [8, 8]
    for i, side in enumerate(y.shape[-2:]):
        sides[i] = max(sides[i], side)
    canvas = y.new_zeros([y.shape[0], y.shape[1], *sides])
    canvas[:, :, : y.shape[-2], : y.shape[-1]] = y
    return canvas


def halves(y: Tensor) -> Tensor:
    height, width = y.shape[-2:]
    up, down = math.ceil(height / 2) + abs(width - height) % 2, math.floor(width / 2) + math.trunc(width / 8)
    return F.interpolate(y, size=(up, round(down * 0.7)), mode="bilinear")


FOLLOW: dict[str, Forward] = {
    "int": lambda y: y[..., : int(y.shape[-1] * 0.5)],
    "float": lambda y: y * (float(y.shape[-1]) / 10),
    "len": lambda y: y * (1 / len(y)),
    "min": lambda y: y[..., : min(y.shape[-1], 9)],
    "min of a shape": lambda y: y[..., : min(y.shape[-2:]), : min(y.shape[2], y.shape[3])],
    "max of a list": lambda y: F.pad(y, (0, max([*y.shape[-2:]]) - y.shape[-1])),
    "factors": lambda y: F.interpolate(y, scale_factor=(32 / y.shape[-2], y.shape[-1] // 4)),
    "a square": lambda y: F.interpolate(y, size=(int(y.shape[2] * 1.5), max(4, int(y.size(3) / 2)))),
    "up to a multiple": up_to_a_multiple,
    "to a side": to_a_side,
    "halves": halves,
    "on a canvas": on_a_canvas,
}
SIZES = ((2, 12, 20), (1, 12, 20), (3, 20, 12), (2, 7, 31), (1, 16, 16))


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("forward", FOLLOW.values(), ids=FOLLOW)
def test_other_sizes_are_computed_as_the_float_model_does(forward: Forward, backend: str, tmp_path: Path) -> None:
    model = Net(forward).eval()
    module = qc.quantize(model, [images(*size) for size in SIZES], progress=False, backend=backend)
    assert not [remark for remark in qc.remarks(module) if remark.code == "guard"]
    assert all(row.int8 for row in qc.explain(module).rows if row.op == "conv2d")
    if backend == "native" and forward not in (on_a_canvas, FOLLOW["factors"], to_a_side):
        assert len(regions_of(module)) == 1
    qc.save(module, tmp_path / "m.qc")
    loaded = qc.load(tmp_path / "m.qc")
    for size in SIZES:
        x = images(*size)
        with torch.no_grad():
            due, result = model(x), module(x)
        assert result.shape == due.shape
        assert float(qc.debug.compute_sqnr(due, result)) > 25  # two convolutions have about 35 dB at the size of the largest values
        assert torch.equal(loaded(x), result)


def test_a_name_that_the_file_uses_as_a_value_keeps_its_class(tmp_path: Path) -> None:
    """torch takes no stand-in for a class: there the size is held, with the line."""
    path = tmp_path / "uses_int.py"
    path.write_text("import torch\n\ndef f(y):\n    return y[..., : int(y.shape[-1] * 0.5)] + torch.zeros(1, dtype=int)\n")
    scope: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    module = qc.quantize(Net(scope["f"]).eval(), [images(2, 12, 20)], progress=False)
    assert module(images(1, 14, 20)).shape == (1, 4, 14, 10)
    with pytest.raises(InputError, match=r"uses_int\.py"):
        module(images(1, 12, 24))
    assert "int" not in scope


def test_no_function_of_numbers_has_the_name_of_an_op() -> None:
    """A step says by its name alone which of both it is."""
    assert not set(NUMBERS) & {*OPS.rows, *c_forms()}
