"""Every pair of what a qconfig may say of activations and weights, through the static flow and training: right, float with a reason, or
one error of ours. Every ready-made qconfig among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
import qcompiler.config.qconfig as ready
from qcompiler import QConfig, QConfigMapping
from qcompiler.errors import PassError, QCompilerError
from qcompiler.fake_quantize import default_dynamic_fake_quant, default_fake_quant, default_per_channel_weight_fake_quant
from qcompiler.observers import (
    MinMaxObserver,
    NoopObserver,
    PlaceholderObserver,
    RecordingObserver,
    ReuseInputObserver,
    default_per_channel_weight_observer,
)
from tests.cpu import SEVEN_BITS
from tests.flow import randn
from tests.hand_prepared import sqnr

X, INDICES = randn(2, 6, 8), torch.arange(12).reshape(2, 6) % 10


class Net(nn.Module):
    """A table, a linear, a recurrent layer with several weights, a convolution with its BatchNorm, and functions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.gru, self.conv, self.norm = nn.GRU(8, 8, batch_first=True), nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8)

    def forward(self, i: Tensor, x: Tensor) -> Tensor:
        y = self.gru(self.linear(x + self.table(i)))[0].transpose(1, 2)
        return torch.sigmoid(torch.relu(self.norm(self.conv(y))))


ACTIVATIONS: dict[str, Any] = {
    "min-max": MinMaxObserver, "fake": default_fake_quant, "identity": nn.Identity, "none": None, "records": RecordingObserver,
    "float": PlaceholderObserver, "reuse": ReuseInputObserver,
    "dynamic": PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True),
    "dynamic fake": default_dynamic_fake_quant, "no range": PlaceholderObserver.with_args(dtype=torch.quint8),
}  # fmt: skip
WEIGHTS: dict[str, Any] = {
    "channels": default_per_channel_weight_observer, "fake channels": default_per_channel_weight_fake_quant, "identity": nn.Identity,
    "none": None, "float": PlaceholderObserver, "half": NoopObserver, "records": RecordingObserver,
    "unsigned": MinMaxObserver.with_args(dtype=torch.quint8),
}  # fmt: skip
READY = {name: value for name, value in vars(ready).items() if isinstance(value, QConfig)}


def through(qconfig: QConfig, trains: bool, backend: str) -> tuple[float, Any]:
    """SQNR to what was prepared (in training) or the float model, and the int8 module."""
    prepare = qc.prepare_qat_fx if trains else qc.prepare_fx
    prepared = prepare(Net().train(trains), QConfigMapping().set_global(qconfig), (INDICES, X), backend=backend)
    result = prepared(INDICES, X)
    if trains:
        result.sum().backward()
        prepared.eval()
    small = qc.convert_fx(prepared)
    expected = prepared if trains else Net().eval()
    return sqnr(expected(INDICES, X).detach(), small(INDICES, X)), small


def check(qconfig: QConfig, trains: bool, backend: str) -> None:
    try:
        found, _ = through(qconfig, trains, backend)
    except QCompilerError as error:
        assert not isinstance(error, PassError), error
        assert error.code in ("not-fake-quantize", "no-qparams"), error
        return
    assert found > 30  # three 8-bit layers; a weight on the qparams of another one has 21


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_pairs(weight: str, trains: bool) -> None:
    for activation in ACTIVATIONS.values():
        check(QConfig(activation, WEIGHTS[weight]), trains, "torch")


@pytest.mark.parametrize("name", READY)
def test_ready_made(name: str) -> None:
    check(READY[name], False, "torch")
    check(READY[name], True, "torch")
    check(READY[name], False, "native")


def test_what_stays_float_says_why() -> None:
    for qconfig, code in ((ready.default_activation_only_qconfig, "float-weights"), (QConfig(nn.Identity, nn.Identity), "float-weights")):
        rows = qc.explain(through(qconfig, False, "torch")[1]).rows
        assert {row.code for row in rows if row.op in ("linear", "gru", "conv1d", "embedding")} == {code}
    mapping = QConfigMapping().set_global(ready.default_qconfig).set_object_type(nn.ReLU, QConfig(nn.Identity, nn.Identity))
    small = qc.quantize(nn.Sequential(nn.Linear(8, 8), nn.Hardswish(), nn.ReLU(), nn.Linear(8, 8)).eval(), [X], mapping, progress=False)
    assert [row.code for row in qc.explain(small).rows if row.op == "relu"] == ["float-activations"]


def test_an_observer_that_gives_no_scales_is_named() -> None:
    with pytest.raises(QCompilerError, match="makes a RecordingObserver, which gives no scales"):
        through(ready.default_debug_qconfig, False, "torch")


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_weights_of_several_tensors_are_converted_as_they_were_trained(backend: str) -> None:
    """Each weight of a recurrent layer has qparams of its own."""
    found, small = through(QConfig(nn.Identity, default_per_channel_weight_fake_quant), True, backend)
    assert found > 90  # float arithmetic in another order
    assert not [r for r in qc.remarks(small) if r.code == "not-simulated"]


LAST: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(8, 4), "conv": lambda: nn.Conv1d(6, 4, 3), "groups": lambda: nn.Conv1d(6, 4, 3, groups=2),
}  # fmt: skip


@pytest.mark.parametrize("last", LAST)
def test_layers_that_native_leaves_to_torch_take_its_codes(last: str) -> None:
    """A weight with zero points is torch's; what a native region hands it is int8, in 8 bits. Where torch's kernel could not add products
    of those, the layer computes floats, whether its sums are large on the example or not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Hardswish(), nn.Linear(8, 8), nn.Sigmoid(), LAST[last]()).eval()
    with torch.no_grad():
        model[4].weight.add_(0.1)  # type: ignore[operator]  # a range that is not even, so that its zero point is not the middle
    mapping = QConfigMapping().set_module_name("4", ready.default_quint8_weight_qconfig)
    small = qc.quantize(model, [X], mapping.set_global(ready.default_qconfig), progress=False, backend="native")
    *before, own = qc.explain(small).rows
    assert all(row.int8 for row in before) and own.int8 is not SEVEN_BITS
    assert ("the kernel adds products in 16 bits" in own.reason) == SEVEN_BITS
    assert [r.text for r in qc.remarks(small) if r.code == "native-torch"] == ["runs in torch: its weight has zero points"]
    assert sqnr(model(X), small(X)) > 30
