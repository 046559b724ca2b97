"""A user's own op rows, kernel, fusion rule and pass, each from prepare to a saved file: those of examples/custom_op.py, and others."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import ConfigError, QConfigMapping, explain, fuse_fx, get_default_qconfig, load, remarks, save
from qcompiler.backends.torch.kernels import table as kernels
from qcompiler.compile.pass_manager import Context
from qcompiler.compile.rewrite import Link, Match, Rule
from qcompiler.debug import compute_sqnr
from qcompiler.errors import PassError
from qcompiler.ir.types import Stage
from qcompiler.ops.spec import Op, Output, Param, Spelling
from qcompiler.ops.table import OPS, Table
from tests.flow import ENGINES, Flow, flow, randn, targets

X = randn(2, 3, 8, 8)


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    path = Path(__file__).resolve().parent.parent / "examples" / "custom_op.py"
    spec = importlib.util.spec_from_file_location("custom_op_example", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def sinc_kernel(example: ModuleType) -> Iterator[None]:
    kernels.register(example.SINC_KERNEL)
    yield
    del kernels.TABLE["sinc"]


def with_rows(*rows: Op) -> Table:
    table = OPS.copy()
    for row in rows:
        table.add(row)
    return table


class Between(nn.Module):
    """An op between two convolutions."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.first, self.second, self.op = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), op

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.op(self.first(x)))  # type: ignore[no-any-return]


def between(op: Any, **options: Any) -> tuple[nn.Module, Flow]:
    torch.manual_seed(0)
    model = Between(op).eval()
    result = flow(model, (X,), **options)
    with torch.no_grad():
        assert compute_sqnr(model(X), result.module(X)) >= 28
        assert compute_sqnr(result.reference(X), result.module(X)) >= 40
    return model, result


def reread(result: Flow, path: Path, modules: dict[str, Any] | None = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if modules else "error")
        save(result.module, path)
    assert torch.equal(load(path, modules)(X), result.module(X))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_elementwise_row_is_a_table(example: ModuleType, engine: str, tmp_path: Path) -> None:
    _, result = between(example.Snake(0.5), table=with_rows(example.SNAKE), engine=engine)
    assert all(row.int8 for row in explain(result.module).rows)
    assert "lookup" in targets(result.module.lowered.graph)  # type: ignore[union-attr]
    reread(result, tmp_path / "snake.qc")  # a table is data: the file needs no function
    assert "snake" not in OPS.rows


def test_without_the_row_it_is_several_ops(example: ModuleType) -> None:
    _, result = between(example.Snake(0.5))
    ops = [row.op for row in explain(result.module).rows]
    assert "snake" not in ops and {"sin", "add"} <= set(ops)


@pytest.mark.parametrize("function", [torch.i0, torch.deg2rad, torch.rad2deg])
def test_a_row_for_a_function_of_torch(function: Any) -> None:
    name = function.__name__
    row = Op(name=name, fn=function, signature="x", params=(Param("x"),), output=Output.OWN, elementwise=True,
             spellings=(Spelling(function, "input:x"), name))  # fmt: skip
    for spelled in (function, lambda x: getattr(x, name)()):
        _, result = between(spelled, table=with_rows(row))
        assert all(r.int8 for r in explain(result.module).rows)
    none = QConfigMapping().set_global(get_default_qconfig()).set_object_type(function, None)
    _, result = between(function, table=with_rows(row), mapping=none)
    assert [r.op for r in explain(result.module).rows if not r.int8] == [name]


@pytest.mark.usefixtures("sinc_kernel")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_with_its_own_kernel(example: ModuleType, engine: str, tmp_path: Path) -> None:
    _, result = between(torch.sinc, table=with_rows(example.SINC), engine=engine)
    assert all(row.int8 for row in explain(result.module).rows)
    assert "sinc_int8" in targets(result.module.lowered.graph)  # type: ignore[union-attr]
    names = result.module.program.externals
    assert len(names) == 1
    reread(result, tmp_path / "sinc.qc", {names[0]: example.sinc_int8})


def test_a_row_without_a_kernel_stays_float(example: ModuleType) -> None:
    _, result = between(torch.sinc, table=with_rows(example.SINC))
    row = next(r for r in explain(result.module).rows if r.op == "sinc")
    assert not row.int8 and "no int8 kernel for sinc" in row.reason


def test_a_spelling_can_be_claimed_once(example: ModuleType) -> None:
    table = with_rows(example.SINC)
    with pytest.raises(ConfigError) as caught:
        table.add(example.SINC)
    assert caught.value.code == "op-claimed-twice"
    table.remove("sinc")
    table.add(example.SINC)


@pytest.mark.parametrize("factor", [0.5, -2])
@pytest.mark.parametrize("first", [True, False])
def test_a_rule(example: ModuleType, factor: float, first: bool) -> None:
    torch.manual_seed(0)
    scaled = (lambda x: factor * x) if first else (lambda x: x * factor)
    model = Between(scaled).eval()
    fused = fuse_fx(model, (X,), rules=(example.FOLD_FACTOR,))
    with torch.no_grad():
        assert torch.allclose(fused(X), model(X), atol=1e-5)
    assert "mul" not in targets(fused.graph) and "mul" in targets(fuse_fx(model, (X,)).graph)
    _, result = between(scaled, rules=(example.FOLD_FACTOR,))
    assert [r.op for r in explain(result.module).rows] == ["conv2d", "conv2d"]


def test_a_refused_match_becomes_a_remark(example: ModuleType) -> None:
    _, result = between(lambda x: x * x.mean(), rules=(example.FOLD_FACTOR,))
    found = [r for r in remarks(result.prepared) if r.text.startswith("fold_factor")]
    assert {r.code for r in found} <= {"not-a-number", "several-users"} and found


def test_a_rule_without_an_end_is_named() -> None:
    def twist(match: Match, relu: fx.Node) -> None:
        with match.gm.graph.inserting_after(relu):
            again = match.gm.graph.call_function(torch.relu, (relu.args[0],))
        relu.replace_all_uses_with(again)

    rule = Rule("twist", (Link("relu", ("relu",)),), twist)
    with pytest.raises(PassError, match="twist does not come to an end"):
        fuse_fx(nn.Sequential(nn.MaxPool2d(2), nn.ReLU()).eval(), (X,), rules=(rule,))


def test_a_pass(example: ModuleType) -> None:
    torch.manual_seed(0)
    model = Between(F.silu).eval()
    result = flow(model, (X,), passes=(example.CheaperSilu(),))
    rows = explain(result.module).rows
    assert [r.op for r in rows] == ["conv2d", "hardswish", "conv2d"] and all(r.int8 for r in rows)
    assert [r.text for r in remarks(result.prepared) if r.pass_name == "cheaper_silu"] == ["silu became hardswish"]


@dataclass(frozen=True)
class Broken:
    """A pass that leaves an invalid graph, or raises."""

    raises: bool
    name: str = "broken"
    stage: Stage = Stage.FUSED

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        if self.raises:
            raise KeyError("oops")
        first, last = (nodes := [n for n in gm.graph.nodes if n.op == "call_function"])[0], nodes[-1]
        first.args = (last, *first.args[1:])
        return True


@pytest.mark.parametrize("raising", [True, False])
def test_a_broken_pass_is_named(raising: bool) -> None:
    with pytest.raises(PassError, match="broken") as caught:
        between(F.silu, passes=(Broken(raising),))
    assert caught.value.code == ("pass-failed" if raising else "invalid-ir")
