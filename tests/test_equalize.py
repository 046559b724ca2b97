"""Channels brought nearer to each other: float results stay, int8 ones come nearer; what would not stay is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, convert_to_reference_fx, prepare_fx
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.tune import Corrections, equalize, reconstruct
from qcompiler.tune.held_out import Item
from qcompiler.tune.moves import MOVES, State
from qcompiler.tune.trial import Trial
from qcompiler.workflow.twins import twins

UNLIKE = torch.logspace(-2, 0, 8)  # of 8 channels


def unlike(layer: nn.Module) -> nn.Module:
    """Results whose channels differ by 100."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= UNLIKE.reshape(-1, *[1] * (parameter.dim() - 1))
    return layer


def by_column(norm: nn.LayerNorm) -> nn.Module:
    """A norm whose columns differ by 100: those that a linear reads as channels."""
    with torch.no_grad():
        norm.weight *= UNLIKE
    return norm


def like(layer: nn.Conv2d) -> nn.Module:
    """A depthwise layer that makes them alike again."""
    with torch.no_grad():
        layer.weight /= UNLIKE[:, None, None, None]
    return layer


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.end = unlike(nn.Conv2d(3, 8, 3)), unlike(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 4, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.relu(self.one(x) + self.two(x)))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = unlike(nn.LayerNorm(8)), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return torch.cat([self.one(x), self.two(x)], -1)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.ConvTranspose2d(3, 8, 3, stride=2), nn.ConvTranspose2d(8, 4, 2, groups=2)
        with torch.no_grad():
            self.one.weight *= UNLIKE[None, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.two(nn.functional.leaky_relu(self.one(x)))


def stack(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(unlike(nn.Conv2d(3, 8, 3, padding=1)), *layers)


SAME = {"prelu": 1.1}  # no value is rounded before it, and the one behind makes less noise than the result: as good as before
IMAGE, ROWS = (3, 9, 9), (6, 8)
MODELS = {
    "relu": (lambda: stack(nn.ReLU(), nn.Conv2d(8, 4, 3)), IMAGE),
    "prelu": (lambda: stack(nn.PReLU(8), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, bias=False)), IMAGE),
    "nothing between": (lambda: stack(nn.Conv2d(8, 4, 1)), IMAGE),
    "pool": (lambda: stack(nn.ReLU(), nn.AvgPool2d(3), nn.Conv2d(8, 4, 3)), IMAGE),
    "depthwise": (lambda: stack(nn.ReLU(), like(nn.Conv2d(8, 8, 3, groups=8)), nn.ReLU(), nn.Conv2d(8, 4, 1)), IMAGE),
    "residual": (Residual, IMAGE),
    "layer norm": (Normed, ROWS),
    "layer norm of two dimensions": (lambda: nn.Sequential(by_column(nn.LayerNorm((8, 8))), nn.Linear(8, 4)), (8, 8)),
    "linears": (lambda: nn.Sequential(unlike(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 4)), ROWS),
    "transposed": (Transposed, IMAGE),
    "one dimension": (lambda: nn.Sequential(unlike(nn.Conv1d(8, 8, 3)), nn.PReLU(), nn.Conv1d(8, 4, 3)), (8, 12)),
}
LEFT = {
    "relu6": (lambda: stack(nn.ReLU6(), nn.Conv2d(8, 4, 3)), IMAGE),
    "a clamp of its own": (lambda: stack(nn.MaxPool2d(2), nn.Hardtanh(-0.5, 0.5), nn.Conv2d(8, 4, 3)), IMAGE),
    "gelu": (lambda: stack(nn.GELU(), nn.Conv2d(8, 4, 3)), IMAGE),
    "a result of the model": (lambda: stack(nn.ReLU()), IMAGE),
}


def prepared_model(name: str, backend: str = "native") -> tuple[nn.Module, fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    make, shape = (MODELS | LEFT)[name]
    model, x = make().eval(), torch.randn(8, *shape)
    prepared = prepare_fx(model, None, (x[:2],), backend=backend)
    calibrate(prepared, [x])
    return model, prepared, x


def error(wanted: Tensor, made: Tensor) -> float:
    return float((wanted - made).detach().square().mean())


@pytest.mark.parametrize("name", MODELS)
def test_float_results_stay_and_others_come_nearer(name: str) -> None:
    model, prepared, x = prepared_model(name)
    found = equalize(prepared, [x[:4], x[4:]], alpha=0.5)
    assert found.weights and found.ranges
    wanted = model(x).detach()
    (twin,) = twins(prepared, found)
    torch.testing.assert_close(twin.floats(x), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    made, plain = (convert_to_reference_fx(prepared, corrections=c)(x) for c in (found, None))
    assert error(wanted, made) < SAME.get(name, 1.0) * error(wanted, plain)


@pytest.mark.parametrize("name", LEFT)
def test_what_scales_would_change_is_left(name: str) -> None:
    _, prepared, x = prepared_model(name)
    assert not equalize(prepared, [x], alpha=0.5)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_back_ends_compute_what_the_reference_does(backend: str) -> None:
    model, prepared, x = prepared_model("prelu", backend)
    found = equalize(prepared, [x], alpha=0.75)
    wanted = convert_to_reference_fx(prepared, corrections=found)(x)
    assert error(wanted, convert_fx(prepared, corrections=found)(x)) < 0.1 * error(wanted, model(x).detach())


def test_biases_of_earlier_corrections_are_scaled_as_well() -> None:
    _, prepared, x = prepared_model("relu")
    first = Corrections(biases={"_0": torch.ones(8)}, keep_float=set())
    found = equalize(prepared, [x], corrections=first, alpha=0.5)
    scale = twins(prepared)[0].floats.get_parameter("0.weight") / twins(prepared, found)[0].floats.get_parameter("0.weight")
    torch.testing.assert_close(found.biases["_0"], 1 / scale[:, 0, 0, 0])


def test_alpha_of_zero_changes_nothing() -> None:
    _, prepared, x = prepared_model("relu")
    so_far = Corrections(ranges={"_0": (0.0, 1.0)})
    assert equalize(prepared, [x], corrections=so_far, alpha=0) is so_far


@pytest.mark.parametrize("name", ["relu", "depthwise", "layer norm"])
def test_alpha_is_chosen_on_the_data(name: str) -> None:
    model, prepared, x = prepared_model(name)
    wanted = model(x).detach()
    chosen, *others = (
        error(wanted, convert_to_reference_fx(prepared, corrections=equalize(prepared, [x], alpha=alpha))(x))
        for alpha in (None, 0.25, 0.5, 0.75)
    )
    assert chosen == min(others) < error(wanted, convert_to_reference_fx(prepared)(x))


def test_no_alpha_where_each_hurts(monkeypatch: pytest.MonkeyPatch) -> None:
    _, prepared, x = prepared_model("relu")
    monkeypatch.setattr(Trial, "sqnr", lambda trial, corrections: -float(len(corrections.weights)))
    assert not equalize(prepared, [x])


def behind_codes(name: str) -> tuple[State, Callable[[State], Corrections], nn.Module, Tensor]:
    """A search that has new codes, and its step on channels."""
    model, prepared, x = prepared_model(name)
    items = [Item((part,), {}, part) for part in x.split(2)]
    codes = reconstruct(prepared, [item.call for item in items])
    move = next(move for move in MOVES if move.name == "equalize-again")
    state = State(prepared, items, 0, codes, taken=("reconstruct",))
    return state, lambda state: move.make(state, lambda done, total: None, 1.0), model, x


@pytest.mark.parametrize("name", ["relu", "residual"])
def test_channels_behind_new_codes_get_codes_anew(name: str) -> None:
    state, make, model, x = behind_codes(name)
    found = make(state)
    assert found.weights and found.codes.keys() == state.corrections.codes.keys()
    made, before = (error(model(x), convert_to_reference_fx(state.prepared, corrections=c)(x)) for c in (found, state.corrections))
    assert made < before


def test_channels_behind_new_codes_are_left_where_float_weights_gain_little(monkeypatch: pytest.MonkeyPatch) -> None:
    state, make, _, _ = behind_codes("relu")
    seen = []

    def little(trial: Trial, corrections: Corrections) -> float:
        seen.append((trial.values_alone, bool(corrections.codes or corrections.biases)))
        return 30.0 + 1.9 * bool(corrections.weights)

    monkeypatch.setattr(Trial, "sqnr", little)
    assert make(state) is state.corrections and set(seen) == {(True, False)}


def test_values_alone_are_judged_on_float_weights() -> None:
    """Coarse weights do not count in it: with values of fine steps it is near to float."""
    _, prepared, x = prepared_model("relu")
    (twin,) = twins(prepared)
    trial = Trial.of(prepared, twin.floats, [((x,), {})])
    coarse = Corrections(codes={"0.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int8)})
    assert trial.sqnr(coarse) < 5 < 20 < replace(trial, values_alone=True).sqnr(coarse)
    assert trial.sqnr(Corrections()) > 20  # the prepared module is as it was


def test_what_it_refuses() -> None:
    _, prepared, x = prepared_model("relu")
    for alpha in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="alpha"):
            equalize(prepared, [x], alpha=alpha)
    with pytest.raises(CalibrationError, match="0 batches"):
        equalize(prepared, [])


def test_an_error_names_the_batch_by_its_place_in_the_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    data = [torch.randn(2, 3, 8, 8) for _ in range(7)]
    prepared = prepare_fx(model, None, (data[0],))
    calibrate(prepared, data)
    data[5] = data[5].clone()
    data[5][0, 0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="batch 5: NaN"):
        equalize(prepared, data)
