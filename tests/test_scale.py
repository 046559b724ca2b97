"""Compiling takes work in proportion to the number of nodes: calls are counted, not seconds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import qcompiler
from qcompiler.compile.rewrite import Link, Match, Reject, Rule, run_rules
from qcompiler.debug import compute_sqnr
from qcompiler.errors import PassError
from qcompiler.ir.attributes import drop_unused_modules, get_attr, set_parameter
from qcompiler.ir.readers import Readers, readers
from qcompiler.ops.table import OPS
from tests.counted_lines import counted_lines
from tests.scale import KINDS, build

X = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def work(kind: str, nodes: int, folder: Path) -> dict[str, int]:
    """Lines of Python that each step of a compile runs."""
    torch.manual_seed(0)
    model = build(kind, nodes)
    counts: dict[str, int] = {}
    counts["prepare"], prepared = counted_lines(lambda: qcompiler.prepare_fx(model, None, (X,)))
    counts["calibrate"], _ = counted_lines(lambda: qcompiler.calibrate(prepared, [X]))
    counts["convert"], converted = counted_lines(lambda: qcompiler.convert_fx(prepared))
    counts["save"], _ = counted_lines(lambda: qcompiler.save(converted, folder / "model.qc"))
    counts["load"], _ = counted_lines(lambda: qcompiler.load(folder / "model.qc"))
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_work_grows_with_the_nodes(kind: str, tmp_path: Path) -> None:
    """The third part of the nodes takes as many lines as the second; one scan of the graph for each weight would make it 0.8 % more."""
    work(kind, 12, tmp_path)  # what is made once in a process
    part, bound = (24, 1.05) if kind == "residual" else (12, 1.002)  # which cats get common qparams depends on the data
    first, second, third = (work(kind, part * times, tmp_path) for times in (1, 2, 3))
    growth = {step: (third[step] - second[step]) / (second[step] - first[step]) for step in first}
    assert {step: by for step, by in growth.items() if by > bound} == {}


def walks(kind: str, nodes: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often prepare and convert walk over all nodes of a graph, in Python or within a C function such as list.index."""
    count, walk = 0, fx.graph._node_list.__iter__

    def counted(self: Any) -> Any:
        nonlocal count
        count += len(self) > 20  # not the few nodes of a function that codegen spells out
        return walk(self)

    model = build(kind, nodes)
    with monkeypatch.context() as patch:
        patch.setattr(fx.graph._node_list, "__iter__", counted)
        prepared = qcompiler.prepare_fx(model, None, (X,))
        qcompiler.calibrate(prepared, [X])
        qcompiler.convert_fx(prepared)
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_walks_is_fixed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert walks(kind, 48, monkeypatch) == walks(kind, 96, monkeypatch)


class Mixed(nn.Module):
    """Three quarters conv blocks, then sums and cats, then ops without weights; a sum now and then keeps the signal alive."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(build("blocks", 30) for _ in range(6))
        self.residual = build("residual", 80)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = F.hardtanh(x + 0.25 * block(x), -4.0, 4.0)
        x = self.residual(x)
        for _ in range(40):
            x = F.max_pool2d(torch.flatten(F.hardtanh(x, -4.0, 4.0), 1).reshape(-1, 4, 4, 4), 1)
        return x


def test_a_long_chain_against_float() -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    prepared = qcompiler.prepare_fx(model, None, (X,))
    qcompiler.calibrate(prepared, [X])
    converted = qcompiler.convert_fx(prepared)
    assert len(converted.program.calls) > 250
    with torch.no_grad():
        assert compute_sqnr(model(X), converted(X)) > 15  # hundreds of roundings in a row


LIMIT = 400  # calls that Python may nest while the next test compiles


class Copies(nn.Module):
    """More ops that only copy in a row than Python may nest calls."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(LIMIT):
            x = torch.flatten(x, 1)
        return self.last(x)


@pytest.mark.parametrize(
    ("model", "int8"),
    [
        (Copies(nn.Linear(8, 8), nn.Identity()), {"linear": True, "flatten": False}),  # hands out floats through all copies
        (Copies(nn.Linear(8, 8), nn.Linear(8, 4)), {"linear": True, "flatten": True}),
        (Copies(nn.Hardswish(), nn.LayerNorm(8)), {"hardswish": False, "flatten": False}),
    ],
)
def test_a_chain_of_copies_longer_than_the_stack(model: nn.Module, int8: dict[str, bool]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), model).eval() if "hardswish" in int8 else model.eval()
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(LIMIT)
    try:
        prepared = qcompiler.prepare_fx(model, None, (torch.randn(2, 8),))
    finally:
        sys.setrecursionlimit(before)
    found = {row.op: row.int8 for row in qcompiler.explain(prepared).rows}
    assert {op: found[op] for op in int8} == int8


def relus(count: int) -> fx.GraphModule:
    """`count` relus, each with its own weight of the same name behind it."""
    root = nn.Module()
    root.register_buffer("w", torch.ones(2))
    graph = fx.Graph()
    x = graph.placeholder("x")
    for _ in range(count):
        x = graph.call_function(torch.mul, (graph.call_function(F.relu, (x,)), graph.get_attr("w")))
    graph.output(x)
    return fx.GraphModule(root, graph)


def test_readers_follow_the_graph() -> None:
    gm = relus(3)
    with Readers(gm):
        first, *others = readers(gm, "w")
        assert len(others) == 2 and readers(gm, "v") == []
        with gm.graph.inserting_before(first):
            new = get_attr(gm, "w")
        assert readers(gm, "w") == [first, *others, new]
        gm.graph.erase_node(new)
        assert readers(gm, "w") == [first, *others]
    assert readers(gm, "w") == [first, *others]


@pytest.mark.parametrize(("asked", "refused"), [("v", True), ("u", False)])
def test_a_reader_that_the_index_missed_is_refused(asked: str, refused: bool) -> None:
    gm = relus(2)
    gm.register_buffer("v", torch.ones(2))
    with pytest.raises(PassError, match="in place") if refused else contextlib.nullcontext(), Readers(gm):
        readers(gm, asked)
        gm.graph.find_nodes(op="get_attr", target="w")[0].target = "v"


def test_a_shared_weight_keeps_one_name_for_each_user() -> None:
    gm = relus(3)
    for user in gm.graph.find_nodes(op="call_function", target=torch.mul):
        with gm.graph.inserting_before(user):
            user.args = (user.args[0], set_parameter(gm, user, "w", torch.zeros(2)))
    names = [str(n.args[1].target) for n in gm.graph.find_nodes(op="call_function", target=torch.mul)]  # type: ignore[union-attr]
    assert names == ["w_2", "w_3", "w"]


def test_unused_modules_go_as_in_torch() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ReLU())
            self.read = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
            self.gone = nn.Sequential(nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.kept[0](x) + self.read["a"].weight

    def leaves(drop: Callable[[fx.GraphModule], None]) -> list[str]:
        tracer = fx.Tracer()
        tracer.is_leaf_module = lambda module, path: path == "kept.0"  # type: ignore[method-assign]
        model = Model()
        gm = fx.GraphModule(model, tracer.trace(model))
        gm.add_module("gone", nn.Sequential(nn.Linear(2, 2)))
        gm.get_submodule("kept").add_module("other", nn.ReLU())
        drop(gm)
        return [name for name, _ in gm.named_modules()]

    assert leaves(drop_unused_modules) == leaves(fx.GraphModule.delete_all_unused_submodules)


def test_a_remark_names_a_few_of_many_users() -> None:
    def refuse(match: Match, first: fx.Node, last: fx.Node) -> None:
        raise Reject("never", "never")

    graph = fx.Graph()
    value = graph.call_function(OPS.rows["relu"].fn, (graph.placeholder("x"),))
    graph.output(tuple(graph.call_function(OPS.rows["sigmoid"].fn, (value,)) for _ in range(100)))
    rule = Rule("pair", (Link("first", ("relu",)), Link("last", ("sigmoid",))), refuse)
    rejections = run_rules(fx.GraphModule(nn.Module(), graph), (rule,), OPS)[1]
    assert len(rejections) == 100
    assert rejections[0].reason.endswith("%sigmoid_8 and 91 more")
