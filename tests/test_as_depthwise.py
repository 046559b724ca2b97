"""Depthwise convolutions that fbgemm has no kernel of its own for, in the form that it has, on CPUs without VNNI."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.backends.torch.kernels.as_depthwise import AsDepthwise, as_depthwise
from qcompiler.debug import compute_sqnr
from qcompiler.errors import InputError
from tests.flow import Flow, flow

pytestmark = [
    pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="fbgemm's depthwise kernel"),
    pytest.mark.filterwarnings("ignore:this module was compiled for CPUs"),
]
DEPTHWISE, BESIDE = "larger_window", "merge_groups"
FORMS = [
    nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16),
    nn.Conv2d(16, 16, 5, padding=(4, 6), dilation=(2, 3), groups=16),
    nn.Conv2d(18, 18, 3, padding=1, groups=18),  # channels are filled up
    nn.Conv2d(18, 36, 3, stride=2, padding=1, groups=18, bias=False),
    nn.Conv2d(16, 16, 3, groups=16),  # no padding
    nn.Conv2d(16, 16, 3, padding=3, groups=16),  # more than the centred one
    nn.Conv2d(16, 16, 3, stride=3, padding=1, groups=16),
    nn.Conv2d(16, 16, 3, stride=(2, 1), padding=2, dilation=(1, 2), groups=16),
    nn.Conv2d(16, 16, 2, padding=1, groups=16),  # an even window
    nn.Conv2d(16, 32, (2, 3), stride=2, groups=16),
    nn.Conv2d(18, 18, 3, padding=2, dilation=2, padding_mode="reflect", groups=18),
    nn.Conv1d(16, 16, 3, padding=1, groups=16),
    nn.Conv1d(18, 36, 5, stride=2, padding="valid", groups=18, bias=False),
    nn.Conv1d(16, 16, 7, padding=6, dilation=2, groups=16),
    nn.Conv1d(16, 16, 2, stride=3, groups=16),
    nn.Conv1d(24, 24, 5, padding="same", dilation=3, groups=24),
]


def compiled(convolution: nn.Conv1d | nn.Conv2d, x: Tensor, engine: str = "fbgemm", isa: str = "avx2") -> Flow:
    return flow(nn.Sequential(convolution, nn.ReLU()).eval(), (x,), engine=engine, isa=isa)


def image(channels: int, *sizes: int) -> Tensor:
    return torch.rand(2, channels, *sizes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("convolution", FORMS, ids=repr)
def test_it_runs_as_fbgemms_depthwise_kernel_at_every_size(convolution: nn.Conv1d | nn.Conv2d) -> None:
    cut = slice(1 if isinstance(convolution, nn.Conv1d) else 0, None)
    result = compiled(convolution, image(convolution.in_channels, *(9, 14)[cut]))
    assert DEPTHWISE in str(result.module.program) and BESIDE not in str(result.module.program)
    for sizes in ((9, 14), (7, 13), (5, 7)):
        x = image(convolution.in_channels, *sizes[cut])
        with torch.no_grad():
            expected, y = result.reference(x), result.module(x)
        assert y.shape == expected.shape and compute_sqnr(expected, y) > 45


def test_an_image_without_a_batch_scripts_and_files() -> None:
    x = image(16, 9, 9)[0]
    result = compiled(FORMS[0], x)
    with torch.no_grad():
        assert compute_sqnr(result.reference(x), result.module(x)) > 45
        assert torch.equal(torch.jit.script(result.module)(x), result.module(x))


def test_of_several_images_each_is_what_it_is_alone() -> None:
    module, x = compiled(FORMS[0], image(16, 9, 9)).module, image(16, 9, 9)
    with torch.no_grad():
        assert torch.equal(module(x), torch.cat([module(one[None]) for one in x]))


def test_a_window_that_does_not_fit_in_is_an_error() -> None:
    module = compiled(nn.Conv2d(16, 16, 3, dilation=2, groups=16), image(16, 9, 9)).module
    with torch.no_grad(), pytest.raises(InputError, match="do not fit"):
        module(image(16, 4, 9))


@pytest.mark.parametrize(("convolution", "engine", "isa"), [
    (FORMS[0], "fbgemm", "avx512_vnni"),  # 16-bit sums would need a proof
    (FORMS[0], "onednn", "avx2"),  # it has a kernel
    (FORMS[0], "qnnpack", "avx2"),
    (nn.Conv2d(16, 16, 3, padding=1, groups=16), "fbgemm", "avx2"),  # as it stands
    (nn.Conv2d(16, 16, 9, groups=16), "fbgemm", "avx2"),  # no window is as large
    (nn.Conv2d(16, 16, (1, 5), groups=16), "fbgemm", "avx2"),  # 5 times the taps
    (nn.Conv1d(16, 16, 9, groups=16), "fbgemm", "avx2"),
    (nn.Conv1d(16, 16, 3, groups=16), "x86", "avx512_vnni"),
    (nn.Conv2d(8, 8, 3, groups=8), "fbgemm", "avx2"),  # one small merged group
    (nn.Conv2d(32, 32, 3, groups=16), "fbgemm", "avx2"),
])  # fmt: skip
def test_near_misses(convolution: nn.Conv1d | nn.Conv2d, engine: str, isa: str) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"no {engine}")
    sizes = (12, 12)[: len(convolution.kernel_size)]
    assert DEPTHWISE not in str(compiled(convolution, image(convolution.in_channels, *sizes), engine, isa).module.program)


def test_sums_behind_steps_run_along_their_memory() -> None:
    """A sum in the order of the shape takes forty times as long."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(16, 16, 3, padding=1, groups=16), nn.Conv1d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).clamp(-0.2, 0.2) + self.a(x))  # type: ignore[no-any-return]

    result = flow(Block().eval(), (image(16, 40),), engine="fbgemm", isa="avx2")
    with torch.no_grad():
        assert compute_sqnr(result.reference(image(16, 40)), result.module(image(16, 40))) > 45
    assert "quantized_add(transpose_int" in result.module.code


def test_where_onednn_may_pack_it_the_stride_is_no_kernels() -> None:
    """oneDNN is wrong for one column of results behind a stride."""
    settings = {"groups": 18, "stride": 2, "padding": 1}
    one, other = (as_depthwise((18, 1, 3, 3), settings, strides=strides) for strides in (True, False))
    assert isinstance(one, AsDepthwise) and isinstance(other, AsDepthwise)
    assert (one.stride, one.kept, other.stride, other.kept) == ([2, 2], [1, 1], [1, 1], [2, 2])
    assert one.channels == 24 and not one.selects and other.selects
