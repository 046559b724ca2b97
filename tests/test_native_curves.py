"""Functions in 32 pieces: how far they are from the function, and that beyond the pieces nothing jumps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.curve import CURVES, Curve, codes_of, curve_of, with_halves
from qcompiler.backends.native.plan.knee import knee_of
from qcompiler.ops.table import OPS
from tests.native_oracle import Ends, curved, kneed

UNIT, SIGNED = Codes(1 / 256, 0, 0, 255), Codes(2 / 256, 128, 0, 255)


def codes_for(name: str, most: float) -> Codes:
    """A range of the function's values from its least to `most`."""
    if name in ("sigmoid", "tanh"):
        return SIGNED if name == "tanh" else UNIT
    low = min(0.0, float(OPS.rows[name].fn(torch.linspace(-40, most, 10001)).min()))
    scale = (most - low) / 255
    return Codes(scale, round(-low / scale), 0, 255)


def made(name: str, codes: Codes) -> Curve:
    found = curve_of(name, OPS.rows[name].fn, codes)
    assert found is not None
    return found


def computed(curve: Curve, v: Tensor, codes: Codes) -> Tensor:
    steps = (v / curve.unit + curve.start).to(torch.float32)
    return curved(steps, torch.from_numpy(curve.pieces), Ends(codes.zero, codes.low, codes.high))


@pytest.mark.parametrize("most", [0.2, 1.0, 4.0, 7.0, 20.0, 100.0])
@pytest.mark.parametrize("name", CURVES)
def test_pieces_are_near_the_function(name: str, most: float) -> None:
    """The bound that a curve states holds on a grid of its own, far beyond the ends too; rounding adds half a step."""
    codes = codes_for(name, most)
    curve = made(name, codes)
    assert curve.error < (0.1 if most < 50 else 0.4)
    v = torch.cat([torch.linspace(-12, most + 1, 40001), torch.tensor([-1e9, -1e4, -300.0, 2 * most, 1e4, 1e9])]).double()
    exact = (OPS.rows[name].fn(v) / codes.scale + codes.zero).clamp(codes.low, codes.high)
    assert float((computed(curve, v, codes).double() - exact).abs().max()) <= 0.5 + curve.error + 1e-3


@pytest.mark.parametrize("most", [0.2, 1.0, 4.0, 7.0, 20.0])
@pytest.mark.parametrize("name", CURVES)
def test_codes_are_right_in_the_mean(name: str, most: float) -> None:
    """What all codes of a layer are off by adds up over layers, and no mean over places takes it away."""
    codes = codes_for(name, most)
    v = torch.linspace(-12, most, 40001).double()
    exact = OPS.rows[name].fn(v) / codes.scale + codes.zero
    inside = (exact > codes.low + 1) & (exact < codes.high - 1)
    off, share = computed(made(name, codes), v, codes).double() - exact, exact.diff(append=exact[-1:]).abs() * inside  # all results alike
    assert abs(float((off * share).sum() / share.sum())) < 0.005  # a 128th, 0.008, where what is half a part more rounds up


@pytest.mark.parametrize("codes", [Codes(0.02, 13, 0, 127), Codes(0.05, 6, 6, 200), Codes(1.0, 0, 0, 255)])
def test_codes_that_are_not_all_used(codes: Codes) -> None:
    curve = made("silu", codes)
    v = torch.linspace(-30, 300, 20001).double()
    exact = (F.silu(v) / codes.scale + codes.zero).clamp(codes.low, codes.high)
    assert float((computed(curve, v, codes).double() - exact).abs().max()) <= 0.5 + curve.error + 1e-3


@pytest.mark.parametrize("most", [0.05, 0.3, 1.0, 3.0, 6.0, 20.0, 100.0, 600.0])
def test_a_product_is_near_hardswish(most: float) -> None:
    codes = codes_for("hardswish", most)
    knee = knee_of(codes)
    assert knee is not None and knee.error < 0.15
    v = torch.cat([torch.linspace(-12, most + 1, 40001), torch.tensor([-1e9, -1e4, -300.0, 2 * most, 1e4, 1e9])]).double()
    exact = (F.hardswish(v) / codes.scale + codes.zero).clamp(codes.low, codes.high)
    steps = (v / knee.unit + knee.half).to(torch.float32)
    found = kneed(steps, (knee.knee, knee.half), Ends(codes.zero, codes.low, codes.high))
    assert float((found.double() - exact).abs().max()) <= 0.5 + knee.error + 1e-3


@pytest.mark.parametrize("codes", [Codes(1e-7, 200, 0, 255), Codes(20.0, 3, 0, 255), Codes(1e9, 0, 0, 255)])
def test_a_range_that_no_product_fits_has_none(codes: Codes) -> None:
    assert knee_of(codes) is None


def test_a_constant_function() -> None:
    curve = made("sigmoid", Codes(1e6, 7, 0, 255))
    assert set(computed(curve, torch.linspace(-50, 50, 1001).double(), Codes(1e6, 7, 0, 255)).tolist()) == {7}


def test_a_step_that_is_too_fine_has_no_curve() -> None:
    assert curve_of("silu", F.silu, Codes(1e-5, 200, 0, 255)) is None


def test_edges_lie_between_pieces() -> None:
    codes = codes_for("hardswish", 6.0)
    curve = made("hardswish", codes)
    for edge in (-3.0, 3.0):
        assert (edge / curve.unit + curve.start + 1) % 2048 == pytest.approx(1, abs=1e-6)


def test_the_bytes_are_those_of_the_numbers() -> None:
    pieces = made("tanh", SIGNED).pieces
    both = with_halves(pieces)
    halves = both[96:].view(np.uint8).reshape(3, 2, 32).astype(np.int32)
    assert (both[:96] == pieces).all() and len(both) == 192
    assert ((halves[:, 1] << 8 | halves[:, 0]).astype(np.uint16).view(np.int16).reshape(-1) == pieces).all()


def test_plan_and_reference_compute_the_same() -> None:
    pieces = np.random.default_rng(0).integers(-16383, 16384, 96).astype(np.int16)
    x = np.arange(-32768, 32768)
    expected = curved(torch.from_numpy(x).float(), torch.from_numpy(pieces), Ends()).numpy()
    assert (np.clip((codes_of(pieces, x) >> 6) + 128, 0, 255) == expected).all()
