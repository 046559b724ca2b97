"""A batch some samples at a time: the same bits, less memory, and only where no sample depends on another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.backends.native.plan import samples
from tests.native_layers import one_at_a_time
from tests.native_nets import NETS, Through, conv, converted, example, region_of, shaken
from tests.test_native_dynamic import dynamic

MIXED: dict[str, Callable[[Any, Tensor], Any]] = {
    "the mean of all": lambda m, x: m[1]((y := m[0](x)) + y.mean(0, keepdim=True)),
    "the largest of all": lambda m, x: m[1](m[0](x)) * m[1](m[0](x)).amax(),
    "the first": lambda m, x: m[1]((y := m[0](x)) + y[:1]),
    "the next": lambda m, x: m[1](torch.roll(m[0](x), 1, 0)),
    "backwards": lambda m, x: m[1](m[0](x).flip(0)),
    "the half": lambda m, x: m[1](m[0](x)[2:]),
    "every second": lambda m, x: m[1](m[0](x)[::2]),
    "two after another": lambda m, x: m[1](torch.cat([m[0](x), m[0](x * 2)], 0)),
    "softmax over all": lambda m, x: torch.softmax(m[1](m[0](x)), 0),
    "two as one": lambda m, x: m[1]((y := m[0](x)).reshape(y.shape[0] // 2, 16, *y.shape[2:])[:, :8]),
    "samples as places": lambda m, x: m[1](m[0](x).flatten(1)[:, : 8 * 16].reshape(x.shape[0] * 2, 8, 2, 4)),
    "samples as channels": lambda m, x: m[1](m[0](x).transpose(0, 1).contiguous().transpose(0, 1).reshape(-1, 8, 4, 4)[1:]),
    "a number of them": lambda m, x: m[1](m[0](x)[:, :, : x.shape[0]]),
}


def parts_of(module: Any, x: Tensor) -> int:
    region = region_of(module)
    with one_at_a_time(region):
        return int(region.table([x]).struct.parts)


@pytest.mark.parametrize("name", NETS)
def test_one_at_a_time_gives_the_same_bits(name: str) -> None:
    model, shape = NETS[name]
    module, _ = converted(shaken(model()), example(shape))
    x = example((5, *shape[1:]), 7)
    expected, threads = module(x), torch.get_num_threads()
    assert parts_of(module, x) == 5
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        with one_at_a_time(region_of(module)):
            assert torch.equal(module(x), expected)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_samples_is_computed_as_a_whole(name: str) -> None:
    model = Through(MIXED[name], conv(3, 8), conv(8, 4, 1))
    module, _ = converted(shaken(model), x := example((4, 3, 6, 6)))
    for region in (r for r in [region_of(module)] if r.network.inputs):
        with one_at_a_time(region):
            assert torch.equal(module(x), module(x))
            assert region.table([torch.empty(x.shape)]).struct.parts == 0


def test_a_range_of_the_whole_batch_is_no_samples() -> None:
    module, _, x = dynamic("a linear of rows")
    assert parts_of(module, x) == 0


def test_a_few_at_a_time_with_some_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """65 in parts of eleven: the last part computes one of the part before it again; of seven, none may be computed twice."""
    module, _ = converted(shaken(NETS["residual"][0]()), example((1, 3, 10, 9)))
    region, x = region_of(module), example((65, 3, 10, 9))
    expected, whole = module(x), region.table([x]).struct.arena
    monkeypatch.setattr(samples, "NEAR", whole * 12 // 65)
    monkeypatch.setattr(region, "_calls", {})
    assert region.table([x]).struct.parts == 6 and region.table([x]).struct.arena < whole / 5
    assert torch.equal(module(x), expected)
    wide = torch.zeros(65, 3, 20, 9)[:, :, ::2].copy_(x)
    assert torch.equal(module(wide), expected)
    monkeypatch.setattr(samples, "NEAR", whole * 3 // 65 + 64)
    assert region.table([x[:7]]).struct.parts == 7 and torch.equal(module(x[:7]), expected[:7])
