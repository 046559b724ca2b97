"""Products and sums with constants behind an op with a weight, folded into it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.workflow.twins import twins
from tests.flow import ENGINES

Between = Callable[["Net", Tensor], Tensor]
LAYERS: dict[str, tuple[Callable[[], nn.Module], nn.Module, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 8), nn.Linear(8, 4), (4, 6)),
    "linear of rows": (lambda: nn.Linear(6, 8, bias=False), nn.Linear(8, 4), (2, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3), nn.Conv1d(8, 4, 1), (2, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, bias=False), nn.Conv2d(8, 4, 1), (2, 6, 8, 8)),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 4, 1), (2, 6, 8, 8)),
    "without a batch": (lambda: nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 1), (6, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(6, 8, 2), nn.Conv3d(8, 4, 1), (2, 6, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2), nn.Conv2d(8, 4, 1), (2, 6, 5, 5)),
}


class Net(nn.Module):
    def __init__(self, layer: nn.Module, last: nn.Module, between: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last, self.between = layer, last, between
        shape = (8, *[1] * (last.weight.dim() - 2))
        self.gain = nn.Parameter((torch.rand(8) * 2 - 0.7).reshape(shape))
        self.register_buffer("shift", torch.randn(8).reshape(shape))
        self.register_buffer("one", torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.silu(self.between(self, self.layer(x))))
        return y


BETWEEN: dict[str, Between] = {
    "product and sum": lambda s, y: y * s.gain + s.shift,
    "the other way": lambda s, y: s.shift + s.gain * y,
    "differences": lambda s, y: s.shift - (y - s.gain),
    "a quotient": lambda s, y: (y + 0.5) / (s.gain.abs() + 0.5),
    "numbers": lambda s, y: (2 - y) * 0.3 / 1.5,
    "one element": lambda s, y: y * s.one + s.one,
    "a sum times a number": lambda s, y: torch.add(y, s.shift, alpha=2).sub(s.gain, alpha=0.5),
    "clamped": lambda s, y: torch.relu(y * s.gain + s.shift),
}


def prepared_of(model: nn.Module, x: Tensor, **more: Any) -> Any:
    prepared = qc.prepare_fx(model.eval(), more.pop("mapping", None), (x,), **more)
    qc.calibrate(prepared, [x])
    return prepared


def net(layer: str, between: str) -> tuple[Net, Tensor]:
    make, last, shape = LAYERS[layer]
    torch.manual_seed(1)
    return Net(make(), last, BETWEEN[between]).eval(), torch.randn(shape)


def ops(module: Any) -> list[tuple[str, bool]]:
    return [(row.op, row.int8) for row in qc.explain(module).rows]


@pytest.mark.parametrize(("layer", "between"), [(layer, "product and sum") for layer in LAYERS] + [("conv2d", b) for b in BETWEEN]
                         + [("linear", b) for b in BETWEEN])  # fmt: skip
def test_they_become_part_of_the_weight(layer: str, between: str) -> None:
    """In float it is the same to the last bits; the prepared module computes the model's own."""
    model, x = net(layer, between)
    prepared = prepared_of(model, x, backend="native")
    (twin,) = twins(prepared)
    with torch.no_grad():
        assert torch.equal(prepared(x), model(x))
        assert qc.debug.compute_sqnr(model(x), twin.floats(x)) > 110  # float32: 7 digits are 140 dB
    assert [name for name, int8 in ops(qc.convert_fx(prepared)) if int8][1:-1] == ["silu"] and len(ops(qc.convert_fx(prepared))) == 3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layer", ["linear", "conv2d", "transposed"])
def test_every_engine(layer: str, engine: str, tmp_path: Path) -> None:
    model, x = net(layer, "product and sum")
    module = qc.convert_fx(prepared_of(model, x, engine=engine))
    with torch.no_grad():
        assert qc.debug.compute_sqnr(model(x), module(x)) > 30
    if engine == "qnnpack":  # whose weights have one scale for all channels
        assert "fold-per-tensor" in [remark.code for remark in qc.remarks(module)]
        return
    assert not [row for row in qc.explain(module).rows if row.op in ("mul", "add")]
    (note,) = [remark for remark in qc.remarks(module) if remark.code == "folded" and "gain" in remark.text]
    assert "weight and bias" in note.text
    qc.save(module, tmp_path / "m.qc")
    assert torch.equal(qc.load(tmp_path / "m.qc")(x), module(x))


class Missed(nn.Module):
    """`way`: of the convolution and the network, on the way to another one."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.way = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), way
        self.register_buffer("gain", torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("of_places", torch.rand(8, 6, 6))
        self.register_buffer("last_axis", torch.rand(6))
        self.register_buffer("small", torch.full((8, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.way(self, self.first(x))
        z: Tensor = self.last(y)
        return z


MISSES: dict[str, tuple[Callable[[Any, Tensor], Tensor], str | None]] = {
    "another reader": (lambda s, y: y * s.gain + y, None),
    "places": (lambda s, y: y * s.of_places, None),
    "another axis": (lambda s, y: y * s.last_axis, None),
    "behind a clamp": (lambda s, y: y.relu() * s.gain, None),
    "computed": (lambda s, y: y * y.detach().mean(), None),
    "a reciprocal": (lambda s, y: s.gain / (y.abs() + 1), None),
    "tiny": (lambda s, y: y * s.small, "fold-tiny"),
}


@pytest.mark.parametrize("case", MISSES)
def test_near_misses(case: str) -> None:
    way, code = MISSES[case]
    x = torch.randn(2, 3, 8, 8)
    prepared = prepared_of(Missed(way), x)
    module = qc.convert_fx(prepared)
    assert [row.op for row in qc.explain(module).rows] != ["conv2d", "conv2d"]
    found = [remark.code for remark in qc.remarks(module) if remark.code.startswith("fold-")]
    assert found == ([code] if code else [])


def test_what_float32_does_not_hold_stays() -> None:
    model, x = Missed(lambda s, y: y * 1e36 * 1e-36).eval(), torch.randn(2, 3, 8, 8) * 1e-6
    with torch.no_grad():
        model.first.weight.fill_(1e3), model.first.bias.zero_()
    module = qc.convert_fx(prepared_of(model, x))
    assert "fold-overflow" in [remark.code for remark in qc.remarks(module)]
    assert torch.isfinite(module(x)).all() and [row.op for row in qc.explain(module).rows][1] == "mul"


def test_one_scale_for_all_channels_takes_one_number_alone() -> None:
    x = torch.randn(2, 3, 8, 8)
    mapping = qc.QConfigMapping().set_global(
        qc.QConfig(activation=qc.observers.default_observer, weight=qc.observers.default_weight_observer)
    )
    by_channel = qc.convert_fx(prepared_of(Missed(lambda s, y: y * s.gain), x, mapping=mapping))
    by_number = qc.convert_fx(prepared_of(Missed(lambda s, y: y * 0.5), x, mapping=mapping))
    assert "fold-per-tensor" in [remark.code for remark in qc.remarks(by_channel)]
    assert [row.op for row in qc.explain(by_number).rows] == ["conv2d", "conv2d"]


def test_a_shared_weight_keeps_its_values_for_the_other() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.gain = nn.Parameter(torch.tensor([0.1, 1.0, 2.0, 3.0]))

        def forward(self, x: Tensor) -> Tensor:
            return (self.one(self.two(x).relu()) * self.gain).relu().cos()

    model, x = Twice().eval(), torch.randn(64, 4)
    prepared = prepared_of(model, x)
    (twin,) = twins(prepared)
    with torch.no_grad():
        assert qc.debug.compute_sqnr(model(x), twin.floats(x)) > 110
        assert qc.debug.compute_sqnr(model(x), qc.convert_fx(prepared)(x)) > 30


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("kept", ["layer", "mul", "add", "silu"])
def test_kept_float_is_as_prepared_anew(kept: str, backend: str) -> None:
    """What calibration saw is enough for each of the ops by itself."""
    model, x = net("conv2d", "product and sum")
    prepared = prepared_of(model, x, backend=backend)
    module = qc.convert_fx(prepared, keep_float=[kept])
    assert not next(row for row in qc.explain(module).rows if kept in (row.node, row.op) or row.node.startswith(kept)).int8
    with torch.no_grad():
        assert qc.debug.compute_sqnr(model(x), module(x)) > 30
    assert ops(qc.convert_fx(prepared)) == [("conv2d", True), ("silu", True), ("conv2d", True)]


def test_a_float_model_and_training_change_nothing() -> None:
    model, x = net("conv2d", "product and sum")
    fused = qc.fuse_fx(copy.deepcopy(model))
    assert torch.equal(fused(x), model(x)) and "gain" in fused.state_dict()
    none = prepared_of(model, x, mapping=qc.QConfigMapping().set_global(None))
    assert torch.equal(qc.convert_fx(none)(x), model(x))
    trained = qc.prepare_qat_fx(copy.deepcopy(model).train(), None, (x,))
    trained(x).sum().backward()
    assert dict(trained.named_parameters())["gain"].grad is not None
    assert [name for name, _ in ops(qc.convert_fx(trained.eval()))].count("mul") == 1


def test_what_is_loaded_into_the_prepared_module_is_folded() -> None:
    """Constants are read when the module is converted."""
    model, x = net("conv2d", "product and sum")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.gain.mul_(2), other.shift.add_(1), other.one.add_(1)
    prepared = prepared_of(model, x)
    prepared.load_state_dict(other.state_dict(), strict=False)
    qc.calibrate(prepared, [x])
    with torch.no_grad():
        assert qc.debug.compute_sqnr(other(x), qc.convert_fx(prepared)(x)) > 25


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_results_of_unlike_channels_do_not_share_a_step(backend: str) -> None:
    """Boxes in pixels beside scores: as a product of what the convolution rounded, not as what it rounds."""
    torch.manual_seed(0)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("sizes", torch.tensor([200.0, 200.0, 1.0, 1.0]).reshape(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x) * self.sizes + 3
            return y

    model, x = Head().eval(), torch.randn(4, 3, 8, 8)
    module = qc.quantize(model, [x], progress=False, backend=backend)
    with torch.no_grad():
        assert qc.debug.compute_sqnr(model(x)[:, 2:], module(x)[:, 2:]) > 30


def test_corrections_are_of_the_folded_weight() -> None:
    """What a search finds on the folded graph is put into the folded graph."""
    torch.manual_seed(0)

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
            self.register_buffer("gain", torch.logspace(-1, 1, 8).reshape(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.two(torch.relu(self.one(x) * self.gain + self.gain))
            return y

    model, data = Chain().eval(), [torch.randn(4, 3, 12, 12) for _ in range(4)]
    prepared = qc.prepare_fx(model, None, (data[0],))
    qc.calibrate(prepared, data)
    found = qc.tune.equalize(prepared, data, alpha=0.5)
    assert "one.weight" in found.weights
    (twin,) = twins(prepared, found)
    with torch.no_grad():
        assert qc.debug.compute_sqnr(model(data[0]), twin.floats(data[0])) > 110
        tuned = qc.convert_fx(prepared, corrections=qc.tune.reconstruct(prepared, data, corrections=found))
        assert (
            qc.debug.compute_sqnr(model(data[0]), tuned(data[0]))
            > qc.debug.compute_sqnr(model(data[0]), qc.convert_fx(prepared)(data[0])) - 0.5
        )


def test_a_constant_of_two_layers_and_another_back_end() -> None:
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.gain = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(torch.relu(self.one(x) * self.gain) + torch.relu(self.two(x) * self.gain))
            return y

    model, x = Both().eval(), torch.randn(4, 3, 8, 8)
    prepared = prepared_of(model, x)
    for backend in ("torch", "native"):
        module = qc.convert_fx(prepared, backend=backend)
        assert [name for name, int8 in ops(module) if int8].count("conv2d") == 3 and "mul" not in [name for name, _ in ops(module)]
        with torch.no_grad():
            assert qc.debug.compute_sqnr(model(x), module(x)) > 30


class Kept(nn.Module):
    """What is added is no constant, though a buffer and nothing else decides it: `drawn` makes it anew, `kept` changes it at each call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), kind
        self.register_buffer("phase", torch.zeros(4 if kind == "drawn" else 1))
        self.phase: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.kind == "drawn":
            y = y + torch.rand_like(self.phase)
        else:
            self.phase = self.phase + 0.5
            y = y + self.phase if self.kind == "kept" else y * self.phase.sin()
        result: Tensor = self.last(y)
        return result


@pytest.mark.parametrize("kind", ["kept", "of what is kept", "drawn"])
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_states_and_what_is_drawn_are_no_constants(kind: str, backend: str) -> None:
    torch.manual_seed(0)
    model, batches = Kept(kind).eval(), [torch.randn(8, 4) for _ in range(6)]
    small = qc.quantize(copy.deepcopy(model), batches, backend=backend, progress=False)
    torch.manual_seed(1)
    with torch.no_grad():
        found = [small(batches[0]) for _ in range(4)]
    assert not any(torch.equal(found[0], other) for other in found[1:])
