"""Options of the test run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.browser import ABSENT

torch.set_num_threads(1)  # the tensors here are small: a second thread only waits, and the cores are for pytest's workers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files of tests/golden anew")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tests that need a browser are left out where there is none: says so, and how many."""
    left_out = [r for r in terminalreporter.stats.get("skipped", []) if ABSENT in str(r.longrepr)]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} tests of the page were left out: {ABSENT}", yellow=True)
