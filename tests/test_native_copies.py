"""Ops that move codes through the native back end: equal to torch's functions at every size, on every instruction set."""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.plan.places import OUTSIDE
from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.native.steps import Region, Step
from qcompiler.errors import InputError
from qcompiler.ops.reference import dequantize, quantize
from tests.native_abi import Guarded, Kernels, known
from tests.native_nets import Through, conv, converted, example, region_of, shaken, steps_apart
from tests.native_ops import OneOp, floats

IMAGE = (2, 5, 6, 7)
PICKED = torch.tensor([4, 0, 0, 2])
PLACES = torch.tensor([3, 0, 1, 2]).reshape(1, 4, 1, 1).expand(2, 4, 6, 7).contiguous()

CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "zeros, uneven": ("pad", IMAGE, {"pad": (1, 2, 0, 3)}),
    "a value": ("pad", IMAGE, {"pad": (2, 1), "value": 1.7}),
    "no number is smaller": ("pad", IMAGE, {"pad": (2, 1), "value": -np.inf}),
    "channels and batch": ("pad", IMAGE, {"pad": (0, 0, 0, 0, 2, 1, 1, 0)}),
    "crop": ("pad", IMAGE, {"pad": (-1, -2, 3, -2)}),
    "reflect": ("pad", IMAGE, {"pad": (2, 3, 1, 0), "mode": "reflect"}),
    "replicate": ("pad", IMAGE, {"pad": (2, 13, 1, 0), "mode": "replicate"}),
    "replicate and crop": ("pad", IMAGE, {"pad": (2, -3, -1, 4), "mode": "replicate"}),
    "circular": ("pad", IMAGE, {"pad": (7, 3, 1, 6), "mode": "circular"}),
    "a sequence": ("pad", (2, 3, 9), {"pad": (4, 1), "mode": "reflect"}),
    "without a batch": ("pad", (3, 9), {"pad": (4, 1), "mode": "replicate"}),
    "a volume": ("pad", (1, 3, 4, 5, 6), {"pad": (1, 2, 2, 1, 1, 3), "mode": "reflect"}),
    "one channel": ("pad", (1, 1, 5, 5), {"pad": (1, 1, 1, 1), "mode": "circular"}),
    "a row": ("pad", (9,), {"pad": (1, 2)}),
    "roll": ("roll", IMAGE, {"shifts": (2, -1), "dims": (2, -1)}),
    "roll of channels": ("roll", IMAGE, {"shifts": 12, "dims": 1}),
    "roll as one row": ("roll", IMAGE, {"shifts": 5}),
    "flip": ("flip", IMAGE, {"dims": (1, -1)}),
    "repeat": ("repeat", IMAGE, {"sizes": (1, 3, 1, 2)}),
    "repeat, a dimension more": ("repeat", (3, 4, 5), {"sizes": (2, 1, 2, 2)}),
    "repeat nothing": ("repeat", IMAGE, {"sizes": (1, 1, 0, 1)}),
    "interleave": ("repeat_interleave", IMAGE, {"repeats": 3, "dim": -1}),
    "interleave as one row": ("repeat_interleave", IMAGE, {"repeats": 2}),
    "interleave by counts": ("repeat_interleave", IMAGE, {"repeats": "$0", "dim": 1}),
    "index_select": ("index_select", IMAGE, {"dim": 1, "index": "$1"}),
    "index_select of pixels": ("index_select", IMAGE, {"dim": -2, "index": "$1"}),
    "gather": ("gather", IMAGE, {"dim": 1, "index": "$2"}),
    "tril": ("tril", IMAGE, {"diagonal": -1}),
    "triu": ("triu", (7, 5), {}),
    "a list": ("getitem", IMAGE, {"index": (slice(None), [4, 0, 0])}),
    "a list of rows": ("getitem", IMAGE, {"index": (0, slice(1, None), [1, 1, 0, 3])}),
    "two lists": ("getitem", IMAGE, {"index": (slice(None), [4, 0], [1, 2])}),
    "a tensor": ("getitem", IMAGE, {"index": (slice(None), "$1")}),
}  # fmt: skip


def one_op(name: str, **settings: Any) -> OneOp:
    op, shape, kwargs = CASES[name]
    return OneOp(op, shape, kwargs, tensors=(torch.tensor([0, 2, 1, 1, 3]), PICKED, PLACES), **settings)


@pytest.mark.parametrize("cap", ["scalar", ""])
@pytest.mark.parametrize("name", CASES)
def test_a_copy_is_torchs(name: str, cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_ISA", cap)
    case = one_op(name)
    region = case.region()
    grown = tuple(n + 1 if d in (0, len(case.shape) - 2) and len(case.shape) > 2 else n for d, n in enumerate(case.shape))
    for shape in (case.shape,) if "$2" in case.kwargs.values() else (case.shape, grown):
        x = floats(shape)
        assert case.steps_apart(region, x) == 0
        assert case.steps_apart(region, x.to(memory_format=torch.channels_last) if len(shape) == 4 else x) == 0


@pytest.mark.parametrize("made", [(0.05, 128), (0.09, 0), (0.02, 255)])
@pytest.mark.parametrize("name", ["zeros, uneven", "reflect", "index_select", "tril"])
def test_other_codes_than_those_of_its_input(name: str, made: tuple[float, int]) -> None:
    case = one_op(name, given=(0.05, 3), made=made)
    assert case.steps_apart(case.region(), floats(case.shape)) == 0


@pytest.mark.parametrize(("op", "kwargs"), [("relu", {}), ("clamp", {"min": -1.0}), ("clamp", {"min": 0.3, "max": 2.0}), ("elu", {}),
                                            ("leaky_relu", {"negative_slope": 0.2})])  # fmt: skip
def test_functions_that_stand_alone(op: str, kwargs: dict[str, Any]) -> None:
    for made in ((0.05, 100), (0.04, 0)):
        case = OneOp(op, (2, 5, 6, 7), kwargs, given=(0.05, 100), made=made)
        assert case.steps_apart(case.region(), floats(case.shape)) == 0


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (3, 5), (2, 5, 9), (1, 5, 2, 3, 4)])
@pytest.mark.parametrize("slopes", [1, 5])
def test_prelu(shape: tuple[int, ...], slopes: int) -> None:
    case = OneOp("prelu", shape, given=(0.05, 100), made=(0.04, 30), tensors=(torch.linspace(-0.3, 0.9, slopes),), more=("$0",))
    region = case.region()
    for given in (shape, (shape[0] + 1, *shape[1:])):
        assert case.steps_apart(region, floats(given)) == 0


@pytest.mark.parametrize(("name", "shape"), [("reflect", (2, 5, 1, 7)), ("circular", (2, 5, 5, 7)), ("crop", (1, 5, 1, 2)),
                                             ("index_select", (2, 4, 6, 7))])  # fmt: skip
def test_sizes_that_torch_refuses_are_refused(name: str, shape: tuple[int, ...]) -> None:
    case = one_op(name)
    with pytest.raises(InputError):
        case.region()(floats(shape))


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("gap", [0, 3])
def test_the_kernel(kernels: Kernels, size: int, gap: int) -> None:
    """Against numpy, with places outside on each axis, in random parts on several threads."""
    rng = np.random.default_rng(size + gap)
    x, shape = rng.integers(0, 256, (2, 3, 4, 5, 6 * size), dtype=np.uint8), (2, 2, 5, 6, 9)
    memory = known(np.ascontiguousarray(x))
    lists = [known(rng.integers(-1, n, m).astype(np.int64)) for n, m in zip((2, 3, 4, 5, 6), shape, strict=True)]
    lists[3][:] = [0, 1, 2, -1, -1, 4]
    places = [known(np.where(at < 0, OUTSIDE, at * step)) for at, step in zip(lists, (*x.strides[:4], size), strict=True)]
    y = Guarded(torch.zeros(2, 9 * size, 2, 5, 6, dtype=torch.uint8), (0, 1, 1), 9 * size + gap * size)
    y.tensor.c = 9
    at = (5 * C.c_void_p)(*(one.ctypes.data for one in places))
    kernels("pick", 3, x=memory.ctypes.data, y=y.tensor, at=at, fill=(4 * C.c_uint8)(7, 8, 9, 10), size=size)
    wide = x.reshape(2, 3, 4, 5, 6, size)
    expected = wide[np.ix_(*[np.maximum(at, 0) for at in lists])]
    outside = np.zeros(shape, bool)
    for axis, at in enumerate(lists):
        outside |= (at < 0).reshape([-1 if i == axis else 1 for i in range(5)])
    expected[outside] = np.array([7, 8, 9, 10], np.uint8)[:size]
    got = y.codes().permute(0, 2, 3, 4, 1).numpy().reshape(*shape, size)
    assert (got == expected).all()
    assert y.untouched()


@pytest.mark.parametrize("value", [0.0, 1.72, -np.inf])
def test_floats_that_are_handed_out_have_the_pads_value(value: float) -> None:
    """No code of x means 1.72."""
    steps = (
        Step("q", "quantize", ("%x", 0, 0, 255)),
        Step("d", "dequantize", ("%q",)),
        Step("y", "pad", ("%d",), {"pad": (1, 2), "value": value}),
    )
    region = NativeRegion(Region((("x", (1, 2, 3, 4)),), steps, ("y",)), [], [(0.05, 100)])
    x = floats((1, 2, 3, 4))
    expected = nn.functional.pad(dequantize(quantize(x, 0.05, 100, 0, 255, torch.uint8), 0.05, 100), (1, 2), value=value)
    assert torch.equal(region(x)[0], expected)


class Padded(nn.Module):
    """Convolutions of each padding mode, behind pads and before another."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 2))
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 8, 3, padding=(1, 2), padding_mode=mode)
        self.third = nn.Conv2d(8, 8, (3, 5), padding="same", groups=8)
        self.last = nn.Conv2d(8, 4, 3, padding=1, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.pad(self.third(self.second(self.first(self.pad(x)).relu()).relu())))
        return result


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes_of_convolutions(mode: str) -> None:
    torch.manual_seed(0)
    module, graph = converted(Padded(mode), x := example((1, 3, 13, 12)))
    region = region_of(module)
    copies = [layer.text() for layer in region.network.computing if layer.text().startswith("pad")]
    assert len(copies) == (mode != "zeros")  # zeros around a convolution's input are its halo
    for given in (x, example((2, 3, 16, 11))):
        assert max(steps_apart(module, graph, given).values()) <= 1
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]


@pytest.mark.parametrize("cut", [
    lambda x: x.unbind(1), lambda x: x.chunk(2, 1), lambda x: x.split([2, 1, 3], 1), lambda x: x.tensor_split(3, 1),
    lambda x: x.transpose(0, 1),
])  # fmt: skip
@pytest.mark.parametrize("before", [lambda m, x: x, lambda m, x: m[0](x), lambda m, x: torch.softmax(m[0](x), -1)])
def test_each_of_several_values_is_on_codes_of_its_own(cut: Any, before: Any) -> None:
    """Parts of floats, which the linear behind takes as codes, and parts of codes."""

    def forward(m: Any, x: Tensor) -> Any:
        parts = list(cut(before(m, x)))
        return torch.cat([m[1](part).relu().flatten() for part in parts]), parts[-1] + 1, parts[0]

    torch.manual_seed(0)
    x = example((2, 6, 8))
    model = Through(forward, nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    module = qcompiler.quantize(model, [x], progress=False, backend="native")
    again = qcompiler.quantize(model, [x], progress=False)
    for found, expected in zip(module(x), again(x), strict=True):
        assert float((found - expected).abs().max()) <= 0.05 * float(expected.abs().max())  # steps of 8 bits, on either side


def test_a_pad_with_another_reader_is_made() -> None:
    def both(m: Any, x: Tensor) -> Tensor:
        y = nn.functional.pad(m[0](x), (1, 1, 1, 1))
        return m[2](torch.cat([m[1](y), y[..., 1:-1, 1:-1]], 1))

    torch.manual_seed(0)
    module, graph = converted(Through(both, conv(3, 8), conv(8, 4), conv(12, 4)), x := example((1, 3, 9, 9)))
    assert region_of(module) and max(steps_apart(module, graph, x).values()) <= 1


def turned(y: Tensor) -> Tensor:
    """Where it lies is known at run time alone."""
    return y.flatten(2).transpose(1, 2).reshape(y.shape)


SUMS: dict[str, Any] = {
    "conv2d": (lambda m, y: m[0](y) + turned(y), nn.Conv2d(8, 8, 3, padding=1)),
    "the other side": (lambda m, y: turned(y) + m[0](y), nn.Conv2d(8, 8, 1)),
    "a function between": (lambda m, y: torch.sigmoid(m[0](y)) + turned(y), nn.Conv2d(8, 8, 1)),
    "depthwise": (lambda m, y: m[0](y) + turned(y), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    "less": (lambda m, y: m[0](y) - turned(y), nn.Conv2d(8, 8, 1)),
    "transposed": (lambda m, y: m[0](y) + y.transpose(2, 3), nn.Conv2d(8, 8, 1)),
    "linear": (lambda m, y: m[0](y) + turned(y), nn.Linear(6, 6)),
    "a pick": (lambda m, y: m[0](y) + y.flatten(2).roll(3, 2).reshape(y.shape), nn.Conv2d(8, 8, 1)),
}


@pytest.mark.parametrize("case", SUMS)
def test_a_sum_with_a_value_that_lies_otherwise(case: str) -> None:
    function, layer = SUMS[case]
    model = shaken(Through(lambda m, x: m[2](function(m, m[1](x))), layer, conv(3, 8, padding=1), conv(8, 4, 1)))
    module, graph = converted(model, example((2, 3, 6, 6)))
    for shape in ((2, 3, 6, 6), (3, 3, 6, 6), (1, 3, 6, 6)):
        steps = steps_apart(module, graph, example(shape)).values()
        assert max(steps) <= 1
