"""A statement that cannot be followed runs as it stands: the smallest one around the line, with all else compiled as before."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import runpy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, tanh

import qcompiler as qc
from qcompiler.artifact.write import MissingModulesWarning
from qcompiler.errors import ConfigError, TraceError
from qcompiler.trace import Traced, TraceOptions, trace

from .data_models import sqnr


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.l(x))


class Counts(nn.Module):
    """Keeps how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.l = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return self.l(x) * 0.5 / self.calls


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.cell, self.counts = nn.Linear(8, 8), nn.Linear(8, 8), Cell(), Counts()
        self.heads = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.scale = nn.Parameter(torch.full((8,), 0.9))
        self.steps = 4


class Loop(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        while y.abs().max() > 0.5:
            y = y / 2
        return self.last(y)


class LoopWithModule(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, n = self.first(x), 0
        while y.abs().max() > 0.1 and n < self.steps:
            y = self.cell(y) * self.scale
            n += 1
        return self.last(y) * n


class Appended(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, out = self.first(x), [x[:1]]
        for i in range(3):
            if (x[:, i] > 0).any():
                out.append(y[x[:, i] > 0])
        return self.last(torch.cat(out))


class Rounds(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(sum(self.first(x) * i for i in range(1, int(x.abs().max()) + 2)))


class NumPy(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        limit = math.sqrt(float(y.detach().numpy().max()) ** 2 + 1)
        return self.last(y.clamp(-limit, limit))


class InPlace(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = y
        while y.abs().max() > 0.5:
            y *= 0.5
            y[:, 0] = 0.25
        return self.last(y) + z


class Several(Base):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, best, n = self.first(x), x, 1
        while n < 4 and x[:, n].sum() > -9:
            y, best, n = y + 1, self.heads[0](y) * n, n + 1
        return self.last(y), best


class Kept(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if x.sum() > -1e9 or x.sum() > 1e9:
            y = self.counts(y)
        return self.last(y)


class Text(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = y * {"many": 2.0}.get("many" if int((x > 0).sum()) > 3 else "few", 1.0)
        return self.last(y)


class Tried(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        try:
            limit = {True: 1.0}[bool(x.sum() > 0)]
        except KeyError:
            limit = 0.5
        return self.last(y.clamp(max=limit))


class CallersList(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = [self.first(x)]
        add(out, x)
        return torch.cat(out)


def add(out: list[torch.Tensor], x: torch.Tensor) -> None:
    if x.sum() > 0:
        out.append(x)


def halved(v: torch.Tensor) -> torch.Tensor:
    """Changes what it is given, and returns it or something new."""
    while v.abs().max() > 1:
        v.mul_(0.5)
        if v.sum() > 100:
            return v
    return v + 1


def wrapped(layer: nn.Module, v: torch.Tensor) -> torch.Tensor:
    n = 0
    while n < 2 and v.abs().max() >= 0:
        v, n = layer(v), n + 1
    return v * n


class GivenModule(Base):
    """What a variable held before goes on elsewhere: a module changes nothing that it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.last(wrapped(self.cell, y)) + y


class GivenFunction(Base):
    """A function does: what the variable held before is another value behind it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        kept = y
        while y.abs().max() > 0.5:
            y = decreased(y) * 0.5
        return self.last(y) + kept


def decreased(v: torch.Tensor) -> torch.Tensor:
    return v.sub_(0.25).clone()


class GivenAndReturned(Base):
    """The end of a function changes its caller's tensor, whichever way it goes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = halved(y)
        return self.last(z) + y


class GivenThroughView(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = halved(y[1:])
        return torch.cat([self.last(z), y])


class GivenInExpression(Base):
    """An expression that changes a tensor, and is a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        scale = 1 + float(y.sub_(0.5).detach().abs().numpy().max())
        return self.last(y) * scale


class GivenTwice(Base):
    """Two variables hold the one tensor that the statement may change and assign."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = z = self.first(x)
        while z.abs().max() > 0.5:
            z *= 0.5
            z = z * 0.5
        return self.last(z) + y


class TorchsFunction(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = z = self.first(x)
        while z.abs().max() > 0.5:
            z = tanh(z) * 0.5
        return self.last(z) + y


NETS = (Loop, LoopWithModule, Appended, Rounds, NumPy, InPlace, Several, Text, Tried, CallersList, GivenModule, GivenFunction,
        GivenAndReturned, GivenThroughView, GivenInExpression, GivenTwice, TorchsFunction)  # fmt: skip
SCRIPTED = (
    Loop,
    InPlace,
    Text,
    GivenFunction,
    GivenAndReturned,
    GivenThroughView,
    GivenTwice,
    TorchsFunction,
)  # others: torch.jit says why
OUTER = {Rounds: 1, CallersList: 1}  # linears outside the statement; else both


def inputs(i: int) -> torch.Tensor:
    return torch.randn(5, 8) * (0.3, 1, 2)[i % 3] + (0, 0.5, -1)[i % 3]


def traced(model: nn.Module, x: torch.Tensor) -> Traced:
    return trace(model, (x,), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))


def same(a: Any, b: Any) -> bool:
    return all(map(torch.equal, a, b)) if isinstance(a, tuple) else torch.equal(a, b)


@pytest.mark.parametrize("example", range(3))
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_the_graph_does_what_the_code_does(net: type[Base], example: int) -> None:
    model = net().eval()
    torch.manual_seed(example)
    result = traced(model, inputs(example))
    assert {remark.kind for remark in result.remarks} <= {"float-statement", "data-branch"}
    assert any(remark.kind == "float-statement" for remark in result.remarks)
    for i in range(15):
        x = inputs(i)
        before = x.clone()
        assert same(result.graph_module(x), model(x)) and torch.equal(x, before)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_all_else_is_int8_and_travels(net: type[Base], tmp_path: Path) -> None:
    model = net().eval()
    got = qc.quantize(model, [inputs(i) for i in range(6)], progress=False)
    explanation = qc.explain(got)
    assert len([row for row in explanation.rows if row.op == "linear" and row.int8]) >= OUTER.get(net, 2)
    assert [row.code for row in explanation.rows if not row.counted and row.code != "float-statement"] == []
    assert "as it stands" in str(explanation) or "as they stand" in " ".join(str(explanation).split())
    xs = [inputs(i) for i in range(3)]
    expected = [got(x) for x in xs]
    with pytest.warns(MissingModulesWarning):
        needed = qc.save(got, tmp_path / "m")
    modules = dict(got.named_modules()) | got.__dict__["_externals"]
    loaded = qc.load(tmp_path / "m", modules={name: modules[name] for name in needed})
    for form in (copy.deepcopy(got), pickle.loads(pickle.dumps(got)), loaded):
        assert all(same(form(x), y) for x, y in zip(xs, expected, strict=True))


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_scripts_have_them_or_say_why_not(net: type[Base]) -> None:
    got = qc.quantize(net().eval(), [inputs(i) for i in range(6)], progress=False)
    if net in SCRIPTED:
        script = torch.jit.script(got)
        assert all(same(script(x), got(x)) for x in map(inputs, range(3)))
    else:
        with pytest.raises(ConfigError, match="cannot compile a statement") as caught:
            torch.jit.script(got)
        assert "test_float_statements.py" in str(caught.value.where.source)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_training_runs_them(net: type[Base]) -> None:
    prepared = qc.prepare_qat_fx(net().train(), None, (inputs(1),))
    for i in range(3):
        result = prepared(inputs(i))
        (sum(r.square().mean() for r in result) if isinstance(result, tuple) else result.square().mean()).backward()
    assert all(p.grad is not None for name, p in prepared.named_parameters() if name.startswith(("first.", "last.")))
    got, x = qc.convert_fx(copy.deepcopy(prepared)), inputs(1)
    expected, result = prepared.eval()(x), got(x)
    for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (expected, result)), strict=True):
        assert sqnr(a, b) > 25  # equal but for steps


def test_a_module_in_a_statement_keeps_its_state_and_starts_as_the_float_model_did() -> None:
    model, got = Kept().eval(), qc.quantize(Kept().eval(), [inputs(i) for i in range(3)], progress=False)
    for i in range(3):
        x = inputs(i)
        assert sqnr(model(x), got(x)) > 10  # less at each call: the range is the first call's
    assert int(got.get_buffer("counts.calls")) == 3 == int(model.counts.calls)


def test_the_code_of_the_model_is_its_own_again() -> None:
    before = Loop.forward.__code__, Text.forward.__code__
    for net in (Loop, Text):
        traced(net().eval(), inputs(0))
    assert before == (Loop.forward.__code__, Text.forward.__code__)


def test_other_threads_run_the_code_as_it_is() -> None:
    model, failed, done = Loop().eval(), list[BaseException](), threading.Event()
    expected = [(x, model(x)) for x in map(inputs, range(3))]

    def work() -> None:
        try:
            while not done.is_set():
                assert all(torch.equal(model(x), y) for x, y in expected)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for i in range(5):
            traced(Loop().eval(), inputs(i))
    finally:
        done.set()
        thread.join()
    assert not failed


class SecondName(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = [self.first(x)]
        other = {"out": out}
        if x.sum() > 0:
            out.append(x)
        return torch.cat(other["out"])


class Attribute(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.sum() > 1:
            self.steps = self.steps + 1
            x = x / 2
        return self.first(x)


class Shared(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        while y.abs().max() > 0.5:
            y = self.first(y) / 4
        return y


class OneMemory(Base):
    """A statement that changes one of two variables which are one tensor, and reads the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = self.other(y)
        while z.abs().max() > 0.5:
            z.mul_(0.5), y.add_(0)
        return self.last(y)

    def other(self, y: torch.Tensor) -> torch.Tensor:
        return y


class OneMemoryViewed(OneMemory):
    def other(self, y: torch.Tensor) -> torch.Tensor:
        return y.expand(-1, 8)


class OneMemoryAtOtherSizes(OneMemory):
    def other(self, y: torch.Tensor) -> torch.Tensor:
        return y.mT.reshape(-1, 4)


REFUSED: dict[type[Base], str] = {
    SecondName: "has a second name", Attribute: "assigns an attribute", Shared: "is used elsewhere",
    **dict.fromkeys((OneMemory, OneMemoryViewed, OneMemoryAtOtherSizes), "it changes `[yz]`, which may share its memory with `[yz]`"),
}  # fmt: skip


@pytest.mark.parametrize("net", REFUSED, ids=lambda net: net.__name__)
def test_what_the_graph_would_not_see_is_refused(net: type[Base]) -> None:
    with pytest.raises(TraceError, match=REFUSED[net]):
        traced(net().eval(), torch.rand(5, 8) + 1)


def test_a_refused_statement_leaves_its_module_float() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Shared(), nn.Linear(8, 8)).eval()
    got = qc.quantize(model, [inputs(i) for i in range(3)], progress=False)
    (leaf,) = (remark for remark in qc.remarks(got) if remark.code == "leaf")
    assert leaf.where.module_path == "1" and "used elsewhere" in leaf.text


def test_values_that_may_share_memory_are_not_changed_in_silence() -> None:
    class Net(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = z = self.first(x)
            while z.abs().max() > 0.5:
                z = z / 2
            z.add_(1)  # y as well, where there was no round
            return self.last(y) + z

    model = Net().eval()
    with pytest.raises(TraceError, match="may share its memory"):
        traced(model, inputs(0))


class Holds(nn.Module):
    """Its forward gives a part of what it is given."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> Any:
        return self.part(x)


@pytest.mark.parametrize("of_result", [False, True])
@pytest.mark.parametrize("part", [lambda y: y, lambda y: y[:, :4], lambda y: {"a": (y + 1, y.mT)}], ids=["all", "half", "nested"])
def test_what_a_module_gives_of_its_argument_is_not_changed_in_silence(part: Any, of_result: bool) -> None:
    class Net(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            z = self.holds(y)
            (z["a"][1] if isinstance(z, dict) else z).mul_(2) if of_result else y.mul_(2)
            return self.last(y) + (z["a"][1].sum() if isinstance(z, dict) else z.sum())

    model = Net().eval()
    model.holds = Holds(part)
    x = inputs(0)
    options = TraceOptions(lambda module, path: type(module).__module__.startswith("torch.nn.") or path == "holds")
    with pytest.raises(TraceError, match="may share its memory with one that was changed in place"):
        trace(model, (x,), options=options)
    if part(x) is x:  # a scripted module is such a one
        model.holds = torch.jit.script(nn.Sequential(nn.Identity()))
        with pytest.raises(TraceError, match="may share its memory with one that was changed in place"):
            traced(model, x)


def test_strict_refuses_them() -> None:
    with pytest.raises(TraceError, match="depends on data"):
        qc.prepare_fx(Loop().eval(), None, (inputs(0),), strict=True)


def test_one_function_for_layers_of_one_class() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Loop() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    result = traced(Deep().eval(), inputs(0))
    calls = [node.target for node in result.graph_module.graph.nodes if "statement" in str(node.target)]
    assert len(calls) == 3 and len(set(calls)) == 1
    assert [remark.where.module_path for remark in result.remarks] == [f"layers.{i}" for i in range(3)]


class FloatOfMean(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.first(x) + float(x.numpy().mean() * 0.5))


class FloatOfNumPysMean(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.first(x) * float(np.mean(x.detach().cpu().numpy()) * 0.1 + 1))


class FromNumPy(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.first(x) + torch.from_numpy(np.abs(x.numpy() * 2).clip(0, 1).astype(np.float32)))


@pytest.mark.parametrize("net", [FloatOfMean, FloatOfNumPysMean, FromNumPy])
def test_layers_in_the_same_line_stay_int8(net: type[Base]) -> None:
    """The smallest expression with a value that a graph has is the float part, however deep it stands in its line."""
    model, x = net().eval(), torch.randn(4, 8)
    small = qc.quantize(model, [x, x * 2], progress=False)
    assert [row.int8 for row in qc.explain(small).rows if row.op == "linear"] == [True, True]
    assert sqnr(model(x * 1.5), small(x * 1.5)) > 25


def test_functions_that_gc_holds_frozen_are_found() -> None:
    """What `gc.freeze` was called on before is in no list of objects."""
    before = gc.get_freeze_count()
    gc.freeze()
    try:
        result = traced(Loop().eval(), inputs(0))
        assert [remark.kind for remark in result.remarks] == ["float-statement"] and gc.get_freeze_count()
    finally:
        if not before:  # the tests' own
            gc.unfreeze()


def test_a_file_that_was_run_twice(tmp_path: Path) -> None:
    """Its two functions have one code and two namespaces: both run as they stand."""
    file = tmp_path / "halves.py"
    file.write_text("def halves(x):\n    while x.abs().max() > 1:\n        x = x / 2\n    return x\n")
    first, second = (runpy.run_path(str(file))["halves"] for _ in range(2))

    class Both(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = second(self.last(first(self.first(x))))
            return result

    model, x = Both().eval(), torch.randn(4, 8, generator=torch.Generator().manual_seed(0)) * 4
    made = qc.quantize(model, [x], progress=False)
    assert sqnr(model(x), made(x)) > 30 and "2 of 8 calls on int8" in repr(made)


def test_a_variable_that_is_only_added_to_behind_a_statement_is_known() -> None:
    """`a += 1` reads `a`. Here it would change what a view shares, which is the error, and not that there is no such variable."""

    class Net(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n = int((x.abs() >= 0).float().mean() * 8 + 0.5)
            y = self.first(x)[:, : n - 1].clone()
            a, _ = y.chunk(2, 1) if y.size(1) > 1 else (y, y)
            a += 0.25
            return y * 2

    with pytest.raises(TraceError, match="share its memory with one that was changed in place"):
        traced(Net(), inputs(0))
