"""Patterns as small graphs: operands that commute, values that are shared, numbers, settings; and the activations that are found so."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import ConfigError, QConfigMapping, explain, fuse_fx, get_default_qconfig, prepare_qat_fx, remarks
from qcompiler.compile.matching import find
from qcompiler.compile.rewrite import Link, Match, Reject, Rule, becomes, run_rules
from qcompiler.debug import compute_sqnr
from qcompiler.ops.table import OPS
from qcompiler.passes import FUSE
from qcompiler.patterns.activations import RULES
from tests.flow import ENGINES, flow, max_difference, passed, randn, targets

X = randn(2, 3, 6, 6)


class Then(nn.Module):
    """What is done to the result of a convolution."""

    def __init__(self, then: Callable[[Then, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last, self.then = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), then
        self.sigmoid, self.relu6, self.hardsigmoid = nn.Sigmoid(), nn.ReLU6(inplace=True), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Any:
        found = self.then(self, self.conv(x))
        return self.last(found) if isinstance(found, Tensor) else found


FOUND: dict[str, tuple[str, Callable[[Then, Tensor], Any]]] = {
    "x sigmoid(x)": ("silu", lambda m, x: x * torch.sigmoid(x)),
    "sigmoid(x) x": ("silu", lambda m, x: torch.sigmoid(x) * x),
    "silu of a module": ("silu", lambda m, x: x * m.sigmoid(x)),
    "silu as methods": ("silu", lambda m, x: x.mul(x.sigmoid())),
    "silu in place": ("silu", lambda m, x: x.mul_(x.sigmoid())),
    "silu in place, the gate": ("silu", lambda m, x: x.sigmoid().mul_(x)),
    "silu with a relu behind": ("silu", lambda m, x: F.relu(x * torch.sigmoid(x))),
    "mish": ("mish", lambda m, x: x * torch.tanh(F.softplus(x))),
    "mish, gate first": ("mish", lambda m, x: F.softplus(x).tanh() * x),
    "hardsigmoid": ("hardsigmoid", lambda m, x: F.relu6(x + 3) / 6),
    "hardsigmoid, 3 first": ("hardsigmoid", lambda m, x: m.relu6(3.0 + x) / 6.0),
    "hardsigmoid as a clamp": ("hardsigmoid", lambda m, x: (x + 3).clamp(0, 6).div(6)),
    "hardsigmoid by a factor": ("hardsigmoid", lambda m, x: 0.1666667 * F.hardtanh(x.add(3), 0.0, 6.0)),
    "x hardsigmoid(x)": ("hardswish", lambda m, x: x * F.hardsigmoid(x)),
    "hardsigmoid(x) x": ("hardswish", lambda m, x: m.hardsigmoid(x) * x),
    "relu6(x + 3) / 6 x": ("hardswish", lambda m, x: F.relu6(x + 3.0) / 6.0 * x),
    "x (relu6(x + 3) / 6)": ("hardswish", lambda m, x: x * (m.relu6(x + 3.0) / 6.0)),
    "x relu6(x + 3) / 6": ("hardswish", lambda m, x: x * F.relu6(x + 3) / 6),
    "relu6(x + 3) x / 6": ("hardswish", lambda m, x: F.relu6(x + 3, inplace=True) * x / 6),
    "x 0.5 (1 + erf(x / sqrt(2)))": ("gelu", lambda m, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "0.5 x (1 + erf(x 0.7071))": ("gelu", lambda m, x: 0.5 * x * (1 + torch.erf(x * 0.7071067811865475))),
    "x (1 + erf(x / sqrt(2))) 0.5": ("gelu", lambda m, x: x * (torch.erf(x / math.sqrt(2)) + 1) * 0.5),
    "x (0.5 (1 + erf(x / sqrt(2))))": ("gelu", lambda m, x: x * (0.5 * (1 + (x / math.sqrt(2)).erf()))),
    "GPT's gelu": ("gelu", lambda m, x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))),
    "gelu of a power": ("gelu", lambda m, x: x * 0.5 * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))),
    "x relu6(x + 3) (1 / 6)": ("hardswish", lambda m, x: x * F.relu6(x + 3) * (1 / 6)),
}
PARTS = {"erf", "pow", "sigmoid", "mul", "tanh", "softplus", "add", "div", "clamp", "hardsigmoid"}


@pytest.mark.parametrize("name", FOUND)
def test_an_activation_that_is_written_out_is_one_op(name: str) -> None:
    op, then = FOUND[name]
    model = Then(then).eval()
    with torch.no_grad():
        wanted = model(X.clone())
        fused, context = passed(model, (X,), FUSE)
        assert max_difference(fused(X), wanted) <= 1e-5
    assert op in targets(fused.graph) and not (PARTS - {op}) & set(targets(fused.graph))
    assert not context.journal.remarks


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["sigmoid(x) x", "x relu6(x + 3) / 6"])
def test_it_runs_in_int8_as_that_op(name: str, engine: str) -> None:
    op, then = FOUND[name]
    model = Then(then).eval()
    result = flow(model, (X,), engine=engine)
    assert [(r.op, r.int8) for r in explain(result.module).rows] == [("conv2d", True), (op, True), ("conv2d", True)]
    with torch.no_grad():
        assert compute_sqnr(model(X), result.module(X)) > 30


def test_it_trains_as_that_op() -> None:
    prepared = prepare_qat_fx(Then(FOUND["sigmoid(x) x"][1]).train(), None, (X,))
    assert "silu" in targets(prepared.graph) and "sigmoid" not in targets(prepared.graph)
    prepared(X).sum().backward()
    assert prepared.get_parameter("conv.weight").grad is not None


# Values, and the code of the near miss; None: so far off that there is nothing to say.
MISSES: dict[str, tuple[Callable[[Then, Tensor], Any], str | None]] = {
    "the gate of another value": (lambda m, x: x * torch.sigmoid(x + 1), None),
    "a squeeze-and-excitation": (lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), None),
    "a scaled gate": (lambda m, x: x * torch.sigmoid(1.702 * x), None),
    "twice the gate": (lambda m, x: torch.sigmoid(x) * torch.sigmoid(x), None),
    "a sum": (lambda m, x: x + torch.sigmoid(x), None),
    "the gate is a result": (lambda m, x: (x * (gate := torch.sigmoid(x)), gate), "several-users"),
    "the gate is used": (lambda m, x: x * (gate := torch.sigmoid(x)) + gate, "several-users"),
    "an inner value of mish is used": (lambda m, x: x * torch.tanh(soft := F.softplus(x)) + soft, "several-users"),
    "another softplus": (lambda m, x: x * torch.tanh(F.softplus(x, beta=2)), "other-settings"),
    "integers": (lambda m, x: x * (index := (x > 0).long()) * torch.sigmoid(index), None),
    "another shift": (lambda m, x: F.relu6(x + 2.9) / 6, None),
    "another limit": (lambda m, x: (x + 3).clamp(0, 5) / 6, "other-settings"),
    "another factor": (lambda m, x: F.relu6(x + 3) / 5.999, None),
    "6 by the clamp": (lambda m, x: 6 / (F.relu6(x + 3) + 1), None),
    "a sum that is not clamped": (lambda m, x: (x + 3) / 6, "other-settings"),
    "the clamp is used": (lambda m, x: (y := F.relu6(x + 3)) / 6 + y, "several-users"),
    "erf of another scale": (lambda m, x: x * 0.5 * (1 + torch.erf(x / 1.5)), None),
    "erf is used": (lambda m, x: x * 0.5 * (1 + (e := torch.erf(x / math.sqrt(2)))) + e, "several-users"),
    "gelu of another value": (lambda m, x: (x + 1) * 0.5 * (1 + torch.erf(x / math.sqrt(2))), None),
    "another cube": (
        lambda m, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 4.0)))),
        "other-settings",
    ),
    "another share": (lambda m, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.0447 * torch.pow(x, 3)))), None),
    "minus": (lambda m, x: F.relu6(x - 3) / 6, None),
    "a part and another value": (lambda m, x: F.relu6(x + 3) * x.abs() / 6, None),
    "twice the second summand": (lambda m, x: F.relu6(torch.add(x, 3, alpha=2)) / 6, "other-settings"),
    "rounded": (lambda m, x: torch.div(F.relu6(x + 3), 6, rounding_mode="floor"), None),
}


@pytest.mark.parametrize("name", MISSES)
def test_a_near_miss_stays_and_has_a_remark(name: str) -> None:
    then, code = MISSES[name]
    model = Then(then).eval()
    with torch.no_grad():
        wanted = model(X.clone())
        fused, context = passed(model, (X,), FUSE)
        for got, value in zip(*([y] if isinstance(y, Tensor) else y for y in (fused(X), wanted)), strict=True):
            assert max_difference(got, value) <= 1e-5
    assert not {"silu", "mish", "hardsigmoid", "hardswish", "gelu"} & set(targets(fused.graph))
    codes = {r.code for r in context.journal.remarks if r.text.split(":")[0] in {rule.name for rule in RULES}}
    assert codes == ({code} if code else set())


@pytest.mark.parametrize("kind", [torch.sigmoid, nn.Sigmoid, torch.mul])
def test_a_part_that_is_to_stay_float_stays_apart(kind: Any) -> None:
    mapping = QConfigMapping().set_global(get_default_qconfig()).set_object_type(kind, None)
    then = FOUND["silu of a module" if kind is nn.Sigmoid else "x sigmoid(x)"][1]
    result = flow(Then(then).eval(), (X,), mapping=mapping)
    rows = {r.op: r.int8 for r in explain(result.module).rows}
    assert not rows["mul" if kind is torch.mul else "sigmoid"] and "silu" not in rows
    assert [r.code for r in remarks(result.module) if r.text.startswith("silu:")] == ["other-qconfig"]


def test_where_all_parts_stay_float_it_is_one_op() -> None:
    mapping = QConfigMapping().set_global(get_default_qconfig()).set_object_type(torch.sigmoid, None).set_object_type(torch.mul, None)
    result = flow(Then(FOUND["x sigmoid(x)"][1]).eval(), (X,), mapping=mapping)
    assert "silu" in {r.op for r in explain(result.module).rows}


# ---- the matcher alone


def graph_of(function: Callable[..., Any], inputs: int = 2) -> tuple[fx.Graph, fx.Node]:
    """The canonical graph of `function(call, *inputs)`, where call(name, *args) is an op, and its last node."""
    graph = fx.Graph()
    names = [graph.placeholder(f"x{i}") for i in range(inputs)]

    def call(name: str, *args: Any, **settings: Any) -> fx.Node:
        return graph.call_function(OPS.rows[name].fn, args, settings)

    last = function(call, *names)
    graph.output(last)
    return graph, last


DISTANCE = (Link("apart", ("sub",), ("a", "b")), Link("square", ("mul",), ("apart", "apart")))
TREE = (Link("left", ("relu",), ("x",)), Link("right", ("sigmoid",), ("y",)), Link("sum", ("add",), ("left", "right")))
SCALED = (Link("inner", ("add",), ("x", "n")), Link("last", ("mul",), ("inner", "n")))
MATCHES: dict[str, tuple[tuple[Link, ...], Callable[..., Any], int]] = {
    "a value twice": (DISTANCE, lambda call, x, y: call("mul", d := call("sub", x, y), d), 1),
    "two that look alike": (DISTANCE, lambda call, x, y: call("mul", call("sub", x, y), call("sub", x, y)), 0),
    "a tree": (TREE, lambda call, x, y: call("add", call("relu", x), call("sigmoid", y)), 1),
    "a tree the other way": (TREE, lambda call, x, y: call("add", call("sigmoid", y), call("relu", x)), 1),
    "a tree of one value": (TREE, lambda call, x, y: call("add", call("relu", x), call("sigmoid", x)), 1),
    "sub does not commute": (
        (Link("gate", ("relu",), ("x",)), Link("last", ("sub",), ("x", "gate"))),
        lambda call, x, y: call("sub", call("relu", x), x),
        0,
    ),
    "add with alpha does not commute": (
        (Link("gate", ("relu",), ("x",)), Link("last", ("add",), ("x", "gate"))),
        lambda call, x, y: call("add", call("relu", x), x, alpha=2),
        0,
    ),
    "both operands fit": (
        (Link("gate", ("relu",), ("x",)), Link("last", ("add",), ("gate", "other"))),
        lambda call, x, y: call("add", call("relu", x), call("relu", y)),
        2,
    ),
    "a number where a value is": ((Link("last", ("add",), ("x", 3.0)),), lambda call, x, y: call("add", x, y), 0),
    "an int for a float": ((Link("last", ("add",), ("x", 3.0)),), lambda call, x, y: call("add", 3, x), 1),
    "True is no 1": ((Link("last", ("mul",), ("x", 1.0)),), lambda call, x, y: call("mul", x, True), 0),
    "one number twice": (SCALED, lambda call, x, y: call("mul", call("add", x, 2), 2.0), 1),
    "two numbers": (SCALED, lambda call, x, y: call("mul", call("add", x, 2), 3), 0),
    "a chain does not commute": ((Link("first", ("relu",)), Link("last", ("add",))), lambda call, x, y: call("add", y, call("relu", x)), 0),
    "a chain": ((Link("first", ("relu",)), Link("last", ("add",))), lambda call, x, y: call("add", call("relu", x), y), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", MATCHES)
def test_how_often_a_pattern_matches(name: str) -> None:
    pattern, function, count = MATCHES[name]
    _, last = graph_of(function)
    found = find(pattern, OPS, last)
    assert len(found) == count
    assert all(known[pattern[-1].name] is last for known in found)


def test_of_two_matches_the_one_that_stands_last_is_tried_first() -> None:
    pattern, function, _ = MATCHES["both operands fit"]
    _, last = graph_of(function)
    assert [known["gate"].name for known in find(pattern, OPS, last)] == ["relu_1", "relu"]


def test_a_match_that_is_refused_leaves_the_next_one() -> None:
    def not_the_second(match: Match, **known: Any) -> None:
        if known["gate"].name == "relu_1":
            raise Reject("no", "not this one")

    pattern, function, _ = MATCHES["both operands fit"]
    graph, _ = graph_of(function)
    rule = Rule("both", pattern, becomes(operator.add, "gate", "other"), check=not_the_second)
    asked = []
    fired, left = run_rules(fx.GraphModule(nn.Module(), graph), (rule,), OPS, lambda rule, node: not asked.append(node))  # type: ignore[func-returns-value]
    assert fired == {"both": 1} and not left and len(asked) == 1  # the gate hears of what check let pass


BAD: dict[str, tuple[tuple[Link, ...], str]] = {
    "no link": ((), "no link"),
    "two of a name": ((Link("a", ("relu",)), Link("a", ("relu",))), "two links are called 'a'"),
    "an operand that comes later": ((Link("a", ("add",), ("x", "b")), Link("b", ("relu",))), "'b' is used before"),
    "a link that leads nowhere": ((Link("a", ("relu",)), Link("b", ("relu",), ("x",))), "nothing uses 'a'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_pattern_that_cannot_match_is_an_error(name: str) -> None:
    pattern, text = BAD[name]
    with pytest.raises(ConfigError, match=text) as caught:
        Rule("bad", pattern, lambda match, **known: None)
    assert caught.value.code == "bad-pattern"


@pytest.mark.parametrize(("ops", "near"), [(("hardswsh",), "hardswish"), (("zzz", "yyy"), "docs/ops.md")])
def test_a_rule_for_an_op_that_the_table_does_not_have_is_an_error(ops: tuple[str, ...], near: str) -> None:
    rule = Rule("mine", (Link("conv", ("conv2d",)), Link("act", ops)), lambda match, **known: None)
    with pytest.raises(ConfigError, match="the link 'act' of rule 'mine' is no op of the table") as caught:
        fuse_fx(Then(lambda m, x: x).eval(), (X,), rules=(rule,))
    assert caught.value.code == "unknown-op" and near in str(caught.value)


def test_one_of_a_links_ops_may_be_missing() -> None:
    rule = Rule("mine", (Link("conv", ("conv2d", "my_conv")), Link("act", ("mul",))), lambda match, **known: None)
    fuse_fx(Then(lambda m, x: x).eval(), (X,), rules=(rule,))


def test_a_candidate_is_a_link() -> None:
    with pytest.raises(ConfigError, match="no link called 'bn'"):
        Rule("bad", (Link("a", ("relu",)),), lambda match, **known: None, candidate="bn")
