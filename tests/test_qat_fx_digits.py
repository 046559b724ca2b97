"""Training on real data: what examples/qat_digits.py shows, with fewer epochs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    pytest.importorskip("sklearn")
    path = Path(__file__).resolve().parent.parent / "examples" / "qat_digits.py"
    spec = importlib.util.spec_from_file_location("qat_digits", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    accuracies: dict[str, float] = module.main(quick=True)
    return accuracies


def test_float_is_a_trained_network(found: dict[str, float]) -> None:
    assert found["float"] > 97


def test_eight_bits_cost_half_a_point_at_most(found: dict[str, float]) -> None:
    assert found["qat8"] >= found["float"] - 0.5


def test_at_four_bits_training_wins_over_calibration(found: dict[str, float]) -> None:
    assert found["qat4"] > found["ptq4"]
    assert found["qat4"] >= found["float"] - 1


@pytest.mark.parametrize("bits", [8, 4])
def test_int8_is_the_fake_quantized_network_on_every_image(found: dict[str, float], bits: int) -> None:
    assert found[f"same{bits}"] == 100.0
    assert found[f"steps{bits}"] <= 1
