"""Which values that meet in a cat get common qparams, and that it costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.debug import Gate, compute_sqnr
from tests.cpu import needs_vnni


class Net(nn.Module):
    """1x1 convolutions whose results are `sizes` times as large as each other, and what joins them."""

    def __init__(self, sizes: tuple[float, ...], join: Callable[..., Tensor], handed_out: bool = False) -> None:
        super().__init__()
        self.handed_out = handed_out
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in sizes)
        for conv, size in zip(self.convs, sizes, strict=True):
            conv.weight.data *= size  # type: ignore[union-attr, operator]
        self.join, self.last = join, nn.LazyLinear(4)  # an int8 reader: a cat that is a result is computed from floats
        self(torch.zeros(1, 4, 6, 6))

    def forward(self, x: Tensor) -> Any:
        joined = self.join(*(conv(x) for conv in self.convs))
        y = self.last(joined.flatten(1))
        return (joined, y) if self.handed_out else y


def apart_and_together(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`b` is in two cats: with `a`, which is small, and with `c`, which is huge."""
    return torch.cat([torch.cat([a, b], 1).relu().mean((2, 3)), torch.cat([b, c], 1).relu().mean((2, 3))], 1)


def compiled(net: nn.Module, **options: object) -> tuple[CompiledModule, nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 4, 6, 6)
    return qcompiler.quantize(net.eval(), x, **options), net, x


def cats(small: CompiledModule) -> list[str]:
    assert small.lowered is not None
    found = [n.target for n in small.lowered.graph.nodes if "cat" in str(n.target)]
    return ["float" if target is torch.cat else str(target).split(".")[0] for target in found]


@pytest.mark.parametrize(
    ("sizes", "join", "expected"),
    [
        ((1.0, 10.0), lambda a, b: torch.cat([a, b], 1), ["aten"]),  # rounded once to the large one's steps, not twice
        ((1.0, 10.0, 3.0), lambda a, b, c: torch.cat([torch.cat([a, b], 1), c], 1), ["aten", "aten"]),
        ((1.0, 10.0), lambda a, b: torch.cat([a, b], 1) + a.sum(1, keepdim=True), ["quantized"]),  # `a` is needed fine elsewhere
        ((1.0, 1.0), lambda a, b: torch.cat([a.sigmoid(), b], 1), ["quantized"]),  # a sigmoid's kernel has its own scale
        ((1.0, 1.0), lambda a, b: torch.cat([a, a], 1) + b.sum(1, keepdim=True), ["aten"]),
        ((0.1, 1.0, 50.0), apart_and_together, ["aten", "float", "quantized"]),  # the huge one would drown the small one's cat, and `b`
    ],
    ids=["one cat", "a cat of a cat", "used elsewhere", "fixed", "twice the same", "in two cats"],
)
def test_a_cat_is_a_copy_where_that_adds_no_noise(sizes: tuple[float, ...], join: Callable[..., Tensor], expected: list[str]) -> None:
    torch.manual_seed(1)
    small, _, _ = compiled(Net(sizes, join))
    assert cats(small) == expected
    remarks = [r for r in qcompiler.remarks(small) if r.code == "not-joined"]
    assert len(remarks) == expected.count("quantized")


@needs_vnni  # there the inputs, which are handed out as well, keep 8 bits where the cat has 7
def test_joining_does_not_lose_accuracy() -> None:
    torch.manual_seed(1)
    net = Net((1.0, 4.0, 10.0), lambda a, b, c: torch.cat([a, b, c], 1), handed_out=True)
    joined, _, x = compiled(net)
    gate = Gate()
    compiled(net, debug=gate)
    apart, _, _ = compiled(net, debug=Gate(next(i for i, text in enumerate(gate.seen) if "join" in text)))
    assert (cats(joined), cats(apart)) == (["aten"], ["quantized"])
    assert compute_sqnr(net(x)[0], joined(x)[0]) >= compute_sqnr(net(x)[0], apart(x)[0]) - 0.05
