"""A batch some samples at a time: the same bits, less memory, and only where no sample depends on another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from qcompiler.backends.native.plan import samples
from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.native.steps import Region, Step
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
    "samples that look at each other": lambda m, x: m[1](m[0](x) + attend(m[0](x).mean((2, 3)))[..., None, None]),
    "products of samples": lambda m, x: m[1](m[0](x) * torch.matmul(y := m[0](x).mean((2, 3)), y.t()).mean()),
    "samples as matrices of others": lambda m, x: m[1](torch.matmul(m[0](x), m[0](x).mean((1, 2))[:, :1].expand(-1, 4))),
    "normed over all": lambda m, x: m[1](F.layer_norm(m[0](x).transpose(0, 3), (x.shape[0],)).transpose(0, 3)),
    "sums of those before": lambda m, x: m[1](m[0](x).cumsum(0)),
    "the order of all": lambda m, x: m[1](m[0](x).sort(0).values),
    "one more": lambda m, x: m[1](F.pad(m[0](x), (0, 0, 0, 0, 0, 0, 1, 0))),
    "their numbers": lambda m, x: m[1](m[0](x) + torch.arange(x.shape[0])[:, None, None, None]),
    "how many": lambda m, x: m[1](m[0](x) + torch.ones(1) * x.shape[0]),
    "a row by their number": lambda m, x: m[1](m[0](x) + square()[x.shape[0] - 1].sum()),
}


def square() -> Tensor:
    return torch.linspace(-1, 1, 16).reshape(4, 4)


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def with_token(m: Any, x: Tensor) -> Tensor:
    """A token in front of each sample, positions from a table, a mask of sizes, attention, and norms."""
    y = m[0](x).flatten(2).transpose(1, 2)
    y = torch.cat([torch.linspace(-1, 1, 8)[None, None].expand(x.shape[0], -1, -1), y], 1)
    y = F.layer_norm(y + F.embedding(torch.arange(y.shape[1]), torch.linspace(-1, 1, 160).reshape(20, 8)), (8,))
    return m[1]((y + F.scaled_dot_product_attention(y, y, y, torch.ones(y.shape[1], y.shape[1]).tril())).transpose(1, 2)[..., None])


APART: dict[str, Callable[[Any, Tensor], Any]] = {
    "attention": lambda m, x: m[1](attend(m[0](x))),
    "attention of one to all": lambda m, x: m[1](F.scaled_dot_product_attention(m[0](x), k := square(), k)),
    "tokens": with_token,
    "products": lambda m, x: m[1](torch.matmul(m[0](x), m[0](x).transpose(2, 3))),
    "rows times one matrix": lambda m, x: torch.matmul(torch.tanh(m[0](x)).mean((2, 3)), square().repeat(2, 1)),
    "norms": lambda m, x: m[1](F.layer_norm(F.group_norm(m[0](x), 2), (4,))),
    "softmax": lambda m, x: m[1](torch.softmax(m[0](x), 1)),
    "means": lambda m, x: m[1](m[0](x) + m[0](x).mean(1, keepdim=True) + m[0](x).amax((2, 3), keepdim=True)),
    "orders": lambda m, x: m[1](m[0](x).sort(-1, descending=True).values + m[0](x).topk(8, 1).values),
    "places": lambda m, x: (m[1](m[0](x)), m[0](x).argmax(1), m[0](x).max(2)[1]),
    "rolled": lambda m, x: m[1](torch.roll(F.pad(m[0](x), (1, 1, 0, 2), mode="reflect"), (1, 2), (2, 3)).flip(1)),
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


@pytest.mark.parametrize("name", APART)
def test_what_keeps_samples_apart_is_computed_by_them(name: str) -> None:
    model = Through(APART[name], conv(3, 8), conv(8, 4, 1))
    module, _ = converted(shaken(model), x := example((4, 3, 6, 6)))
    expected = tree_leaves(module(x))
    assert parts_of(module, x) == 4
    with one_at_a_time(region_of(module)):
        assert all(map(torch.equal, tree_leaves(module(x)), expected))


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


@pytest.mark.parametrize("count", [2, 5])
def test_a_result_without_samples_is_written_once(count: int) -> None:
    """Written for each sample, behind one another, it went beyond the caller's tensor."""
    steps = (
        Step("q", "quantize", ("%x", 0, 0, 255)),
        Step("d", "dequantize", ("%q",)),
        Step("y", "relu", ("%d",)),
        Step("y_q", "quantize", ("%y", 0, 0, 255)),
        Step("y_d", "dequantize", ("%y_q",)),
        Step("table", "add", ("$0", 1.0)),
    )
    weight = torch.linspace(-1, 1, 64).reshape(8, 8)
    region = NativeRegion(Region((("x", (5, 3)),), steps, ("y_d", "table")), [weight], [(0.05, 128)])
    x = example((count, 3))
    expected, table = region(x)
    assert torch.equal(table, region(x)[1]) and torch.equal(table, weight + 1.0)
    with one_at_a_time(region):
        assert region.table([x]).struct.parts == 0
        assert all(map(torch.equal, region(x), (expected, table)))
