"""What is answered as one new tensor lies in memory as the kernel's result does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.fake_tensors import ShapesAlone, is_plain

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "silu": F.silu, "gelu": F.gelu, "elu": F.elu, "selu": F.selu, "mish": F.mish,
    "leaky_relu": F.leaky_relu, "softplus": F.softplus, "relu6": F.relu6, "clamp": lambda x: x.clamp(0, 1),
    "clamp_min": lambda x: x.clamp_min(0),
}  # fmt: skip
SHAPES = (
    (2, 3),
    (2, 3, 4),
    (2, 3, 4, 5),
    (1, 3, 4, 5),
    (2, 1, 4, 5),
    (2, 3, 1, 1),
    (2, 3, 1, 5),
    (2, 3, 2, 4, 5),
    (1, 3, 1, 4, 5),
    (2, 3, 0, 4),
)


def laid_out() -> Iterator[Tensor]:
    """Tensors of these shapes in all orders of their axes, and pieces and repetitions of them."""
    for shape in SHAPES:
        for order in list(permutations(range(len(shape))))[:: 7 if len(shape) == 5 else 1]:
            whole = torch.zeros([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(shape))])
            yield from (whole, whole[:1], whole[..., ::2], whole[:1].expand(shape))


def test_batch_norm() -> None:
    for x in laid_out():
        ones = torch.ones(x.shape[1])
        real = F.batch_norm(x, ones, ones, ones, ones)
        mode = ShapesAlone()
        with mode, torch.no_grad():
            made = F.batch_norm(mode.from_tensor(x, static_shapes=True), *(mode.from_tensor(ones) for _ in range(4)))
        assert made.shape == real.shape and made.dtype == real.dtype and (made.stride() == real.stride() or not x.numel())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    call, mode = ACTIVATIONS[name], ShapesAlone()
    for x in laid_out():
        with mode, torch.no_grad():
            made = call(mode.from_tensor(x, static_shapes=True))
        assert made.shape == x.shape and made.dtype == x.dtype
        assert made.stride() == call(x).stride() or not is_plain(x), (x.shape, x.stride())  # torch's own answers differ for others
    assert sum(map(is_plain, laid_out())) > 60


def test_what_is_no_plain_case_is_torchs() -> None:
    """Integers that become floats, training, other dtypes of the statistics."""
    mode = ShapesAlone()
    with mode, torch.no_grad():
        x = torch.ones(2, 3, 4)
        assert torch.clamp(torch.ones(2, 3, dtype=torch.int32), 0.5).dtype == torch.float32
        half, statistics = x.bfloat16(), torch.ones(3)
        assert F.batch_norm(half, statistics, statistics, statistics, statistics).dtype == torch.bfloat16
        assert F.batch_norm(x, statistics, statistics, None, None, training=True).shape == x.shape
