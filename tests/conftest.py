"""Options of the test run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.browser import ABSENT
from tests.native_fixtures import emulated_neon, kernels, native_library  # noqa: F401

torch.set_num_threads(1)  # the tensors here are small: a second thread only waits, and the cores are for pytest's workers


MODES: dict[str, tuple[Callable[[], Any], Any]] = {
    "gradients off": (torch.is_grad_enabled, True),
    "inference mode": (torch.is_inference_mode_enabled, False),
    "another default dtype": (torch.get_default_dtype, torch.float32),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, False),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), False),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files of tests/golden anew")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tests that need a browser are left out where there is none: says so, and how many."""
    left_out = [r for r in terminalreporter.stats.get("skipped", []) if ABSENT in str(r.longrepr)]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} tests of the page were left out: {ABSENT}", yellow=True)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A test that leaves torch in another mode fails itself, instead of those that run after it in its process."""
    yield
    left = [name for name, (found, wanted) in MODES.items() if found() != wanted]
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    assert not left, f"the test left torch with {', '.join(left)}"


@pytest.fixture
def eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that are made by hand get the bits that they have on CPUs with VNNI."""
    from qcompiler.nn.quantized import from_float, row

    for module in (from_float, row):
        monkeypatch.setattr(module, "adds_in_16_bits", lambda: False)
