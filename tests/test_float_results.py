"""What results, float ops and copies on the way to them alone read is computed from floats: no part of a result loses to another.

And near misses: what an int8 op reads stays int8; its parts are judged after calibration.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import convert_fx, explain, load, prepare_qat_fx, remarks, save
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.debug import compute_sqnr
from tests.cpu import SEVEN_BITS, steps
from tests.flow import ENGINES, flow, randn

# dB of each part: two layers' roundings of input and weights at about 44 dB each, and that of the layer's result.
OWN = 32.0


class Head(nn.Module):
    """Boxes in pixels and scores of 0 to 1, put together by a function: what detectors return."""

    def __init__(self, join: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.boxes, self.scores, self.join = nn.Linear(8, 4), nn.Linear(8, 4), join

    def forward(self, x: Tensor) -> Any:
        return self.join(self.boxes(x) * 200, torch.sigmoid(self.scores(x) - 4))


def put(boxes: Tensor, scores: Tensor) -> Tensor:
    y = torch.zeros(boxes.shape[0], 8)
    y[:, :4] = boxes
    y[:, 4:] = scores
    return y


def placed(boxes: Tensor, scores: Tensor) -> Tensor:
    rows = torch.arange(boxes.shape[0])
    return torch.stack([boxes, boxes], 1).index_put((rows, torch.ones_like(rows)), scores)


# Each with the parts of its result: (boxes, scores).
JOINS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "cat": (lambda b, s: torch.cat([b, s], 1), lambda y: (y[:, :4], y[:, 4:])),
    "cat of cats": (lambda b, s: torch.cat([torch.cat([b, b], 1), torch.cat([s, s], 1)], 1), lambda y: (y[:, :8], y[:, 8:])),
    "stack": (lambda b, s: torch.stack([b, s], 2), lambda y: (y[..., 0], y[..., 1])),
    "hstack": (lambda b, s: torch.hstack([b, s]), lambda y: (y[:, :4], y[:, 4:])),
    "where": (lambda b, s: torch.where(torch.tensor([True, False, True, False]), b, s), lambda y: (y[:, ::2], y[:, 1::2])),
    "assigned": (put, lambda y: (y[:, :4], y[:, 4:])),
    "index_put": (placed, lambda y: (y[:, 0], y[:, 1])),
    "view": (lambda b, s: torch.cat([b, s], 1).view(-1, 2, 4), lambda y: (y[:, 0], y[:, 1])),
    "permute": (lambda b, s: torch.stack([b, s], 1).permute(2, 0, 1).contiguous(), lambda y: (y[..., 0], y[..., 1])),
    "slices": (lambda b, s: torch.cat([b, s], 1)[:, 1:7], lambda y: (y[:, :3], y[:, 3:])),
    "chunks": (lambda b, s: torch.cat([b, s], 1).chunk(2, 1), lambda y: (y[0], y[1])),
    "padded": (lambda b, s: F.pad(torch.cat([b, s], 1), (1, 1)), lambda y: (y[:, 1:5], y[:, 5:-1])),
    "relu": (lambda b, s: torch.relu(torch.cat([b, s], 1)), lambda y: (y[:, :4], y[:, 4:])),
    "scaled": (lambda b, s: torch.cat([b, s], 1) * 0.5 + 0.25, lambda y: (y[:, :4] - 0.25, y[:, 4:] - 0.25)),
    "upsampled": (lambda b, s: F.interpolate(torch.stack([b, s], 1), scale_factor=2, mode="linear"), lambda y: (y[:, 0], y[:, 1])),
    "pooled": (lambda b, s: torch.stack([b, s], 1).mean(2), lambda y: (y[:, 0], y[:, 1])),
    "softmax": (lambda b, s: torch.cat([b, (s * 40).softmax(1) ** 2], 1), lambda y: (y[:, :4], y[:, 4:])),
    "product": (lambda b, s: torch.cat([b, s * s.max(1, keepdim=True)[0]], 1), lambda y: (y[:, :4], y[:, 4:])),
    "sorted": (lambda b, s: torch.cat([b, s], 1).sort(0)[0], lambda y: (y[:, :4], y[:, 4:])),
    "dict": (lambda b, s: {"all": torch.cat([b, s], 1), "more": [torch.cat([s, b], 1).t()]}, lambda y: (y["all"][:, :4], y["more"][0][:4])),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", JOINS)
def test_each_part_of_a_result_has_its_own_accuracy(name: str, engine: str) -> None:
    join, parts = JOINS[name]
    model, x = Head(join).eval(), randn(64, 8)
    module = flow(model, (x,), engine=engine).module
    with torch.no_grad():
        wanted, found = parts(model(x)), parts(module(x))
    found_db = [compute_sqnr(w, f) for w, f in zip(wanted, found, strict=True)]
    assert min(found_db) >= OWN - 0.2 * SEVEN_BITS, found_db
    assert explain(module).int8_mac_share == 1.0
    left = {row.code for row in explain(module).rows if not row.int8 and row.op in ("cat", "stack", "mul", "sigmoid", "sub")}
    assert left <= {"float-readers", "float-input", "assigned-into"}


# ---- small values of one op


class Small(nn.Module):
    """An op of a fixed range whose result is the model's."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.function = nn.Conv2d(4, 8, 1), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(x))


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda y: torch.sigmoid(y - 8),
    "method": lambda y: (y - 8).sigmoid().flatten(1),
    "softmax": lambda y: torch.softmax(y.flatten(1), 1),
    "softmax of copies": lambda y: y.permute(0, 2, 3, 1).reshape(2, -1).softmax(-1)[:, :100],
    "hardsigmoid": lambda y: F.hardsigmoid(y * 0.01 - 2.99),
    "tanh": lambda y: torch.tanh(y * 0.001),
    "exp": lambda y: torch.exp(y - 8),
    "square": lambda y: (y * 0.001) ** 2,
    "masked": lambda y: torch.sigmoid(y - 8).masked_fill(y > 1, 0.0),
    "pooled": lambda y: torch.sigmoid(y - 8).mean((2, 3)),
    "ranked": lambda y: torch.sigmoid(y - 8).flatten(1).topk(5)[0],
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SCORES)
def test_small_scores_are_no_zeros(name: str, engine: str) -> None:
    model, x = Small(SCORES[name]).eval(), randn(2, 4, 6, 6)
    module = flow(model, (x,), engine=engine).module
    with torch.no_grad():
        wanted, found = model(x), module(x)
    assert bool((found != 0).eq(wanted != 0).all()) or name in ("square", "tanh", *["hardsigmoid"] * SEVEN_BITS)  # the layer gives zeros
    assert compute_sqnr(wanted, found) >= 24


# ---- near misses: what stays int8


def int8_ops(model: nn.Module, x: Tensor, **options: Any) -> dict[str, bool]:
    return {row.op: row.int8 for row in explain(flow(model.eval(), (x,), **options).module).rows}


class Read(nn.Module):
    """A function of two convolutions in front of a third."""

    def __init__(self, function: Callable[[Read, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.a(x), self.b(x))


INT8: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], str]] = {
    "read by a convolution": (lambda s, a, b: s.d(torch.cat([a, b], 1)), "cat"),
    "and by a result": (lambda s, a, b: [y := torch.cat([a, b], 1), s.d(y)], "cat"),
    "behind a copy": (lambda s, a, b: s.c((a + b).transpose(2, 3)), "add"),
    "a residual that is handed out too": (lambda s, a, b: [y := a + b, s.c(y)], "add"),
    "moved": (lambda s, a, b: a.permute(0, 2, 3, 1), "permute"),
    "picked": (lambda s, a, b: F.max_pool2d(a, 2), "max_pool2d"),
    "multiplied": (lambda s, a, b: a @ b, "matmul"),
    "its size is asked for": (lambda s, a, b: s.c(y := a * b).view(y.size(0), -1), "mul"),
}


@pytest.mark.parametrize("name", INT8)
def test_what_int8_ops_read_or_what_is_only_moved_stays_int8(name: str) -> None:
    function, op = INT8[name]
    assert int8_ops(Read(function), randn(2, 4, 6, 6))[op]


def test_a_result_that_the_caller_wants_quantized_is_int8() -> None:
    function: Callable[[Any, Tensor, Tensor], Any] = lambda s, a, b: [torch.sigmoid(a), torch.sigmoid(b)]  # noqa: E731
    config = PrepareCustomConfig().set_output_quantized_indexes([1])
    module = flow(Read(function).eval(), (randn(2, 4, 6, 6),), prepare_custom_config=config).module
    first, second = module(randn(2, 4, 6, 6))
    assert first.dtype is torch.float32 and second.dtype is torch.quint8
    assert [row.int8 for row in explain(module).rows if row.op == "sigmoid"] == [False, True]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sigmoid_that_is_a_result_and_a_gate(engine: str) -> None:
    """The result has its small values; the gate's product stays int8, with the sigmoid rounded for it."""
    model, x = Read(lambda s, a, b: [y := torch.sigmoid(a - 7), s.c(y * b)]).eval(), randn(2, 4, 6, 6)
    module = flow(model, (x,), engine=engine).module
    with torch.no_grad():
        wanted, found = model(x), module(x)
    assert compute_sqnr(wanted[0], found[0]) >= 28 and compute_sqnr(wanted[1], found[1]) >= 24
    rows = {row.op: row for row in explain(module).rows}
    assert rows["sigmoid"].code == "result" and rows["mul"].int8


# ---- parts that int8 ops read


def unlike(factor: float, readers: str) -> nn.Module:
    """A small and a large part, read by an int8 convolution, and by a result."""

    def function(s: Any, a: Tensor, b: Tensor) -> Any:
        y = torch.cat([a, b * factor], 1)
        return [s.d(y), y.flatten(1)] if readers == "both" else s.d(y)

    return Read(function)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cat_of_unlike_parts_is_float_for_those_that_take_floats(engine: str) -> None:
    model, x = unlike(0.01, "both").eval(), randn(8, 4, 6, 6)
    module = flow(model, (x,), engine=engine).module
    with torch.no_grad():
        wanted, found = model(x), module(x)
    parts = [(t[1][:, : 4 * 36], t[1][:, 4 * 36 :]) for t in (wanted, found)]
    assert min(compute_sqnr(w, f) for w, f in zip(*parts, strict=True)) >= OWN
    assert compute_sqnr(wanted[0], found[0]) >= 28
    row = next(row for row in explain(module).rows if row.op == "cat")
    assert row.code == "unlike-parts" and "%b" in row.reason and f"{steps(engine)} steps" in row.reason


@pytest.mark.parametrize(("factor", "readers", "noted"), [(0.01, "int8", True), (0.2, "int8", False), (1.0, "both", False)])
def test_parts_that_int8_ops_alone_read_get_a_remark_where_one_is_lost(factor: float, readers: str, noted: bool) -> None:
    module = flow(unlike(factor, readers).eval(), (randn(8, 4, 6, 6),)).module
    assert next(row for row in explain(module).rows if row.op == "cat").int8
    assert ("unlike-parts" in {remark.code for remark in remarks(module)}) == noted


# ---- training, saving


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["cat", "stack", "where", "view", "scaled", "dict"])
def test_after_training_each_part_has_its_own_accuracy(name: str, engine: str) -> None:
    """convert_fx checks parity with what was trained."""
    join, parts = JOINS[name]
    model, x = Head(join).train(), randn(64, 8)
    prepared = prepare_qat_fx(model, None, (x,), engine=engine)
    sum(part.square().mean() for part in parts(prepared(x))).backward()
    module = convert_fx(prepared)
    with torch.no_grad():
        wanted, found = parts(model.eval()(x)), parts(module(x))
    assert min(compute_sqnr(w, f) for w, f in zip(wanted, found, strict=True)) >= OWN - 2


def test_saved_and_scripted(tmp_path: Path) -> None:
    model, x = Head(JOINS["view"][0]).eval(), randn(64, 8)
    module = flow(model, (x,)).module
    save(module, tmp_path / "m.qc")
    for other in (load(tmp_path / "m.qc"), torch.jit.script(module)):
        assert torch.equal(other(x), module(x)) and torch.equal(other(x[:3]), module(x[:3]))
