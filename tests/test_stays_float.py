"""What stays float, and what follows from it: no int8 op meets a value that nobody quantizes, whatever made it float.

Over the op table: each op of a fixed range, each op that keeps its input's range behind it, each op that takes the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import (
    CalibrationError,
    calibrate,
    convert_fx,
    convert_to_reference_fx,
    explain,
    load,
    prepare_fx,
    prepare_qat_fx,
    remarks,
    save,
)
from qcompiler.backends.torch.kernels.table import Refused, select
from qcompiler.backends.torch.passes import lowering
from qcompiler.compile.pass_manager import Context, run_passes
from qcompiler.debug import compute_sqnr
from qcompiler.errors import PassError
from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ops.example import Example
from qcompiler.ops.spec import Op, Output, Role
from qcompiler.ops.table import OPS
from qcompiler.passes.freeze_qparams import FreezeQParams
from qcompiler.passes.insert_quantize_dequantize import InsertQuantizeDequantize
from qcompiler.prepared.module import state_of
from qcompiler.stages.verify import verify
from tests.flow import ENGINES, flow, randn

FIXED = tuple(row for row in OPS.rows.values() if row.output is Output.FIXED)
SAME = tuple(row for row in OPS.rows.values() if row.output is Output.SAME and not row.identity({"training": False, "p": 0.5}))
LINEAR = OPS.rows["linear"]
DEFAULT = Example()
TAKES = tuple(row for row in OPS.rows.values() if row.output in (Output.OWN, Output.FIXED, Output.JOIN)
              and (row.weight is None or "weight" in (row.example or DEFAULT).tensors)
              and not (row.example or DEFAULT).positive)  # fmt: skip
JUMPS = ("round", "threshold", "hardshrink")  # a step of the input makes a jump of the result
RANDOM = ("dropout", "stochastic_depth")
LOWEST = 24.0  # dB: three roundings to 8 bits at about 40 dB each, of which the steps of 1/256 use a half or a quarter of their range


@dataclass(frozen=True)
class Branch:
    """fixed op -> an op that keeps its range -> an op that takes that, in a model of many such branches."""

    fixed: Op
    same: Op
    takes: Op

    @property
    def name(self) -> str:
        return f"{self.fixed.name}_{self.same.name}_{self.takes.name}"

    @property
    def is_linear(self) -> bool:
        return self.takes.name == "linear"  # each branch ends with one

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the values in front of the op that keeps their range: as the branch's op wants them."""
        return case_of(self.same if self.is_linear else self.takes).inputs


def case_of(row: Op) -> Example:
    return row.example or DEFAULT


def attributes_of(row: Op) -> dict[str, Any]:
    return {"dim": -1} if row.name == "softmax" else dict(case_of(row).attributes)


def kept(row: Op, x: Tensor) -> Tensor:
    """An op that keeps its input's range, with the settings of its case."""
    result = row.fn(x, **attributes_of(row))
    return result if case_of(row).pick is None else result[case_of(row).pick]


class Branches(nn.Module):
    """Many branches behind one input of (2, 16), each with an int8 linear at its end."""

    def __init__(self, branches: list[Branch]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches, self.weights, self.before = branches, nn.ParameterDict(), nn.ModuleDict()
        for branch in branches:
            for i, shape in enumerate(branch.shapes):
                key = f"{branch.fixed.name}{i}{shape}"
                self.before[key] = self.before[key] if key in self.before else nn.Linear(16, prod(shape[1:]))
            for name, size in case_of(branch.takes).tensors.items() if not branch.is_linear else ():
                value = torch.randn(size)
                self.weights[f"{branch.name}_{name}"] = nn.Parameter(value.abs() + 0.5 if name == "var" else value)
            with torch.no_grad():
                width = self.run(branch, torch.rand(2, 16)).shape[-1]
            self.weights[f"{branch.name}_last"] = nn.Parameter(torch.randn(6, width))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {branch.name: F.linear(self.run(branch, x), self.weights[f"{branch.name}_last"]) for branch in self.branches}

    def run(self, branch: Branch, x: Tensor) -> Tensor:
        made = [self.before[f"{branch.fixed.name}{i}{shape}"](x).reshape(shape) for i, shape in enumerate(branch.shapes)]
        inputs = [kept(branch.same, branch.fixed.fn(v, **attributes_of(branch.fixed))) for v in made]
        return inputs[0] if branch.is_linear else self.take(branch, inputs)

    def take(self, branch: Branch, inputs: list[Tensor]) -> Tensor:
        row = branch.takes
        values: list[Any] = [inputs] if row.params[0].role is Role.ACTIVATIONS else list(inputs)
        keys = [f"{branch.name}_{param.name}" for param in row.params]
        args: list[Any] = [self.weights[key] if key in self.weights else values.pop(0) if values else None for key in keys]
        while args[-1] is None:
            args.pop()
        return row.fn(*args, **attributes_of(row))  # type: ignore[no-any-return]


def keeping(fixed: Op) -> list[Branch]:
    """The op in front of each op that keeps a range."""
    return [Branch(fixed, same, LINEAR) for same in SAME]


def taking(fixed: Op) -> list[Branch]:
    """The op in front of each op that takes int8 values and gives some on another scale."""
    return [Branch(fixed, OPS.rows["contiguous"], takes) for takes in TAKES]


def worst(model: Branches, module: nn.Module, x: Tensor) -> tuple[float, str]:
    """The branch with the lowest SQNR, of those that do not jump."""
    with torch.no_grad():
        wanted, found = model(x), module(x)
    smooth = [b.name for b in model.branches if case_of(b.takes).smooth and b.takes.name not in JUMPS]
    return min((compute_sqnr(wanted[name], found[name]), name) for name in smooth)


def linears_int8(module: nn.Module) -> bool:
    return all(row.int8 for row in explain(module).rows if row.op == "linear")


def check(branches: list[Branch], engine: str) -> None:
    model, x = Branches(branches).eval(), randn(2, 16)
    prepared = prepare_fx(model, None, (x,), engine=engine)
    calibrate(prepared, [x])
    module = convert_fx(prepared)
    assert linears_int8(module)
    assert worst(model, module, x)[0] >= LOWEST, worst(model, module, x)


def pairs(fast: int) -> list[Any]:
    """Each engine with each op; all but `fast` of them are slow tests."""
    quick = [(engine, FIXED[i]) for i, engine in enumerate(ENGINES)][:fast]
    return [pytest.param(engine, row, id=f"{engine}-{row.name}", marks=() if (engine, row) in quick else pytest.mark.slow)
            for engine in ENGINES for row in FIXED]  # fmt: skip


@pytest.mark.parametrize(("engine", "fixed"), pairs(4))
def test_each_op_of_a_fixed_range_before_each_that_keeps_a_range(engine: str, fixed: Op) -> None:
    check(keeping(fixed), engine)


@pytest.mark.parametrize(("engine", "fixed"), pairs(2))
def test_each_op_of_a_fixed_range_before_each_that_takes_int8(engine: str, fixed: Op) -> None:
    check(taking(fixed), engine)


@pytest.mark.parametrize(("engine", "fixed"), pairs(2))
def test_the_same_in_training(engine: str, fixed: Op) -> None:
    """Parity is checked by convert_fx."""
    model, x = Branches([b for b in keeping(fixed) if b.same.name not in RANDOM]).train(), randn(2, 16)
    prepared = prepare_qat_fx(model, None, (x,), engine=engine)
    sum(y.square().sum() for y in prepared(x).values()).backward()
    module = convert_fx(prepared)
    assert linears_int8(module)
    assert worst(model.eval(), module, x)[0] >= LOWEST - 2, worst(model, module, x)  # weights were rounded once more


# ---- small models, the whole way


def tanh_lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))  # fmt: skip


def behind(fixed: nn.Module, *same: nn.Module, width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), fixed, *same, nn.Linear(width, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "unflatten": (lambda: nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Unflatten(1, (2, 8)), nn.Linear(8, 4)), (4, 16)),
    "lenet": (tanh_lenet, (4, 1, 16, 16)),
    "pool": (lambda: behind(nn.Sigmoid(), nn.AdaptiveAvgPool2d(2), nn.Flatten()), (4, 1, 16, 16)),
    "max pool": (lambda: behind(nn.Softmax2d(), nn.MaxPool2d(8), nn.Flatten()), (4, 1, 16, 16)),
    "shared": (lambda: shared_tanh(), (4, 16)),
}


def shared_tanh() -> nn.Module:
    """One module at two places: a group of its own at each."""
    tanh, flat = nn.Tanh(), nn.Flatten()
    return nn.Sequential(nn.Linear(16, 16), tanh, flat, nn.Linear(16, 16), tanh, flat, nn.Linear(16, 4))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_small_models(name: str, engine: str, tmp_path: Path) -> None:
    """Right, whole in int8, and the same after a copy, a save and a script, at another batch size as well."""
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = build().eval(), randn(*shape)
    module = flow(model, (x,), engine=engine).module
    assert linears_int8(module) and compute_sqnr(model(x), module(x)) >= LOWEST
    save(module, tmp_path / "m.qc")
    others = (load(tmp_path / "m.qc"), copy.deepcopy(module), torch.jit.script(module))
    for size in (x, x[:1], torch.cat([x, x])):
        assert all(torch.equal(other(size), module(size)) for other in others)


# ---- what changes its mind after the decision


class Proposals(nn.Module):
    """A branch that sees no rows in calibration, between values that see some."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.between = between

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        y = self.between(self.b(chosen))
        result: Tensor = self.c(torch.cat([torch.relu(self.a(x)), y], 0).view(-1, 8))
        return result


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "view": lambda y: y.view(-1, 8), "both": lambda y: torch.sigmoid(y).reshape(-1, 8), "relu": torch.relu,
    "add": lambda y: y + y.tanh(), "parts": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BETWEEN)
def test_what_no_data_reached_stays_float_with_all_that_follows(name: str, engine: str) -> None:
    torch.manual_seed(0)
    model, x = Proposals(BETWEEN[name]).eval(), randn(6, 8)
    prepared = prepare_fx(model, None, (x, x), engine=engine)
    calibrate(prepared, [(x, x[:0])])
    with pytest.raises(CalibrationError, match="saw no data"):
        convert_fx(prepared)
    module = convert_fx(prepared, allow_uncalibrated="float")
    rows = {row.node: row for row in explain(module).rows}
    fixed = name in ("tanh", "both")  # a float value whose range needs no data: it is quantized for the cat
    assert rows["a"].int8 and rows["c"].int8 and not rows["b"].int8
    assert all(row.int8 == fixed for row in rows.values() if row.op == "cat")
    assert compute_sqnr(model(x, x[:0]), module(x, x[:0])) >= LOWEST and module(x, x).shape == (12, 8)
    codes = {row.node: row.code for row in rows.values() if not row.int8}
    assert codes["b"] == "uncalibrated" and set(codes.values()) <= {"uncalibrated", "float-input"}
    assert {(r.node, r.code) for r in remarks(module)} >= set(codes.items())


def lost() -> nn.Module:
    """A layer that the test leaves without a kernel."""
    return nn.ConvTranspose2d(4, 4, 2, stride=2)


NO_KERNEL: dict[str, Callable[[], nn.Module]] = {
    "result": lambda: nn.Sequential(lost()),
    "copies": lambda: nn.Sequential(lost(), nn.MaxPool2d(2), nn.Flatten()),
    "computes": lambda: nn.Sequential(lost(), nn.Tanh(), nn.AvgPool2d(2)),
    "conv": lambda: nn.Sequential(lost(), nn.Hardswish(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)),
    "two": lambda: nn.Sequential(lost(), nn.LeakyReLU(), lost(), nn.Sigmoid()),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NO_KERNEL)
def test_what_follows_an_op_without_a_kernel_is_float_until_an_op_with_weights(
    name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Refused(("the test holds it back",))
    monkeypatch.setattr(lowering, "select", lambda site, wrong=(): refused if site.op.name == "conv_transpose2d" else select(site, wrong))
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 4, 1), *NO_KERNEL[name]()).eval(), randn(2, 4, 5, 5)
    module = flow(model, (x,), engine=engine).module
    rows = explain(module).rows
    assert {row.op for row in rows if row.int8} == {"conv2d"}
    assert rows[-1].int8 == (name == "conv") and compute_sqnr(model(x), module(x)) >= 30
    assert module.code.count("quantize_per_tensor(") == 1 + (name == "conv"), "what no int8 op takes is not rounded"
    assert {"no-kernel"} <= {remark.code for remark in remarks(module)} <= {"no-kernel", "float-input", "float-readers", "calibration-few"}


# ---- what a pass that breaks the rule meets


def pooled() -> fx.GraphModule:
    """conv - pool - conv, calibrated."""
    prepared = prepare_fx(nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)).eval(), None, (randn(1, 3, 4, 4),))
    calibrate(prepared, [randn(1, 3, 4, 4)])
    return prepared


def forget(gm: fx.GraphModule, **changes: Any) -> None:
    node = next(n for n in gm.graph.nodes if n.name == "_1")
    node.meta[QUANT] = quant_of(node).with_(qparams=None, **changes)


def test_an_int8_op_without_qparams_is_named_by_the_verifier() -> None:
    gm = convert_to_reference_fx(pooled())
    verify(gm, Stage.QUANTIZED)
    forget(gm)
    with pytest.raises(PassError, match="%_1 is int8 and has no qparams"):
        verify(gm, Stage.QUANTIZED, after="x")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "%_1 is int8 and has no qparams"),
        ({"int8": False, "reason": "it changed its mind"}, "int8 op %_2 takes %_1, which nothing quantizes"),
    ],
)
def test_a_producer_that_changed_its_mind_alone_is_named(changes: dict[str, Any], text: str) -> None:
    gm = pooled()
    context = Context(state_of(gm).settings)  # type: ignore[union-attr]
    run_passes(gm, (FreezeQParams(),), Stage.OBSERVED, context)
    forget(gm, **changes)
    with pytest.raises(PassError, match=text):
        run_passes(gm, (InsertQuantizeDequantize(),), Stage.OBSERVED, context)


class OtherBias(nn.Module):
    """The weight of an int8 linear, once more with a bias that data, or the parameters of others, make."""

    def __init__(self, bias: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.other, self.bias = nn.Linear(8, 8), nn.Linear(8, 4), bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return nn.functional.linear(y, self.first.weight, self.bias(self, y))


BIASES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "data": lambda m, y: y.mean(0),
    "parameters": lambda m, y: torch.cat([m.other.bias, m.other.bias]),
}


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_bias_that_is_computed(backend: str, bias: str, trains: bool) -> None:
    """It cannot be packed with the weight: the op stays float and says so, and reads the weight's floats beside the integers."""
    torch.manual_seed(0)
    model, x = OtherBias(BIASES[bias]).train(trains), torch.randn(6, 8)
    prepared = (prepare_qat_fx if trains else prepare_fx)(model, None, (x,), backend=backend)
    prepared(x)
    module = convert_fx(prepared.eval())
    last = explain(module).rows[-1]
    folded = bias == "parameters" and not trains
    assert (last.int8, last.code) == ((True, "") if folded else (False, "computed-bias"))
    with torch.no_grad():
        assert compute_sqnr(model.eval()(x), module(x)) > 30
