"""Shapes for which kernels of torch are wrong or crash: the program answers them rightly, also where it was compiled for others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.backends.torch.kernels import fbgemm_faults, groups
from qcompiler.backends.torch.kernels.onednn_faults import fitting, misplaces_groups, overpads, sizes
from qcompiler.backends.torch.runtime import fit
from qcompiler.backends.torch.site import ENGINES
from qcompiler.debug import compute_sqnr

AVAILABLE = [e for e in ENGINES if e in torch.backends.quantized.supported_engines]
ENOUGH = 25.0  # dB: one convolution of 8-bit operands has 30 to 40; a wrong kernel had at most 15


def compiled_for(model: nn.Module, data: list[Tensor], engine: str) -> nn.Module:
    """The first tensor is the example; all are calibration data."""
    return qc.quantize(model, data, progress=False, engine=engine)


# (module, shape of the example, shape of a later call)
CONVS: tuple[tuple[nn.Module, tuple[int, ...], tuple[int, ...]], ...] = (
    (nn.Conv2d(32, 16, 3, stride=2, padding=1), (2, 32, 8, 2), (2, 32, 8, 9)),  # one column of results
    (nn.Conv2d(32, 16, 3, stride=2, padding=1), (2, 32, 8, 9), (1, 32, 8, 1)),
    (nn.Conv2d(20, 12, (3, 2), stride=(1, 3), padding=1), (2, 20, 8, 7), (2, 20, 8, 1)),
    (nn.Conv1d(16, 8, 5, stride=2), (2, 16, 12), (2, 16, 6)),
    (nn.Conv3d(3, 8, 3, padding=1), (2, 3, 4, 8, 8), (2, 3, 1, 8, 8)),  # depth 1
    (nn.Conv3d(3, 8, 3, padding=1), (2, 3, 1, 8, 8), (2, 3, 4, 8, 8)),
    (nn.ConvTranspose3d(7, 12, (5, 1, 2)), (2, 7, 3, 4, 4), (2, 7, 1, 2, 3)),
    (nn.Conv2d(5, 2, 1, stride=2, padding=(0, 1), dilation=2), (2, 5, 4, 1), (2, 5, 4, 5)),  # a window in the padding
    (nn.Conv2d(5, 4, 3, padding=4, dilation=3), (2, 5, 7, 7), (2, 5, 2, 2)),  # a window between two taps
    (nn.Conv1d(12, 6, 1, stride=3, padding=4, groups=2), (2, 12, 3), (1, 12, 1)),
    (nn.Conv2d(48, 48, 3, stride=2, padding=1, groups=2), (1, 48, 9, 33), (2, 48, 5, 5)),  # groups of several blocks
    (nn.Conv2d(6, 40, 3, padding=1, groups=2), (2, 6, 7, 9), (1, 6, 3, 3)),
    (nn.Conv2d(60, 200, (1, 2), dilation=3, groups=5), (2, 60, 4, 4), (1, 60, 4, 9)),
    (nn.Conv3d(104, 104, 5, padding=2, groups=104), (1, 104, 3, 4, 4), (2, 104, 1, 1, 9)),  # fbgemm writes planes that are none
    (nn.Conv3d(8, 8, 7, stride=2, padding=3, groups=8), (2, 8, 2, 4, 3), (1, 8, 4, 2, 2)),
)


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize("case", CONVS, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_convolutions_are_right_at_any_size(case: tuple[nn.Module, tuple[int, ...], tuple[int, ...]], engine: str) -> None:
    module, first, later = copy.deepcopy(case[0]), *case[1:]
    torch.manual_seed(0)
    module.reset_parameters()
    examples = [torch.rand(first), torch.rand(later)]
    compiled = compiled_for(nn.Sequential(module, nn.ReLU()).eval(), examples, engine)
    for x in (*examples, examples[0]):
        assert compute_sqnr(module(x).relu(), compiled(x)) > ENOUGH


@pytest.mark.skipif("x86" not in AVAILABLE, reason="x86 packs convolutions with oneDNN")
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripts_and_files_have_the_same_answers(tmp_path: Any) -> None:
    module, first, later = CONVS[1]
    examples = [torch.rand(first), torch.rand(later)]
    compiled = compiled_for(nn.Sequential(module, nn.ReLU()).eval(), examples, "x86")
    qc.save(compiled, tmp_path / "m.qc")
    others = [qc.load(tmp_path / "m.qc"), torch.jit.script(compiled), torch.jit.trace(compiled, examples[0])]
    for x in examples:
        assert all(torch.equal(compiled(x), other(x)) for other in others)


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize(("module", "later"), [
    (nn.Conv2d(4, 4, 3, stride=2), (2, 4, 9, 2)),
    (nn.Conv2d(4, 4, (3, 1), stride=3), (2, 4, 1, 9)),
    (nn.Conv2d(4, 4, 3, padding=(1, 0)), (2, 4, 9, 2)),
    (nn.Conv2d(4, 4, 3, dilation=2, padding=1), (2, 4, 2, 9)),
    (nn.MaxPool2d(3, stride=2), (2, 4, 9, 2)),
    (nn.AvgPool2d(3, stride=2), (2, 4, 9, 2)),
    (nn.AvgPool2d(4, stride=2, ceil_mode=True), (2, 4, 9, 2)),
], ids=str)  # fmt: skip
def test_a_window_larger_than_the_input_is_refused(module: nn.Module, later: tuple[int, ...], engine: str) -> None:
    """Float refuses it; kernels gave results of width 0 or 1, and qnnpack's ended the process."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), module).eval()
    with pytest.raises(RuntimeError):
        model(torch.rand(later))
    compiled = compiled_for(model, [torch.rand(2, 4, 9, 9)], engine)
    with pytest.raises(qc.QCompilerError):
        compiled(torch.rand(later))


class Views(nn.Module):
    """An int8 (N, C, *sizes) whose strides fit two layouts at once, as a decoder's start has it."""

    def __init__(self, then: Any, dims: int) -> None:
        super().__init__()
        self.linear, self.then, self.dims = nn.Linear(8, 12), then, dims
        self.after = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.then(self.linear(x).relu().reshape(x.shape[0], 12, *[1] * self.dims)))


THEN: dict[str, Any] = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda x: F.interpolate(x, size=[4] * (x.dim() - 2), mode="nearest-exact"),
    "adaptive_avg": lambda x: (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[x.dim() - 3](x, 3),
    "group_norm": lambda x: F.group_norm(x, 2),
}


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("then", THEN)
def test_views_of_one_element_keep_their_values(then: str, dims: int, engine: str) -> None:
    torch.manual_seed(0)
    model, x = Views(THEN[then], dims).eval(), torch.randn(4, 8)
    assert compute_sqnr(model(x), compiled_for(model, [x], engine)(x)) > 25  # dB: two layers and a pool of 8 bits


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (4, 1, 2, 2), (4, 1, 4, 4), (7, 1, 4, 4)])
def test_settled_strides_are_those_of_the_memory(shape: tuple[int, ...]) -> None:
    codes = torch.arange(4, dtype=torch.uint8)
    x = torch._make_per_tensor_quantized_tensor(codes, 1.0, 0).as_strided((1, 4, 1, 1), shape)
    found = fit.settled(x)
    assert found.stride() == (4, 1, 4, 4) and found.data_ptr() == x.data_ptr()
    assert torch.equal(found.int_repr(), x.int_repr())
    image = torch.quantize_per_tensor(torch.rand(5, 6, 3), 0.01, 0, torch.quint8).permute(2, 0, 1).unsqueeze(0)  # (1, C, H, W) of an image
    assert fit.settled(image).stride() == (90, 1, 18, 3)
    plain = torch.quantize_per_tensor(torch.rand(2, 3, 4, 5), 0.01, 0, torch.quint8)
    assert fit.settled(plain) is plain


@pytest.mark.parametrize(("images", "size"), [(8, 2), (3, 1), (40, 3)])
def test_instance_norm_of_small_images_in_large_batches(images: int, size: int) -> None:
    """(8, 2): a group of 4 elements under 8 images; float64 is the oracle, one step of 0.03 allowed."""
    torch.manual_seed(0)
    x = torch.quantize_per_tensor(torch.rand(images, 6, size, size + 1), 0.004, 0, torch.quint8)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(6) + 0.5, torch.randn(6)
    truth = torch.group_norm(x.dequantize().double(), 6, weight.double(), bias.double()).clamp(-3.84, 3.81)
    assert float((fit.group_norm(x, 6, weight, bias, 1e-5, 0.03, 128).dequantize() - truth).abs().max()) <= 0.03


@pytest.mark.parametrize("factor", [1.2, (1.0, 1.5), 2.1, 2])
def test_nearest_by_a_factor_takes_the_elements_that_float_takes(factor: Any) -> None:
    torch.manual_seed(0)
    x, model = torch.rand(2, 4, 5, 4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Upsample(scale_factor=factor), nn.Conv2d(4, 4, 1)).eval()
    assert compute_sqnr(model(x), compiled_for(model, [x], AVAILABLE[0])(x)) > 25  # dB: a moved column leaves 10


@pytest.mark.parametrize(("geometry", "smallest", "least"), [  # shape, stride, padding, dilation
    (((8, 64, 3, 3), (1, 1), (1, 1), (1, 1)), [1, 1], [1, 1]),  # the usual ones need no guard
    (((8, 64, 1, 1), (2, 2), (0, 0), (1, 1)), [1, 1], [1, 1]),
    (((8, 64, 3, 3), (2, 2), (1, 1), (1, 1)), [1, 1], [1, 3]),  # two columns of results
    (((8, 64, 3, 1), (2, 2), (1, 0), (1, 1)), [1, 1], [1, 1]),
    (((8, 64, 3, 3), (1, 1), (2, 2), (2, 2)), [1, 1], [2, 2]),  # a dilation's gap
    (((8, 3, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)), [1, 1, 1], [2, 1, 1]),
    (((8, 32, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)), [1, 1, 1], [1, 1, 1]),  # channels enough
])  # fmt: skip
def test_from_which_sizes_on_onednn_is_right(geometry: Any, smallest: list[int], least: list[int]) -> None:
    found = sizes(*geometry)
    assert (found.smallest, found.least) == (smallest, least)
    assert found.grown == (found.least != found.smallest)


@pytest.mark.parametrize(("kernel", "stride", "least"), [(3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 2, 3), (7, 1, 3), (7, 2, 5)])
def test_from_which_sizes_on_fbgemms_depthwise_kernel_is_right(kernel: int, stride: int, least: int) -> None:
    """Found under glibc's malloc checks with sizes of 1 to 5."""
    padding, ones = [kernel // 2] * 3, [1, 1, 1]
    found = fbgemm_faults.grown(fitting([kernel] * 3, padding, ones), [stride] * 3, padding)
    assert found.least == [least, least, 1] and found.smallest == ones
    flat = fbgemm_faults.grown(fitting([kernel] * 2, padding[:2], [1, 1]), [stride] * 2, padding[:2])
    assert flat.least == [1, 1]


def test_which_windows_and_groups_onednn_gets_wrong() -> None:
    assert overpads((1, 3), (1, 1), (2, 1)) and not overpads((3, 3), (2, 2), (1, 1))
    assert misplaces_groups((48, 3, 3, 3), 2) and misplaces_groups((48, 3, 1, 2), 2)
    assert not misplaces_groups((32, 3, 3, 3), 2)  # one block of results
    assert not misplaces_groups((48, 32, 3, 3), 2) and not misplaces_groups((48, 3, 1, 1), 2)
    size = groups.merge((96, 24, 3, 3), 4, lambda n: False, False, misplaces_groups)
    assert size == 2  # 48 channels a group are enough
