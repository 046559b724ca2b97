"""Rows that a normalization brings to one size: the sum before it is float where int8 would lose the smallest, int8 elsewhere."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.compile.gate import Gate, gated
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.debug import compute_sqnr
from qcompiler.observers import get_observer_state_dict, load_observer_state_dict
from qcompiler.observers.rows import SmallestRow
from qcompiler.ops.table import OPS
from tests.flow import ENGINES, randn

SMALL = 0.004  # of the others' size
DUE = 25.0  # dB of the small rows; behind an int8 sum 2 to 8


class Stream(nn.Module):
    """A residual stream (N, C, T) with small rows, and what a branch adds to it; a normalization reads the sum, and a convolution."""

    def __init__(self, norm: nn.Module, rows_last: bool, small: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branch, self.other, self.norm, self.rows_last = nn.Conv1d(8, 8, 1, bias=False), nn.Conv1d(8, 8, 1), norm, rows_last
        with torch.no_grad():
            self.branch.weight *= small

    def forward(self, stream: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y = stream + self.branch(x)
        normal = self.norm(y.transpose(1, 2)).transpose(1, 2) if self.rows_last else self.norm(y)
        return normal, self.other(y)


NORMS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "layer_norm": (lambda: nn.LayerNorm(8, eps=1e-8), True),
    "rms_norm": (lambda: nn.RMSNorm(8), True),
    "group_norm": (lambda: nn.GroupNorm(2, 8, eps=1e-8), False),
    "instance_norm": (lambda: nn.InstanceNorm1d(8, eps=1e-8), False),
}


def built(norm: str, small: float = SMALL) -> tuple[nn.Module, tuple[Tensor, Tensor], Callable[[Tensor], Tensor]]:
    """The model, inputs, and what cuts its small rows from the first result."""
    make, rows_last = NORMS[norm]
    stream, x = randn(4, 8, 12), randn(4, 8, 12, seed=1)
    small_rows = (..., slice(3)) if rows_last else (slice(1),)
    stream[small_rows] *= small
    return Stream(make(), rows_last, small).eval(), (stream, x), lambda y: y[small_rows]


def sum_row(module: nn.Module) -> Any:
    (row,) = (row for row in qcompiler.explain(module).rows if row.op == "add")
    return row


def test_every_normalization_tells_what_it_divides_by() -> None:
    assert {row.name for row in OPS.rows.values() if row.row_power is not None} == set(NORMS)


@pytest.mark.parametrize("norm", NORMS)
def test_the_power_of_rows_is_what_the_normalization_divides_by(norm: str) -> None:
    layer, rows_last = NORMS[norm][0](), NORMS[norm][1]
    x = randn(3, 8, 5) * torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1)
    x = x.transpose(1, 2) if rows_last else x
    form = next(f for name, row in OPS.rows.items() if name == norm for f in row.modules if f.cls is type(layer))
    power = OPS.rows[norm].row_power(x, dict(form.attributes(layer)))  # type: ignore[misc]
    dims = {"group_norm": (3, 2, 4, 5), "instance_norm": (3, 8, 5)}.get(norm, x.shape)
    centred = x.reshape(dims)
    left = tuple(range(power.dim(), centred.dim()))
    centred = centred if norm == "rms_norm" else centred - centred.mean(left, keepdim=True)
    expected = centred / power.sqrt().reshape(*power.shape, *(1,) * len(left))
    assert torch.allclose(layer(x).reshape(dims), expected, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_small_row_is_not_lost(norm: str, engine: str) -> None:
    model, x, cut = built(norm)
    module = qcompiler.quantize(model, [x], engine=engine, progress=False)
    assert (sum_row(module).int8, sum_row(module).code) == (False, "lost-rows")
    assert float(compute_sqnr(cut(model(*x)[0]), cut(module(*x)[0]))) > DUE
    assert "lost-rows" in {r.code for r in qcompiler.remarks(module)}
    assert all(row.int8 for row in qcompiler.explain(module).rows if row.op == "conv1d")
    assert torch.equal(copy.deepcopy(module)(*x)[0], module(*x)[0])


@pytest.mark.parametrize("norm", NORMS)
def test_rows_of_like_size_leave_the_sum_int8(norm: str) -> None:
    model, x, _ = built(norm, small=1.0)
    module = qcompiler.quantize(model, [x], progress=False)
    assert sum_row(module).int8 and float(compute_sqnr(model(*x)[0], module(*x)[0])) > DUE
    assert "lost-rows" not in {r.code for r in qcompiler.remarks(module)}


def test_what_the_caller_wants_quantized_is_int8() -> None:
    class Two(Stream):
        def forward(self, stream: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            y = stream + self.branch(x)
            return y, self.norm(y.transpose(1, 2)), self.other(y)

    model, x = Two(nn.LayerNorm(8), True, SMALL).eval(), built("layer_norm")[1]
    custom = PrepareCustomConfig().set_output_quantized_indexes([0])
    prepared = qcompiler.prepare_fx(model, None, x, prepare_custom_config=custom)
    qcompiler.calibrate(prepared, [x])
    assert sum_row(qcompiler.convert_fx(prepared)).int8


@pytest.mark.parametrize("engine", ENGINES)
def test_held_back_it_is_right_all_the_same(engine: str) -> None:
    model, x, cut = built("layer_norm")
    with gated(Gate(limit=0)):
        module = qcompiler.quantize(model, [x], engine=engine, progress=False)
    assert sum_row(module).int8 and float(compute_sqnr(model(*x)[1], module(*x)[1])) > DUE
    assert float(compute_sqnr(cut(model(*x)[0]), cut(module(*x)[0]))) < 10


def test_what_eps_hides_is_not_lost() -> None:
    """A row far below eps is nothing but noise to the normalization, which makes nothing of it."""
    model, x, _ = built("layer_norm")
    model.norm.eps = 1.0
    module = qcompiler.quantize(model, [x], progress=False)
    assert sum_row(module).int8


def test_the_watch_goes_where_observers_statistics_go() -> None:
    model, x, _ = built("group_norm")
    one, other = (qcompiler.prepare_fx(model, None, x) for _ in range(2))
    qcompiler.calibrate(one, [x, x])
    load_observer_state_dict(other, get_observer_state_dict(one))
    pickled = pickle.loads(pickle.dumps(copy.deepcopy(one)))
    least = [next(float(m.least) for m in p.modules() if isinstance(m, SmallestRow)) for p in (one, other, pickled)]
    assert len(set(least)) == 1 and 0 < least[0] < 1
    assert len({sum_row(qcompiler.convert_fx(p)).code for p in (one, other, pickled)}) == 1


def test_merged_watches_hold_the_smallest() -> None:
    a, b = (SmallestRow(OPS.rows["layer_norm"].row_power, {"normalized_shape": (4,)}) for _ in range(2))  # type: ignore[arg-type]
    a(randn(3, 4)), b(randn(2, 4) * 0.01), b(torch.empty(0, 4))
    a.merge(b)
    assert int(a.counts.sum()) == 5 and 0.3 < a.noise(0.01) < 0.45  # two rows of five are lost
    assert torch.equal(a.least, b.least) and a.observed and not SmallestRow(a.power, {}).observed


class Channels(nn.Module):
    """A layer with weights, some of whose channels are small, what passes its noise on, and a normalization that makes them alike."""

    def __init__(self, layer: nn.Module, between: Callable[[Tensor], Tensor], norm: nn.Module, small: float) -> None:
        super().__init__()
        self.layer, self.between, self.norm = layer, between, norm
        with torch.no_grad():
            layer.weight[:3] *= small  # type: ignore[index,operator]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.between(self.layer(x)))
        return result


PASSED_ON: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda y: y,
    "twice": lambda y: y + y,
    "number": lambda y: 2 - y * 3,
    "relu": torch.relu,
    "smooth": nn.functional.gelu,
    "copies": lambda y: y.unsqueeze(1).squeeze(1).flip(-1),
    "sum": lambda y: y.relu() + y,
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": lambda: nn.Conv1d(8, 8, 3, padding=1, bias=False),
    "transposed": lambda: nn.ConvTranspose1d(8, 8, 3, padding=1, groups=8, bias=False),
    "depthwise": lambda: nn.Conv1d(8, 8, 3, groups=8, padding=1, bias=False),
}


def channels(between: str, small: float, layer: str = "conv1d") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Channels(LAYERS[layer](), PASSED_ON[between], nn.InstanceNorm1d(8, eps=1e-9), small).eval(), randn(4, 8, 12)


def weighted_row(module: nn.Module) -> Any:
    return next(row for row in qcompiler.explain(module).rows if row.op.startswith("conv"))


@pytest.mark.parametrize(("between", "layer"), [*((b, "conv1d") for b in PASSED_ON), ("itself", "transposed"), ("twice", "depthwise")])
def test_an_op_with_weights_is_float_where_its_rows_would_be_lost(between: str, layer: str) -> None:
    model, x = channels(between, SMALL, layer)
    module = qcompiler.quantize(model, [x], progress=False)
    assert float(compute_sqnr(model(x)[:, :3], module(x)[:, :3])) > DUE  # behind an int8 convolution 0
    assert (weighted_row(module).int8, weighted_row(module).code) == (False, "lost-rows")


@pytest.mark.parametrize("between", PASSED_ON)
def test_an_op_with_weights_is_int8_where_they_are_not(between: str) -> None:
    model, x = channels(between, 1.0)
    module = qcompiler.quantize(model, [x], progress=False)
    assert weighted_row(module).int8 and float(compute_sqnr(model(x), module(x))) > DUE


@pytest.mark.parametrize("engine", ENGINES)
def test_a_linear_whose_kernel_hands_out_integers_is_judged(engine: str) -> None:
    """fbgemm hands out floats: there the linear is int8 all the same."""
    torch.manual_seed(0)
    model, x = Channels(nn.Linear(16, 8), lambda y: y, nn.LayerNorm(8, eps=1e-12), 1.0).eval(), randn(12, 16)
    x[3:] *= SMALL
    model.layer.bias.data.zero_()
    module = qcompiler.quantize(model, [x], engine=engine, progress=False)
    (row,) = (row for row in qcompiler.explain(module).rows if row.op == "linear")
    assert row.int8 or row.code == "lost-rows"
    assert float(compute_sqnr(model(x)[3:], module(x)[3:])) > (0 if row.int8 else DUE)


def test_one_lost_row_of_many_costs_no_int8() -> None:
    """It is all rows together that a convolution in float is worth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(8, 8, 1, bias=False), nn.InstanceNorm1d(8, eps=1e-5)).eval()
    x = randn(256, 8, 12)
    x[0] *= 0.01
    assert weighted_row(qcompiler.quantize(model, [x], progress=False)).int8
