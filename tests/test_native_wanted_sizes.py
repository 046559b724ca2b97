"""Adaptive pools and folds: the size of their result is given, or computed from others. They stay in the native region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from tests.native_nets import Through, check_equal_bits, conv, converted, example, region_of

IMAGE = (2, 3, 10, 12)


def folded(**window: Any) -> Callable[[Tensor], Tensor]:
    """Windows, each weighed by what it holds, laid back to where they were."""

    def forward(y: Tensor) -> Tensor:
        seen = F.unfold(y, **window)
        return F.fold(seen * torch.sigmoid(seen.mean(1, keepdim=True)), y.shape[2:], **window)

    return forward


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "windows that overlap": folded(kernel_size=3, padding=1),
    "windows in steps": folded(kernel_size=3, padding=1, stride=2),
    "windows side by side": folded(kernel_size=2, stride=2),
    "windows with gaps": folded(kernel_size=(1, 3), stride=3),
    "uneven windows": folded(kernel_size=(3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)),
    "windows of one": folded(kernel_size=1),
    "a fold of codes": lambda y: F.fold(torch.relu(y).flatten(2)[:, :, :24], (5, 7), 2),
    "a fold, then floats": lambda y: F.layer_norm(folded(kernel_size=2)(y), y.shape[3:]),
    "mean, at least 7": lambda y: F.adaptive_avg_pool2d(y, (max(7, y.shape[2]), max(7, y.shape[3]))),
    "largest, half as high": lambda y: F.adaptive_max_pool2d(y, (y.shape[2] // 2, None)),
    "mean, one number": lambda y: F.adaptive_avg_pool2d(y, y.shape[2] // 2),
    "mean of floats": lambda y: F.adaptive_avg_pool2d(F.layer_norm(y, y.shape[3:]), [y.size(2) // 2, 3]),
}


def between(made: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(1)
    return Through(lambda m, x: m[1](made(m[0](x))), conv(3, 8), Last())


class Last(nn.Module):
    """A convolution of as many channels as come."""

    def __init__(self) -> None:
        super().__init__()
        self.eight, self.two = nn.Conv2d(8, 4, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.eight(x) if x.shape[1] == 8 else self.two(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MADE)
def test_what_is_asked_for_stays_in_the_region(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, graph = converted(between(MADE[name]), x := example(IMAGE))
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    for given in (x, example((3, 3, 12, 9), 7), example((1, 3, 30, 14), 8)):
        with torch.no_grad():
            assert compute_sqnr(graph(given), module(given)) > 35
    check_equal_bits(module, given, [module(given)], monkeypatch)


def test_a_fold_of_a_module() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.Softmax(1), nn.Fold((4, 5), 2), nn.Conv2d(3, 4, 1))
    module, graph = converted(model.eval(), x := example((2, 12, 6)))
    region_of(module)
    assert compute_sqnr(graph(x), module(x)) > 35


def test_a_pool_of_a_program_with_free_sizes() -> None:
    module, _ = converted(between(MADE["largest, half as high"]), example(IMAGE))
    height = torch.export.Dim("height", min=8, max=40)
    program = torch.export.export(module, (example(IMAGE),), dynamic_shapes=({2: height},)).module()
    for given in (example(IMAGE), example((2, 3, 17, 12))):
        assert torch.equal(program(given), module(given))
