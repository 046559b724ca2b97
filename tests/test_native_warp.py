"""Images read at computed places (grid_sample): the bits of the reference on every instruction set, near torch, one region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from qcompiler.errors import InputError
from tests import native_float_oracle as reference
from tests.native_abi import Kernels
from tests.native_nets import Through, check_equal_bits, conv, converted, example, region_of, steps_apart
from tests.test_native_floats import Memory, floats, operand, result, tensor

PADDINGS = {"zeros": reference.ZEROS, "border": reference.BORDER, "reflection": reference.REFLECTION}
ENDS = [[-1, -1], [1, 1], [-1.0001, 0.9999], [3, -7], [0, 0], [1e9, -1e9], [-0.5, 0.25], [np.nan, 0.3]]


def places(height: int, width: int) -> Any:
    at = floats(2, height, width, 2, seed=width, scale=0.9)
    at.reshape(2, -1, 2)[:, : len(ENDS)] = np.array(ENDS, np.float32)[: height * width]
    return at


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_pixels_at_places(kernels: Kernels, padding: str, mode: str, aligned: bool) -> None:
    settings = {"padding": PADDINGS[padding], "nearest": int(mode == "nearest"), "aligned": int(aligned)}
    for channels, height, width in ((3, 5, 7), (1, 1, 4), (300, 2, 2)):
        at = Memory(places(4, 5)).array
        x, y = Memory(floats(2, height, width, channels)), Memory(np.zeros((2, 4, 5, channels), np.float32))
        kernels("warp", 3, x=operand(x.array[:, None]), places=operand(at[:, None]), y=result(y.array[:, None]), **settings)
        expected = reference.warp(x.array, at, PADDINGS[padding], mode == "nearest", aligned)
        np.testing.assert_array_equal(y.array, expected)
        assert y.untouched()
        near = F.grid_sample(
            torch.from_numpy(x.array).permute(0, 3, 1, 2), torch.from_numpy(np.nan_to_num(at, nan=-1)), mode, padding, aligned
        ).permute(0, 2, 3, 1)
        assert np.abs(y.array - near.numpy()).max() < 2e-5  # a place is rounded otherwise, by a few 1e-7 of the image


def test_codes_and_steps(kernels: Kernels) -> None:
    """Codes in and out, places whose numbers lie apart."""
    rng = np.random.default_rng(1)
    x, y = Memory(rng.integers(0, 256, (2, 4, 6, 9), dtype=np.uint8)).array, Memory(np.zeros((2, 3, 5, 9), np.uint8))
    at = np.moveaxis(Memory(np.moveaxis(places(3, 5), -1, 0)).array, 0, -1)
    kernels("warp", 2, x=operand(x[:, None], 0.5, 100), places=operand(at[:, None]), y=result(y.array[:, None], 1.6, 128))
    made = reference.warp((x.astype(np.float32) - 100) * np.float32(0.5), at, reference.ZEROS, False, False)
    np.testing.assert_array_equal(y.array, np.clip(np.rint(made * np.float32(1.6)) + 128, 0, 255))
    assert y.untouched()
    assert tensor(x).c == 9


def transformed(**settings: Any) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m[0](x)
        at = torch.tanh(m[1](y)).permute(0, 2, 3, 1) * 1.3
        return m[2](F.grid_sample(y, at, **settings))  # type: ignore[no-any-return]

    return forward


def deformable(m: Any, x: Tensor) -> Tensor:
    """Heads of a value at some points for each query, weighted: deformable attention."""
    y = m[0](x)
    queries = y.mean(-1).transpose(1, 2)
    offsets, shares = m[1](queries).unflatten(-1, (2, 3, 2)), m[2](queries).unflatten(-1, (2, 3)).softmax(-1)
    at = 2 * torch.sigmoid(offsets) - 1
    value = y.unflatten(1, (2, 4)).flatten(0, 1)
    seen = F.grid_sample(value, at.transpose(1, 2).flatten(0, 1), align_corners=False)
    made = (seen * shares.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1).unflatten(0, (-1, 2)).flatten(1, 2)
    return m[3](made.transpose(1, 2))  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[..., Any], Callable[[], list[nn.Module]]]] = {
    "zeros": (transformed(align_corners=False), lambda: [conv(3, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 3, padding=1)]),
    "border": (transformed(padding_mode="border", align_corners=True), lambda: [conv(3, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)]),
    "reflection": (transformed(padding_mode="reflection"), lambda: [conv(3, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)]),
    "nearest": (transformed(mode="nearest"), lambda: [conv(3, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)]),
    "deformable": (deformable, lambda: [conv(3, 8), nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(8, 5)]),
}


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("name", NETS)
def test_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, layers = NETS[name]
    torch.manual_seed(1)
    x = example((2, 3, 8, 9))
    module, graph = converted(Through(forward, *layers()), x)
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    for given in (x, x[:1], example((3, 3, 10, 7))):
        if name != "nearest":  # where a place lies between two pixels, the least difference decides
            assert max(steps_apart(module, graph, given).values()) <= 1
            assert compute_sqnr(graph(given), module(given)) > 30
        check_equal_bits(module, given, [module(given)], monkeypatch)


class AtPlaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        return F.grid_sample(self.first(x), at, align_corners=False)


def test_other_shapes_are_refused_as_torch_refuses_them() -> None:
    x, at = example((2, 3, 5, 6)), example((2, 4, 4, 2))
    module = qcompiler.quantize(AtPlaces().eval(), [(x, at)], backend="native", progress=False)
    assert module(x, at[:, :1]).shape == (2, 4, 1, 4)
    for wrong in (at[:1], torch.cat([at, at], -1)):
        with pytest.raises(InputError, match="places of shape"):
            module(x, wrong)


def test_what_has_no_form_says_so() -> None:
    x, at = example((2, 3, 5, 6)), example((2, 4, 4, 2))

    class Cubic(AtPlaces):
        def forward(self, x: Tensor, at: Tensor) -> Tensor:
            return F.grid_sample(self.first(x), at, mode="bicubic", align_corners=False)

    module = qcompiler.quantize(Cubic().eval(), [(x, at)], backend="native", progress=False)
    assert any("bilinear and nearest have one" in remark.text for remark in qcompiler.remarks(module))
