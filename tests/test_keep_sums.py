"""A function that alone reads the result of a convolution or linear takes its sums: nothing is rounded between the two."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import qcompiler
from qcompiler import calibrate, convert_fx, convert_to_reference_fx, prepare_fx
from qcompiler.debug import compute_sqnr
from qcompiler.ir.types import quant_of
from tests.native_layers import steps_apart, watched

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def norm(kind: type[nn.Module], channels: int) -> nn.Module:
    made: Any = kind(channels)
    with torch.no_grad():
        made.running_mean.normal_(0, 0.3)
        made.running_var.uniform_(0.3, 2.0)
        made.weight.normal_(0, 1.0)
        made.bias.normal_(0, 0.3)
    return nn.Module.eval(made)


class Net(nn.Module):
    """An op with a weight, a function, and a reader that takes integers."""

    def __init__(self, op: nn.Module, function: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.op, self.function, self.last = op, function, last

    def forward(self, x: Tensor) -> Any:
        return self.last(self.function(self.op(x)))


def conv(**settings: Any) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    return nn.Conv2d(8, 12, 3, **settings), nn.Conv2d(12, 5, 1), (3, 8, 9, 7)


def depthwise(**settings: Any) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    return nn.Conv2d(12, 12, 3, groups=12, **settings), nn.Conv2d(12, 5, 1), (3, 12, 9, 7)


def transposed(**settings: Any) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    return nn.ConvTranspose2d(8, 12, 3, **settings), nn.Conv2d(12, 5, 1), (3, 8, 9, 7)


FUNCTIONS: dict[str, nn.Module] = {
    "silu": nn.SiLU(), "gelu": nn.GELU(), "gelu by tanh": nn.GELU("tanh"), "mish": nn.Mish(), "hardswish": nn.Hardswish(),
    "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "hardsigmoid": nn.Hardsigmoid(), "elu": nn.ELU(), "steep elu": nn.ELU(3.0),
    "softplus": nn.Softplus(),
}  # fmt: skip


def slopes(channels: int) -> nn.Module:
    made = nn.PReLU(channels)
    nn.init.uniform_(made.weight, -0.3, 1.2)
    return made


def behind(function: Callable[[Tensor], Tensor], last: nn.Module) -> Callable[[Tensor], Tensor]:
    return nn.Sequential(function, last) if isinstance(function, nn.Module) else lambda x: last(function(x))


CASES: dict[str, Callable[[], tuple[nn.Module, nn.Module, tuple[int, ...], Any]]] = {
    "prelu": lambda: (*conv(), slopes(12)),
    "prelu of one slope": lambda: (*conv(), slopes(1)),
    "prelu, padding, stride": lambda: (*conv(padding=1, stride=2), slopes(12)),
    "prelu, groups": lambda: (*conv(groups=4), slopes(12)),
    "prelu, no bias": lambda: (*conv(bias=False), slopes(12)),
    "leaky relu": lambda: (*conv(), nn.LeakyReLU(0.2)),
    **{name: lambda function=function: (*conv(), function) for name, function in FUNCTIONS.items()},  # type: ignore[misc]
    "batch norm behind relu": lambda: (*conv(), nn.Sequential(nn.ReLU(), norm(nn.BatchNorm2d, 12))),
    "batch norm behind relu6": lambda: (*conv(), nn.Sequential(nn.ReLU6(), norm(nn.BatchNorm2d, 12))),
    "relu behind batch norm behind relu": lambda: (*conv(), nn.Sequential(nn.ReLU(), norm(nn.BatchNorm2d, 12), nn.ReLU())),
    "one dimension": lambda: (nn.Conv1d(8, 12, 5), nn.Conv1d(12, 5, 1), (3, 8, 20), slopes(12)),
    "three dimensions": lambda: (nn.Conv3d(4, 12, 2), nn.Conv3d(12, 5, 1), (2, 4, 4, 5, 4), slopes(12)),
    "linear": lambda: (nn.Linear(20, 12), nn.Linear(12, 5), (16, 20), slopes(12)),
    "linear, batch norm": lambda: (nn.Linear(20, 12), nn.Linear(12, 5), (16, 20), nn.Sequential(nn.ReLU(), norm(nn.BatchNorm1d, 12))),
    "linear of rows, gelu": lambda: (nn.Linear(20, 12), nn.Linear(12, 5), (4, 6, 20), nn.GELU()),
    "no batch, silu": lambda: (nn.Conv2d(8, 12, 3), nn.Conv2d(12, 5, 1), (8, 9, 7), nn.SiLU()),
    "depthwise, silu": lambda: (*depthwise(padding=1), nn.SiLU()),
    "depthwise, hardswish": lambda: (*depthwise(stride=2), nn.Hardswish()),
    "depthwise, sigmoid": lambda: (*depthwise(), nn.Sigmoid()),
    "depthwise, hardsigmoid": lambda: (*depthwise(bias=False), nn.Hardsigmoid()),
    "depthwise, prelu": lambda: (*depthwise(), slopes(12)),
    "depthwise, leaky relu": lambda: (*depthwise(), nn.LeakyReLU(0.2)),
    "depthwise, batch norm behind relu6": lambda: (*depthwise(), nn.Sequential(nn.ReLU6(), norm(nn.BatchNorm2d, 12))),
    "depthwise, one dimension": lambda: (nn.Conv1d(12, 12, 5, groups=12), nn.Conv1d(12, 5, 1), (3, 12, 20), slopes(12)),
    "linear of rows, hardsigmoid": lambda: (nn.Linear(20, 12), nn.Linear(12, 5), (4, 6, 20), nn.Hardsigmoid()),
    "transposed, silu": lambda: (*transposed(stride=2, padding=1, output_padding=1), nn.SiLU()),
    "transposed, prelu": lambda: (*transposed(stride=2), slopes(12)),
    "transposed, batch norm behind relu": lambda: (*transposed(), nn.Sequential(nn.ReLU(), norm(nn.BatchNorm2d, 12))),
    "transposed, hardswish": lambda: (*transposed(stride=2), nn.Hardswish()),
    "transposed, hardsigmoid": lambda: (*transposed(stride=2), nn.Hardsigmoid()),
    "transposed, depthwise": lambda: (nn.ConvTranspose2d(12, 12, 3, stride=2, groups=12), nn.Conv2d(12, 5, 1), (3, 12, 9, 7), nn.SiLU()),
    "transposed, depthwise, prelu": lambda: (nn.ConvTranspose2d(12, 12, 2, groups=12), nn.Conv2d(12, 5, 1), (3, 12, 9, 7), slopes(12)),
}  # fmt: skip
OTHERS: dict[str, Callable[[], tuple[nn.Module, nn.Module, tuple[int, ...], Any]]] = {
    "a clamp between, silu": lambda: (*conv(), nn.Sequential(nn.Hardtanh(-0.5, 0.5), nn.SiLU())),
    "no batch": lambda: (nn.Conv2d(8, 12, 3), nn.Conv2d(12, 5, 1), (8, 9, 7), slopes(7)),
    "slopes of rows": lambda: (nn.Linear(20, 12), nn.Linear(12, 5), (4, 6, 20), slopes(6)),
    "batch norm of rows": lambda: (nn.Linear(20, 12), nn.Linear(12, 5), (4, 12, 20), nn.Sequential(nn.ReLU(), norm(nn.BatchNorm1d, 12))),
    "a clamp between": lambda: (*conv(), nn.Sequential(nn.Hardtanh(-0.5, 0.5), norm(nn.BatchNorm2d, 12))),
    "two readers": lambda: (*conv(), lambda x: F.leaky_relu(x, 0.2) + x),
    "a copy between": lambda: (*conv(), lambda x: F.leaky_relu(x.transpose(2, 3), 0.2)),
}  # fmt: skip


def made(case: Callable[[], tuple[nn.Module, nn.Module, tuple[int, ...], Any]]) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    op, last, shape, function = case()
    return Net(op, function, last).eval(), [torch.randn(shape) for _ in range(4)]


def prepared(model: nn.Module, data: list[Tensor], backend: str = "native") -> fx.GraphModule:
    found = prepare_fx(model, None, (data[0],), backend=backend)
    calibrate(found, data)
    return found


def unrounded(graph: fx.GraphModule) -> list[str]:
    """The ops in front of others whose results nobody rounds."""
    return [n.name for n in graph.graph.nodes if quant_of(n).float_output and any(quant_of(user).int8 for user in n.users)]


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_rounded_between(name: str) -> None:
    model, data = made(CASES[name])
    of_model = prepared(model, data)
    graph, module = convert_to_reference_fx(of_model), convert_fx(of_model)
    assert unrounded(graph) == ["op"]
    assert all(row.int8 for row in qcompiler.explain(module).rows)
    lines = [line for line in str(qcompiler.native_plan(module)).splitlines() if line.startswith("layer_")]
    layers = [line.split()[2] for line in lines]
    moved = {"relayout"} if "no batch" in name else set[str]()
    assert set(layers[1:-1]) <= {"conv", "linear", "depthwise", "transposed,"} | moved
    assert not any(" table" in line for line in lines)
    seen = watched(module, (data[0],), {})
    apart = steps_apart(seen.values, graph, (data[0],), {})
    assert apart and max(apart.values()) <= 1
    with torch.no_grad():
        expected, rounded = model(data[0]), convert_fx(prepared(model, data, "reference"), backend="native")(data[0])
    assert compute_sqnr(expected, seen.result) > min(compute_sqnr(expected, rounded), 33)


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_kernel_computes_in_one_go_is_rounded_as_before(name: str) -> None:
    model, data = made(OTHERS[name])
    of_model = prepared(model, data)
    graph, module = convert_to_reference_fx(of_model), convert_fx(of_model)
    assert not unrounded(graph)
    seen = watched(module, (data[0],), {})
    assert max(steps_apart(seen.values, graph, (data[0],), {}).values()) <= 1


def test_the_negative_side_costs_the_positive_one_nothing() -> None:
    """Sums of -100 to 1, of which the function leaves -1 to 1: rounded between, a step is 100 / 255, so there the convolution is float."""
    torch.manual_seed(0)
    op = nn.Conv2d(4, 8, 1)
    with torch.no_grad():
        op.weight.copy_(op.weight.abs())
    data = [torch.cat([torch.rand(1, 4, 8, 8) * 0.5, -60 * torch.rand(1, 4, 8, 8)]) for _ in range(4)]
    model = Net(op, nn.LeakyReLU(0.01), nn.Conv2d(8, 8, 1)).eval()
    with torch.no_grad():
        expected = model(data[0])
    native, other = (convert_fx(prepared(model, data, name)) for name in ("native", "torch"))
    assert float(compute_sqnr(expected, native(data[0]))) > 25 and all(row.int8 for row in qcompiler.explain(native).rows)
    assert next(row.code for row in qcompiler.explain(other).rows) == "lost-cut"


def test_a_back_end_that_rounds_between_gets_the_range_that_was_watched() -> None:
    model, data = made(CASES["prelu"])
    asked = convert_fx(prepared(model, data, "native"), backend="torch")
    own = convert_fx(prepared(model, data, "torch"))
    assert torch.equal(asked(data[0]), own(data[0]))


@pytest.mark.parametrize("kept", ["op", "function", "last"])
def test_ops_that_are_to_stay_float_after_all(kept: str) -> None:
    model, data = made(CASES["prelu"])
    of_model = prepared(model, data)
    found = convert_fx(of_model, keep_float=[kept])
    anew = prepare_fx(model, qcompiler.QConfigMapping().set_global(qcompiler.get_default_qconfig()).set_module_name(kept, None),
                      (data[0],), backend="native")  # fmt: skip
    calibrate(anew, data)
    assert torch.equal(found(data[0]), convert_fx(anew)(data[0]))


def test_a_function_that_no_pieces_are_near_is_computed_from_floats() -> None:
    """Of values up to 0.001, SiLU's step is a few millionths, while it falls off over ten."""
    torch.manual_seed(0)
    op = nn.Conv2d(4, 8, 1)
    with torch.no_grad():
        op.bias.fill_(0.0)
        op.weight.copy_(-op.weight.abs())
    data = [torch.cat([30 + torch.rand(1, 4, 8, 8), -0.001 * torch.rand(1, 4, 8, 8)]) for _ in range(4)]
    of_model = prepared(Net(op, nn.SiLU(), nn.Conv2d(8, 8, 1)).eval(), data)
    graph, module = convert_to_reference_fx(of_model), convert_fx(of_model)
    assert unrounded(graph) == ["op"] and "codes of silu" in str(qcompiler.native_plan(module))
    seen = watched(module, (data[0],), {})
    assert max(steps_apart(seen.values, graph, (data[0],), {}).values()) <= 1


def test_training_rounds_between() -> None:
    model, data = made(CASES["prelu"])
    trained = qcompiler.prepare_qat_fx(model.train(), None, (data[0],), backend="native")
    trained(data[0])
    assert not unrounded(convert_to_reference_fx(trained.eval()))


@pytest.mark.parametrize("name", ["batch norm behind relu6", "depthwise, silu", "transposed, silu"])
def test_a_file_computes_the_same(name: str, tmp_path: Any) -> None:
    model, data = made(CASES[name])
    module = convert_fx(prepared(model, data))
    qcompiler.save(module, tmp_path / "m.qc")
    assert torch.equal(qcompiler.load(tmp_path / "m.qc")(data[0]), module(data[0]))


def test_a_result_that_is_handed_out_too_is_rounded() -> None:
    torch.manual_seed(0)

    class Both(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.op(x)
            return self.last(self.function(y)), y

    op, last, shape, function = CASES["prelu"]()
    model, data = Both(op, function, last).eval(), [torch.randn(shape) for _ in range(3)]
    of_model = prepared(model, data)
    assert not unrounded(convert_to_reference_fx(of_model))
    assert torch.isfinite(convert_fx(of_model)(data[0])[1]).all()


def test_compare_and_bisect_see_through_it() -> None:
    model, data = made(CASES["prelu"])
    module = convert_fx(prepared(model, data))
    found = qcompiler.debug.compare(model, module, data[:1])
    assert found.output > 30 and not found.unmatched
