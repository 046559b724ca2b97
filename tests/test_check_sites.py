"""Kernels are checked on the example when a calibrated model is converted: what is wrong takes another kernel, or floats."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import qcompiler as qc
from qcompiler.backends.torch.kernels import table as kernels
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Site
from qcompiler.debug import compute_sqnr

AVAILABLE = [e for e in ENGINES if e in torch.backends.quantized.supported_engines]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x + self.second(x).sigmoid()
        return self.head(x.mean((2, 3)).tanh())


def shifted(kernel: Kernel) -> Kernel:
    """The same kernel with a result that is two dimensions turned: wrong values, right shape."""

    def emit(site: Site, emit: Emit) -> fx.Node:
        return emit.call(torch.ops.aten.flip.default, kernel.emit(site, emit), [0])

    return dataclasses.replace(kernel, emit=emit, note="planted")


def raising(kernel: Kernel) -> Kernel:
    def emit(site: Site, emit: Emit) -> fx.Node:
        return emit.call(torch.ops.aten.unflatten.int, kernel.emit(site, emit), 0, [7, 7])

    return dataclasses.replace(kernel, emit=emit, note="planted")


def converted(monkeypatch: pytest.MonkeyPatch, op: str, entries: tuple[Kernel, ...], **options: Any) -> tuple[nn.Module, Any, Tensor]:
    monkeypatch.setitem(kernels.TABLE, op, entries)
    monkeypatch.setattr(kernels, "fastest", lambda site, taking: taking[0])
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 6, 6) * torch.tensor([1.0, 9.0]).reshape(2, 1, 1, 1)
    prepared = qc.prepare_fx(model, None, (x,), engine=AVAILABLE[0])
    qc.calibrate(prepared, [x])
    return model, qc.convert_fx(prepared, **options), x


@pytest.mark.parametrize("plant", [shifted, raising])
@pytest.mark.parametrize("op", ["conv2d", "add", "sigmoid", "mean", "linear"])
def test_a_wrong_kernel_is_replaced_by_the_next_one(op: str, plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = kernels.TABLE[op]
    model, compiled, x = converted(monkeypatch, op, (*map(plant, entries[:1]), *entries))
    assert compute_sqnr(model(x), compiled(x)) > 25  # dB: as without the planted kernel
    if op == "linear":
        return  # the head hands out floats, which has a table of its own
    notes = [r for r in qc.remarks(compiled) if r.code == "wrong-kernel"]
    assert len(notes) == (2 if op == "conv2d" else 1)
    assert all("planted" in r.text and r.node is not None for r in notes)


@pytest.mark.parametrize("plant", [shifted, raising])
def test_without_another_kernel_the_op_stays_float(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled, x = converted(monkeypatch, "conv2d", tuple(map(plant, kernels.TABLE["conv2d"])))
    assert compute_sqnr(model(x), compiled(x)) > 25  # dB
    assert sum(r.code == "no-kernel" for r in qc.remarks(compiled)) == 2
    assert "prepack_conv2d" not in compiled.code


def test_the_check_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = kernels.TABLE["conv2d"]
    model, compiled, x = converted(monkeypatch, "conv2d", (*map(shifted, entries), *entries), check_parity=False)
    assert compute_sqnr(model(x), compiled(x)) < 20
    assert not [r for r in qc.remarks(compiled) if r.code == "wrong-kernel"]


class Keeps(nn.Module):
    """A leaf that cannot be traced, with state that each call changes, and random numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > -1e9:
            self.calls += 1
        return self.conv(x) + torch.rand(1) * 0


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keeps, self.conv = Keeps(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.keeps(x)).relu()


@pytest.mark.filterwarnings("ignore")
def test_the_check_changes_no_state() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    given = x.clone()
    found = []
    for check in (True, False):
        torch.manual_seed(1)
        prepared = qc.prepare_fx(Holds().eval(), None, (x,), engine=AVAILABLE[0])
        qc.calibrate(prepared, [x])
        random = torch.get_rng_state()
        compiled = qc.convert_fx(prepared, check_parity=check)
        assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, given)
        found.append({name: value.clone() for name, value in compiled.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("engine", AVAILABLE)
def test_examples_that_tell_little_do_no_harm(engine: str) -> None:
    """A later shape than the example's, an example of no images, one that was changed to NaN after prepare."""
    model, data = Net().eval(), torch.randn(2, 3, 6, 6)
    for example, change in ((torch.randn(0, 3, 6, 6), None), (torch.randn(1, 3, 9, 5), None), (torch.randn(2, 3, 6, 6), float("nan"))):
        prepared = qc.prepare_fx(model, None, (example,), engine=engine)
        qc.calibrate(prepared, [data])
        if change is not None:
            example.fill_(change)
        compiled = qc.convert_fx(prepared)
        assert not [r for r in qc.remarks(compiled) if r.code in ("wrong-kernel", "no-kernel")]
        assert compute_sqnr(model(data), compiled(data)) > 25  # dB


def test_keyword_examples_and_several_results_are_checked() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(3, 3)

        def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
            left, right = self.a(x).relu().chunk(2, 1)
            return {"sum": self.b(left + right), "cat": torch.cat([left, right * scale], 1)}

    x, scale = torch.rand(4, 6), torch.rand(4, 3)
    model = Parts().eval()
    prepared = qc.prepare_fx(model, None, (x,), example_kwargs={"scale": scale}, engine=AVAILABLE[0])
    prepared(x, scale=scale)
    compiled = qc.convert_fx(prepared)
    assert not [r for r in qc.remarks(compiled) if r.code in ("wrong-kernel", "no-kernel")]
    assert compute_sqnr(model(x, scale=scale)["sum"], compiled(x, scale=scale)["sum"]) > 25  # dB
