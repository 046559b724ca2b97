"""Recurrent layers under a static qconfig: int8 dynamic, or float where calibration shows that 8 bits would lose the input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import QConfigMapping, calibrate, convert_fx, explain, get_default_qconfig_mapping, prepare_fx, remarks
from qcompiler.backends.torch.kernels import speed
from qcompiler.debug import compute_sqnr
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.observers import MinMaxObserver, get_observer_state_dict, load_observer_state_dict
from qcompiler.observers.vanishing import Vanishing
from qcompiler.quantization import default_dynamic_qconfig
from tests.flow import randn


class Encoder(nn.Module):
    def __init__(self, kind: type[nn.Module], int8_before: bool = False) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8) if int8_before else nn.Identity()
        self.layer, self.head = kind(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = self.layer(x[0] if isinstance(self.layer, nn.RNNCellBase) else x)
        result: Tensor = self.head(x[0] if isinstance(x, tuple) else x)
        return result


def made(kind: type[nn.Module], x: Tensor, mapping: Any = None, **options: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Encoder(kind, **options).eval()
    with torch.no_grad():
        for name, weight in model.layer.named_parameters():
            weight *= 40 if "weight_ih" in name else 1  # as a trained layer hears quiet inputs
    prepared = prepare_fx(model, mapping, (x,))
    if mapping is None or mapping.global_qconfig is not default_dynamic_qconfig:
        calibrate(prepared, [x, x * 0.5])
    return model, prepared, convert_fx(prepared)


@pytest.fixture(autouse=True)
def _small_layers_are_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers here are far below the size from which int8 is faster than float (test_slower_than_float.py)."""
    monkeypatch.setattr(speed, "recurrent_table", dict)


QUIET = randn(40, 4, 8)
LOUD = QUIET.abs().pow(8) / 1000  # from 1e-20 to 100


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_a_layer_whose_input_8_bits_would_lose_stays_float(kind: type[nn.Module]) -> None:
    model, prepared, small = made(kind, LOUD)
    (row,) = (row for row in explain(small).rows if row.module_path == "layer" and row.macs)
    assert (row.kind, row.code) == ("float", "input-vanishes") and "% of its input" in row.reason
    assert [r.node for r in remarks(small) if r.code == "input-vanishes"] == [row.node]
    assert not any(isinstance(m, Vanishing) for m in small.modules()) and any(isinstance(m, Vanishing) for m in prepared.modules())
    with torch.no_grad():
        assert compute_sqnr(model(LOUD), small(LOUD)) > 25


@pytest.mark.parametrize(("x", "options"), [(QUIET, {}), (QUIET.relu(), {}), (LOUD, {"int8_before": True})])
def test_other_inputs_run_int8_dynamic(x: Tensor, options: dict[str, Any]) -> None:
    _, _, small = made(nn.LSTM, x, **options)
    assert next(row for row in explain(small).rows if row.module_path == "layer").kind == "int8 dynamic"


@pytest.mark.parametrize("mapping", [
    QConfigMapping().set_global(default_dynamic_qconfig),
    get_default_qconfig_mapping("x86").set_object_type(nn.LSTM, default_dynamic_qconfig),
])  # fmt: skip
def test_a_dynamic_qconfig_is_obeyed(mapping: Any) -> None:
    _, prepared, small = made(nn.LSTM, LOUD, mapping)
    assert next(row for row in explain(small).rows if row.module_path == "layer").kind == "int8 dynamic"
    assert not any(isinstance(m, Vanishing) for m in prepared.modules())


def test_counts_are_of_nonzero_values_and_do_not_depend_on_batches() -> None:
    whole, parts = Vanishing(), Vanishing()
    x = torch.tensor([[0.0, 255.0, 0.4, 0.6], [0.0, -255.0, 0.0, 1.1]])
    whole(x)
    assert (int(whole.nonzero), int(whole.lost)) == (5, 2) and whole.share == pytest.approx(0.4)  # 510 / 255 steps of 2
    for row in x.split(1):
        parts(row)
    assert (int(parts.nonzero), int(parts.lost)) == (5, 1)  # each call has its own range
    parts(torch.empty(0, 4))
    assert parts.observed and not Vanishing().observed and Vanishing().share == 0


def test_counts_go_where_the_statistics_of_observers_go() -> None:
    """Into a state_dict of their own, and into those of another process."""
    _, prepared, _ = made(nn.LSTM, LOUD)
    _, other, _ = made(nn.LSTM, QUIET)
    load_observer_state_dict(other, get_observer_state_dict(prepared))
    assert any(r.code == "input-vanishes" for r in remarks(convert_fx(other)))
    (counter,) = (m for m in other.modules() if isinstance(m, Vanishing))
    before = (int(counter.nonzero), int(counter.lost))
    counter.merge(counter)
    assert (int(counter.nonzero), int(counter.lost)) == (2 * before[0], 2 * before[1])
    with pytest.raises(ConfigError, match="cannot be merged"):
        counter.merge(MinMaxObserver())


def test_inf_is_told_where_it_comes_in() -> None:
    torch.manual_seed(0)
    prepared = prepare_fx(Encoder(nn.LSTM).eval(), None, (QUIET,))
    with pytest.raises(CalibrationError, match="inf"):
        calibrate(prepared, [torch.full((40, 4, 8), float("inf"))])


def test_a_batch_that_was_taken_back_is_not_counted() -> None:
    torch.manual_seed(0)
    prepared = prepare_fx(Encoder(nn.LSTM).eval(), None, (QUIET,))
    (counter,) = (m for m in prepared.modules() if isinstance(m, Vanishing))
    calibrate(prepared, [QUIET])
    before = int(counter.nonzero)
    with pytest.raises(CalibrationError, match="NaN"):
        calibrate(prepared, [torch.full((40, 4, 8), float("nan"))])
    assert int(counter.nonzero) == before


class Named(nn.Module):
    """An int8 value that has the name of the counter of its recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lstm = nn.Linear(8, 16), nn.LSTM(8, 16)

    def forward(self, lstm_input: Tensor) -> Tensor:
        result: Tensor = self.linear(lstm_input) + self.lstm(lstm_input)[0]
        return result


def test_names_that_the_counters_take_are_free_to_the_user() -> None:
    torch.manual_seed(0)
    model = Named().eval()
    prepared = prepare_fx(model, None, (QUIET,))
    calibrate(prepared, [QUIET])
    with torch.no_grad():
        assert compute_sqnr(model(QUIET), convert_fx(prepared)(QUIET)) > 25
