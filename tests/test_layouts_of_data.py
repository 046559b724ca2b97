"""Questions for the layout of what nobody can compute before a call: no call gets a wrong answer without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import InputError, TraceError
from qcompiler.ops.reference import lay_out
from qcompiler.trace import TraceOptions, trace
from qcompiler.trace.guards import guard_layout

LAST = torch.channels_last


class Either(nn.Module):
    """A float module: data decides how its result lies in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(memory_format=LAST) if x.sum() > 0 else x.contiguous()


def statement(x: Tensor) -> Tensor:
    while x.sum() > 0:
        x = (x - 1).to(memory_format=LAST)
    return x


def chosen(x: Tensor) -> Tensor:
    return x.contiguous() if x.sum() > 0 else x + 0


def two_choices(x: Tensor) -> Tensor:
    """Both choices together give the example's layout."""
    turned = x.mT + 0 if x[0].sum() > 0 else x + 0
    return turned.mT if x[-1].sum() > 0 else turned


def early(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x.mT + 1
    return x * 1


def cut(x: Tensor) -> Tensor:
    number = int((x > 0).sum() > 100) * 3 + 1
    return x[:, :number]


SOURCES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "module": lambda leaf, x: leaf(x), "of a module": lambda leaf, x: leaf(x)[:, :, :6] + 1, "statement": lambda leaf, x: statement(x),
    "mask": lambda leaf, x: x[x.sum((1, 2, 3)) > -1e9], "choice": lambda leaf, x: chosen(x), "two choices": lambda leaf, x: two_choices(x),
    "early return": lambda leaf, x: early(x), "number": lambda leaf, x: cut(x),
    "where": lambda leaf, x: torch.where(x.sum() > 0, x.mT, x),
}  # fmt: skip
COUNTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda y: y * 2 if y.is_contiguous() else y * -1, "stride": lambda y: y * (2 if y.stride(1) == 1 else 3),
    "order": lambda y: y + 1 if y.dim_order() == (0, 1, 2, 3) else y,
}  # fmt: skip
HARMLESS: dict[str, Callable[[Tensor], Tensor]] = {
    "made contiguous": lambda y: y * 2 if y.is_contiguous() else y.contiguous() * 2,
    "made channels_last": lambda y: (y if y.is_contiguous(memory_format=LAST) else y.to(memory_format=LAST)) + 1,
}  # fmt: skip


FREE = ("module", "of a module", "statement", "mask", "choice")


class Net(nn.Module):
    def __init__(self, source: str, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.leaf, self.source, self.use = Either(), SOURCES[source], use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.source(self.leaf, x))


def traced(model: nn.Module, sign: int) -> nn.Module:
    torch.manual_seed(0)
    options = TraceOptions(lambda module, path: isinstance(module, Either))
    return trace(model.eval(), (torch.rand(2, 4, 6, 6) * sign,), options=options).graph_module


def refused(model: nn.Module, graph: nn.Module) -> int:
    """How many calls are; all others give what the model gives."""
    found = 0
    for size, first, last in ((size, first, last) for size in (2, 3) for first in (1, -2) for last in (1, -2)):
        x = torch.rand(size, 4, 6, 6) * torch.tensor([first] * (size - 1) + [last]).reshape(-1, 1, 1, 1)
        for given in (x, x.to(memory_format=LAST)):
            try:
                assert torch.allclose(graph(given), model(given), atol=1e-5)
            except InputError as error:
                assert "test_layouts_of_data.py" in error.message
                found += 1
    return found


@pytest.mark.parametrize(("source", "use", "sign"), [(source, list(COUNTS)[i % 3], 1 - i % 2 * 2) for i, source in enumerate(SOURCES)])
def test_where_an_answer_counts_no_call_is_wrong_without_a_word(source: str, use: str, sign: int) -> None:
    model = Net(source, COUNTS[use])
    try:
        graph = traced(model, sign)
    except TraceError as error:
        assert "a question for a tensor's layout in memory" in error.message and "test_layouts_of_data.py" in error.message
    else:
        refused(model, graph)


def test_layouts_of_results_and_of_the_arguments_they_come_of_are_held() -> None:
    """The result lies as the argument does, which the input decides: a call is refused where either is otherwise."""
    graph = traced(Net("module", COUNTS["contiguous"]), -1)
    assert [node.args[1] for node in graph.graph.nodes if node.target in (guard_layout, lay_out)] == 3 * [[0, 1, 2, 3]]
    x = torch.rand(3, 4, 8, 6)
    assert torch.equal(graph(-x), -2 * x)
    for given, held in ((x, "%leaf"), (-x.to(memory_format=LAST), "'x'")):
        with pytest.raises(InputError, match=f"the layout of {held}"):
            graph(given)


def test_what_is_changed_in_place_behind_a_float_module_is_held() -> None:
    def use(y: Tensor) -> Tensor:
        y.flatten(1).add_(1)
        return y * 2

    model = Net("module", use)
    assert refused(model, traced(model, -1))


def masked(y: Tensor) -> Tensor:
    return y[y.sum((1, 2, 3)) > -1e9]


def halved(y: Tensor) -> Tensor:
    while y.abs().max() > 3:
        y = y / 2
    return y


@pytest.mark.parametrize(
    ("flow", "source", "layout"),
    [
        ({"engine": "x86"}, halved, LAST), ({"engine": "onednn"}, masked, torch.contiguous_format),
        ({"engine": "qnnpack"}, halved, torch.contiguous_format), ({"backend": "native"}, masked, LAST),
    ],
)  # fmt: skip
def test_int8_values_that_lie_otherwise_refuse_no_call(flow: dict[str, Any], source: Callable[[Tensor], Tensor], layout: Any) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(COUNTS["contiguous"](source(self.first(x))))

    model, x = Small().eval(), torch.randn(2, 4, 6, 6).contiguous(memory_format=layout)
    small = qcompiler.quantize(model, [x], progress=False, **flow)
    assert qcompiler.debug.compare(model, small, [x]).output > 25
    assert small(torch.randn(3, 4, 8, 6).contiguous(memory_format=layout)).shape == (3, 4, 8, 6)
    with pytest.raises(InputError, match="asks for a tensor's layout"):
        small(x.contiguous(memory_format=torch.contiguous_format if layout is LAST else LAST))


@pytest.mark.parametrize(("source", "use"), [(source, list(HARMLESS)[i % 2]) for i, source in enumerate(FREE)])
def test_what_leads_nowhere_else_is_not_held(source: str, use: str) -> None:
    model = Net(source, HARMLESS[use])
    assert not refused(model, traced(model, 1))
