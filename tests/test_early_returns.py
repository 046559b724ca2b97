"""Conditions on data that end a function, a loop or an expression: both ways are computed, in int8, and the one counts that is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.errors import TraceError
from qcompiler.trace import TraceOptions, trace
from qcompiler.trace.float_source import Part
from qcompiler.trace.rewritten import Switch

Forward = Callable[[Any, torch.Tensor], Any]


class Net(nn.Module):
    def __init__(self, function: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.k = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.h: Any = None
        self.function = function
        self.positive = lambda x: x.relu() if x.sum() > 0 else -x  # fmt: skip

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def two_returns(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        return s.b(y)
    return s.c(y)


def the_other_way_returns(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        y = y + 1
    else:
        return s.c(y)
    return s.b(y)


def negated(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if not y.sum() > 0:
        z = s.b(y)
        return z + 1
    return s.c(y)


def several(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 3:
        return s.b(y)
    elif y.sum() > 1:
        return s.c(y)
    y = s.b(y)
    if y.sum() > 0:
        return y
    return s.c(y)


def one_in_another(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        if y.max() > 1:
            return s.b(y)
        return s.c(y)
    return y


def exits_of_a_loop(s: Any, x: torch.Tensor) -> Any:
    for i, k in enumerate(s.k):
        x = torch.relu(k(x))
        y = s.a(x)
        if y.mean() > 0.05:
            return y, i
    return s.b(x), len(s.k)


def a_list_of_its_own(s: Any, x: torch.Tensor) -> Any:
    outs = []
    for k in s.k:
        x = k(x)
        outs.append(x)
        if x.mean() > 0.05:
            return torch.stack([x, x, x])
    return torch.stack(outs)


def dicts(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        return {"out": s.b(y), "nothing": None, "level": 0.5}
    return {"out": s.c(y), "nothing": None, "level": 2.5}


def changed_in_place_behind(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        return s.b(y), y
    y.mul_(2)
    y[0] = 0
    return s.c(y), y


def changed_in_place_before(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        y.mul_(2)
        return y
    return s.c(y)


def _changes(s: Any, y: torch.Tensor) -> torch.Tensor:
    if y.sum() > 0:
        return y
    y.mul_(-1)
    return s.c(y)


def the_caller_sees_the_change(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    return _changes(s, y), y


def the_input_itself(s: Any, x: torch.Tensor) -> Any:
    if x.sum() > 0:
        return x
    return s.c(x)


def other_sizes(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        return s.b(y[:1])
    return s.c(y)


def a_check_before(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.isnan().any():
        raise ValueError("no number")
    if y.sum().item() > 0:
        return s.b(y)
    return s.c(y)


def _calls_itself(s: Any, x: torch.Tensor, n: int) -> torch.Tensor:
    y = s.a(x)
    if n == 0:
        return y
    if y.sum() > 0:
        return _calls_itself(s, y, n - 1)
    return s.c(y)


def recursion(s: Any, x: torch.Tensor) -> Any:
    return _calls_itself(s, x, 3)


def two_conditions(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0 and not (y.max() > 1.5 or len(s.k) > 5):
        return s.b(y)
    if len(s.k) > 5 or y.min() < -1:
        y = y + 1
    return s.c(y)


def an_expression(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    return s.b(y) if y.sum() > 3 else s.c(y) if y.sum() > 0 and y.max() > 1 else y


def an_argument(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    return s.c(s.b(y) if y.sum() > 0 else y * 2) + 1


def in_a_comprehension(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    return torch.cat([k(y) if y.sum() > i else y for i, k in enumerate(s.k)], 1)


def a_lambda(s: Any, x: torch.Tensor) -> Any:
    signed = lambda y: (s.b(y) + 1) if y.sum() > 0 else s.c(y)  # fmt: skip # noqa: E731
    return signed(s.positive(s.a(x)))


def a_break(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    for k in s.k:
        x = torch.relu(k(x))
        if x.mean() > 0.05:
            y = x * 2
            break
        y = y + x
    return s.b(y)


FOLLOWED = (
    two_returns, the_other_way_returns, negated, several, one_in_another, exits_of_a_loop, a_list_of_its_own, dicts,
    changed_in_place_behind, changed_in_place_before, the_caller_sees_the_change, the_input_itself, other_sizes, a_check_before, recursion,
    two_conditions, an_expression, an_argument, in_a_comprehension, a_lambda, a_break,
)  # fmt: skip


def inputs(i: int) -> torch.Tensor:
    return torch.randn(2 + i % 3, 8, generator=torch.Generator().manual_seed(i)) * (0.5, 1, 2)[i % 3] + (0, 1, -1, 3)[i % 4]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and same(list(a.values()), list(b.values()))
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (tuple, list)) else bool(a == b)


@pytest.mark.parametrize("function", FOLLOWED, ids=lambda function: function.__name__)
def test_the_graph_does_what_the_code_does(function: Forward) -> None:
    model = Net(function).eval()
    result = trace(model, (inputs(0),), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))
    assert {remark.kind for remark in result.remarks} - {"guard"} == {"data-branch"}
    assert all("test_early_returns.py" in str(remark.where) for remark in result.remarks)
    for i in range(24):
        x = inputs(i)
        assert same(result.graph_module(x), model(x)) and torch.equal(x, inputs(i))


@pytest.mark.parametrize("function", [several, exits_of_a_loop, an_expression, two_conditions, a_lambda], ids=lambda f: f.__name__)
def test_both_ways_are_int8_and_travel(function: Forward, tmp_path: Any) -> None:
    got = qc.quantize(Net(function).eval(), [inputs(i) for i in range(6)], progress=False)
    assert str(qc.explain(got)).startswith("100.0% of multiply-accumulates in int8 (")
    qc.save(got, tmp_path / "m")
    for form in (torch.jit.script(got), qc.load(tmp_path / "m")):
        assert all(same(form(inputs(i)), got(inputs(i))) for i in range(3))


def keeps_what_it_saw(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        return s.b(y)
    s.h = y
    return s.c(y)


def another_form(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    if y.sum() > 0:
        return s.b(y), None
    return s.c(y), y


def test_what_would_be_kept_behind_a_return_is_refused_with_the_line() -> None:
    with pytest.raises(TraceError, match="assigns an attribute") as caught:
        qc.quantize(Net(keeps_what_it_saw).eval(), [inputs(0)], progress=False)
    assert "test_early_returns.py" in str(caught.value.where.source)


def test_ways_of_unlike_form_run_as_they_stand() -> None:
    model = Net(another_form).eval()
    got = qc.quantize(model, [inputs(i) for i in range(3)], progress=False)
    assert "float-statement" in {remark.code for remark in qc.remarks(got)}
    for i in range(6):
        assert (got(inputs(i))[1] is None) is (model(inputs(i))[1] is None)


class Child(Net):
    """Early returns that ask for the class around them."""

    def __init__(self) -> None:
        super().__init__(lambda s, x: s.a(x))


class InTheWay(Child):
    def forward(self, x: torch.Tensor) -> Any:
        if x.sum() > 0:
            return super().forward(x) * 2
        return self.b(x)


class BehindTheWay(Child):
    def forward(self, x: torch.Tensor, *more: Any, **named: Any) -> Any:
        later = lambda y: self.b(y)  # noqa: E731  (self is a variable of two functions)
        if x.sum() > 0:
            return __class__.__mro__[1].forward(self, later(x))  # type: ignore[name-defined]
        if x.mean() > -0.1:
            return later(x)
        return super().forward(later(x)) - 1


class BothBlocks(Child):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.b(x)
        if y.sum() > 0 and x.sum() > 0:
            y = super().forward(y)
        else:
            y = super().forward(x) + 1
        return y


@pytest.mark.parametrize("net", [InTheWay, BehindTheWay, BothBlocks])
def test_super_in_a_way(net: type[Child]) -> None:
    graph = qc.fuse_fx(net().eval(), (inputs(0),))
    for i in range(6):
        assert same(graph(inputs(i)), net().eval()(inputs(i)))


def test_other_threads_choose_by_their_own_conditions() -> None:
    """While a model is traced its code holds switches, which other threads run through as well."""
    switch = Switch(Part("f", "f", 1, -1, (1, 0), (1, 1), "choice"), lambda: False, lambda part, variables: None, None)  # type: ignore[arg-type]
    barrier, found = threading.Barrier(2), dict[bool, Any]()

    def ask(value: bool) -> None:
        barrier.wait()
        if not switch.asks(value):
            barrier.wait()
            found[value] = switch.answer()

    threads = [threading.Thread(target=ask, args=(value,)) for value in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {True: True, False: False}
