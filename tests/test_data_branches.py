"""Statements under a condition on data are computed in any case and count where it holds; others are refused, never followed in silence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.errors import InputError, TraceError
from qcompiler.trace import Traced, TraceOptions, trace

from .data_models import WAYS, WIDTH, Routed, sqnr

Forward = Callable[[Any, torch.Tensor], Any]


class Keeps(nn.Module):
    """A layer that keeps something between calls."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.l, self.way = nn.Linear(4, 4), way
        self.kept: Any = {"list": [], "number": 0, "nothing": None, "dict": {}}.get(way)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.l(x)
        if self.way == "list":
            self.kept.append(y)
        if self.way == "dict":
            self.kept["last"] = y
        if self.way in ("number", "tensor"):
            self.kept = self.kept + 1 if self.way == "number" else y
        return y


class Net(nn.Module):
    def __init__(self, function: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(4, 4)
        self.k = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.keeps = nn.ModuleDict({way: Keeps(way) for way in ("list", "number", "tensor", "dict", "nothing")})
        self.register_buffer("b", torch.ones(4))
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def assigned(s: Any, x: torch.Tensor) -> Any:
    y = s.l(x)
    if x.sum() > 0:
        z = y * 2
        y = z + 1
    return y + 1


def augmented(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    if x.sum() > 0:
        y += 1
    return y


def a_view_is_changed(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    v = y[:, :2]
    if x.sum() > 0:
        v.mul_(3)
    return y + 1, v


def a_plain_tensor_is_changed(s: Any, x: torch.Tensor) -> Any:
    y = torch.zeros(3, 4)
    if x.sum() > 0:
        y[0] = x[0]
    return y


def two_names_of_one_tensor(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    z = y
    if x.sum() > 0:
        z.mul_(2)
    return y, z


def names_afterwards(s: Any, x: torch.Tensor) -> Any:
    y = x
    if x.sum() > 0:
        y = x * 2
    z = y
    y = z + 1
    return y, z, x


def carried_from_round_to_round(s: Any, x: torch.Tensor) -> Any:
    total, previous = x * 0, x
    for i, k in enumerate(s.k):
        if not (x[:, i] > 0.5).any():
            continue
        now = k(previous)
        total = total + now
        previous = now
    return total, previous


def another_shape(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = x[:1] * 1
    return y.sum() * y.shape[0]


def nested_first(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    if x.sum() > 0:
        if x[0, 0] > 0:
            y = y + 1
        y = y * 2
    return y


def nested_last(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    if x.sum() > 0:
        y = y * 2
        if x[0, 0] > 0:
            y = y + 1
    return y


def _change(y: torch.Tensor, x: torch.Tensor) -> None:
    if x.sum() > 0:
        y.add_(1)


def at_the_end_of_a_function(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    _change(y, x)
    z = y * 2
    return z, y


def a_loop_inside(s: Any, x: torch.Tensor) -> Any:
    y = x * 2
    if x.sum() > 0:
        for _ in range(2):
            y = y + s.l(y)
    z = y.relu()
    y = 0
    return z, y


def several_effects(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    for i in range(3):
        index = (x[:, i] > 0).nonzero().squeeze(1)
        if index.numel() > 0:
            t = s.k[i](x[index])
            y[index] = y[index] + t
            y.index_add_(0, index, t)
    return y, y.sum(1)


def with_else(s: Any, x: torch.Tensor) -> Any:
    if x.sum() > 0:
        y = s.k[0](x)
    else:
        y = s.k[1](x) * 3
    return y + 1


def with_elif(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = torch.where(x > 0, y * 2, y)
    elif x[0, 0] > 0:
        y = y + 5
    return y


def changed_in_both(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    w = y
    if x.sum() > 0:
        y = y * 2
    else:
        w.add_(1)
        y = y + 1
    return y, w


def items_in_both(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    if x.sum() > 0:
        y[0] = 5
    else:
        y[1:] = x[:2] * 2
    return y


def one_value_or_another(s: Any, x: torch.Tensor) -> Any:
    y = x * 2 if x.sum() > 0 else x
    z = x if not x[0, 0] > 0 else x * 3
    return y, z


def a_number_decides(s: Any, x: torch.Tensor) -> Any:
    k, y = int(x.abs().max()), x * 1
    for i in range(3):
        if k > i:
            y = y + 1
    return y


def no_state(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = s.keeps["nothing"](x)
    return y


def in_a_closure(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()

    def change() -> None:
        if x.sum() > 0:
            y.mul_(2)

    change()
    return y


def over_hits(s: Any, x: torch.Tensor) -> Any:
    y, z = x.clone(), x * 0
    for i in (s.l(x).sum(0) > 0).nonzero():
        y[:, i] += 1
        z = z + x[:, i]
    return y, z


def over_a_list_of_hits(s: Any, x: torch.Tensor) -> Any:
    y, last = x.clone(), x * 0
    for i in torch.where(s.l(x).amax(0) > 0.5)[0].tolist():
        y[:, i] *= 2
        if x[0, 0] > 0:
            last = y * (i + 1)
    return y + last


FOLLOW = (
    assigned, augmented, a_view_is_changed, a_plain_tensor_is_changed, two_names_of_one_tensor, names_afterwards,
    carried_from_round_to_round, another_shape, nested_first, nested_last, at_the_end_of_a_function, a_loop_inside, several_effects,
    with_else, with_elif, changed_in_both, items_in_both, one_value_or_another, a_number_decides, no_state, in_a_closure,
    over_hits, over_a_list_of_hits,
)  # fmt: skip


def traced(model: nn.Module, x: torch.Tensor) -> Traced:
    return trace(model, (x,), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))


def _same(a: Any, b: Any) -> bool:
    return (
        len(a) == len(b) and all(map(_same, a, b)) if isinstance(a, (tuple, list)) else torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    )


@pytest.mark.parametrize("sign", [1, -1], ids=["holds", "does not hold"])
@pytest.mark.parametrize("forward", FOLLOW, ids=lambda forward: forward.__name__)
def test_both_ways_have_their_results(forward: Forward, sign: int) -> None:
    model = Net(forward).eval()
    result = traced(model, torch.rand(3, 4) * sign)
    assert {remark.kind for remark in result.remarks} == {"data-branch"}
    assert all("test_data_branches.py" in str(remark.where) for remark in result.remarks)
    for i in range(12):
        x = torch.randn(3, 4) * (0.5, 1, 2)[i % 3] + (0, 1, -1, 3)[i % 4]
        assert _same(result.graph_module(x), model(x))


def appended(s: Any, x: torch.Tensor) -> Any:
    out = []
    for i in range(3):
        if (x[:, i] > 0).any():
            out.append(x[x[:, i] > 0])
    return out


def a_number_changes(s: Any, x: torch.Tensor) -> Any:
    n = 1.0
    if x.sum() > 0:
        n = 2.0
    return x * n


def a_size_changes(s: Any, x: torch.Tensor) -> Any:
    n = x.shape[0]
    if x.sum() > 0:
        n = n + 1
    return x * n


def an_item_of_a_dict(s: Any, x: torch.Tensor) -> Any:
    d = {"y": x}
    if x.sum() > 0:
        d["y"] = x * 3
    return d["y"]


def an_older_value(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = x
    return y + 1


def a_view_of_an_older_value(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = y.view(-1)
    return y


def exchanged(s: Any, x: torch.Tensor) -> Any:
    y, w = x * 1, x * 2
    if x.sum() > 0:
        y, w = w, y
    return y, w


def a_loop(s: Any, x: torch.Tensor) -> Any:
    while x.abs().sum() > 1:
        x = x / 2
    return x


def in_a_call(s: Any, x: torch.Tensor) -> Any:
    y = x * 2
    if any([x.sum() > 0]):
        y = y * 2
    return y


def an_attribute(s: Any, x: torch.Tensor) -> Any:
    if x.sum() > 0:
        s.last = x * 2
    return x


def state_in_a_list(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = s.keeps["list"](x)
    return y


def state_in_a_dict(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = s.keeps["dict"](x)
    return y


def a_counter(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = s.keeps["number"](x)
    return y


def a_state(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        y = s.keeps["tensor"](x)
    return y


def nothing_to_reduce(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if (x > 0).any():
        y = y + x[x > 0].max()
    return y


def a_loop_that_ends_early(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    for i in (s.l(x).sum(0) > -100).nonzero():
        y = y + x[:, i]
        if x.sum() > 0:
            break
    return y


def the_last_hit(s: Any, x: torch.Tensor) -> Any:
    y, i = x * 1, 0
    for i in (s.l(x).sum(0) > -100).nonzero():
        y = y + x[:, i]
    return y[:, i]


def numbered_hits(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    for n, i in enumerate((s.l(x).sum(0) > -100).nonzero()):
        y = y + x[:, i] * n
    return y


def hits_among_rows(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    for i in (x.sum(1) < 100).nonzero():
        y = y + x[i]
    return y


def in_an_imported_way(s: Any, x: torch.Tensor) -> Any:
    y = x * 1
    if x.sum() > 0:
        import math

        y = y * math.pi
    return y


def as_a_whole(s: Any, x: torch.Tensor) -> Any:
    while x.abs().sum() > 1:
        x = s._modules["l"](x) / 4
    return x


def a_buffer(s: Any, x: torch.Tensor) -> Any:
    while s.b.sum() > x.sum():
        s.b.mul_(0.5)
    return x + s.b


STATEMENTS = (
    appended, a_number_changes, a_size_changes, an_item_of_a_dict, an_older_value, a_view_of_an_older_value, exchanged, a_loop,
    in_a_call, state_in_a_list, state_in_a_dict, a_counter, a_state, nothing_to_reduce,
    a_loop_that_ends_early, the_last_hit, numbered_hits, hits_among_rows,
)  # fmt: skip


REFUSED = (an_attribute, in_an_imported_way, as_a_whole, a_buffer)


@pytest.mark.parametrize("sign", [1, -1], ids=["holds", "does not hold"])
@pytest.mark.parametrize("forward", STATEMENTS, ids=lambda forward: forward.__name__)
def test_other_statements_run_as_they_stand(forward: Forward, sign: int) -> None:
    model, result = Net(forward).eval(), traced(Net(forward).eval(), torch.rand(3, 4) * sign)
    assert "float-statement" in {remark.kind for remark in result.remarks}
    for i in range(12):
        x = torch.randn(3, 4) * (0.5, 1, 2)[i % 3] + (0.1, 1, -1, 3)[i % 4]
        assert _same(result.graph_module(x), model(x))


@pytest.mark.parametrize("forward", REFUSED, ids=lambda forward: forward.__name__)
def test_other_effects_are_refused_with_the_line(forward: Forward) -> None:
    with pytest.raises(TraceError, match="the statement cannot stay float on its own") as caught:
        traced(Net(forward).eval(), -torch.rand(3, 4))
    lines, first = inspect.getsourcelines(forward)
    file, _, line = str(caught.value.where.source).rpartition(":")
    assert file.endswith("test_data_branches.py") and first <= int(line) < first + len(lines)


def checks(s: Any, x: torch.Tensor) -> Any:
    if torch.isnan(x).any():
        raise ValueError("nan")
    assert (x < 100).all(), "large"
    return s.l(x)


def test_a_condition_whose_other_way_is_an_error_is_a_guard() -> None:
    model = Net(checks).eval()
    result = traced(model, torch.rand(3, 4))
    assert [remark.kind for remark in result.remarks] == ["guard", "guard"]
    x = torch.randn(5, 4)
    assert torch.equal(result.graph_module(x), model(x))
    for wrong, text in ((torch.full((3, 4), float("nan")), "isnan"), (torch.full((3, 4), 200.0), "x < 100")):
        with pytest.raises(InputError, match=text):
            result.graph_module(wrong)


INPUTS = ((2, 9), (1, 1), (1, 2))  # one token or two: most experts get none


def usual_noise(expected: torch.Tensor, got: torch.Tensor) -> float:
    """The median over tokens of the error's share of the signal: where the router is near a tie, a token may get another expert."""
    noise, signal = ((x.detach() ** 2).sum(-1) for x in (expected - got, expected))
    return float((noise / signal.clamp(min=1e-12)).median())


@pytest.mark.parametrize("way", WAYS)
def test_routed_experts_are_int8(way: str, tmp_path: Path) -> None:
    model = Routed(way).eval()
    got = qc.quantize(model, [torch.randn(3, 20, WIDTH) for _ in range(4)], progress=False)
    linears = [row for row in qc.explain(got).rows if row.op == "linear"]
    assert len(linears) == 9 and all(row.int8 for row in linears)
    qc.save(got, tmp_path / "m")
    forms = [qc.load(tmp_path / "m"), torch.jit.script(got)]
    for shape in INPUTS:
        x = torch.randn(*shape, WIDTH)
        assert usual_noise(model(x), got(x)) < 0.01  # 20 dB
        assert all(torch.equal(form(x), got(x)) for form in forms)


def test_what_routes_in_int8_is_named_and_costs_only_near_ties() -> None:
    model, data = Routed("if_any").eval(), [torch.randn(3, 20, WIDTH) for _ in range(4)]
    x = torch.randn(20, 50, WIDTH)
    got = qc.quantize(model, data, progress=False)
    assert any("argmax" in remark.text and "may pick another one" in remark.text for remark in qc.remarks(got))
    first, second = model.gate(x).softmax(-1).topk(2)[0].unbind(-1)
    clear = first - second > 0.02
    assert clear.float().mean() > 0.8 and sqnr(model(x)[clear], got(x)[clear]) > 25
    mapping = qc.get_default_qconfig_mapping().set_module_name("gate", None)
    assert sqnr(model(x), qc.quantize(model, data, qconfig_mapping=mapping, progress=False)(x)) > 25


@pytest.mark.parametrize("engine", ["fbgemm", "onednn", "qnnpack"])
def test_routed_experts_on_other_engines(engine: str) -> None:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        model = Routed("continue_if_none").eval()
        got = qc.quantize(model, [torch.randn(3, 20, WIDTH) for _ in range(4)], progress=False)
        for shape in INPUTS:
            x = torch.randn(*shape, WIDTH)
            assert usual_noise(model(x), got(x)) < 0.01
    finally:
        torch.backends.quantized.engine = before


@pytest.mark.parametrize("way", ["where_and_index_add", "if_any"])
def test_routed_experts_are_trained(way: str) -> None:
    prepared = qc.prepare_qat_fx(Routed(way).train(), None, (torch.randn(3, 20, WIDTH),))
    for shape in ((3, 20), *INPUTS):
        prepared(torch.randn(*shape, WIDTH)).square().mean().backward()
    got = qc.convert_fx(prepared)
    x = torch.randn(2, 9, WIDTH)
    assert usual_noise(prepared.eval()(x), got(x)) < 0.01


def test_one_remark_for_a_loop() -> None:
    result = trace(
        Routed("if_any").eval(), (torch.randn(2, 9, WIDTH),), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear))
    )
    assert [remark.kind for remark in result.remarks] == ["data-branch"]
    assert "mask.any()" in result.remarks[0].reason


@pytest.mark.parametrize("way", ["bool_mask", "if_any"])
def test_values_are_compared_where_both_sides_route_differently(way: str) -> None:
    model, data = Routed(way).eval(), [torch.randn(3, 20, WIDTH) for _ in range(4)]
    got = qc.quantize(model, data, progress=False)
    assert "experts.0.up" in str(qc.debug.compare(model, got, data))
