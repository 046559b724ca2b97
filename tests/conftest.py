"""Options of the test run."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser import ABSENT
from tests.native_fixtures import emulated_neon, kernels, native_library  # noqa: F401

torch.set_num_threads(1)  # the tensors here are small: a second thread only waits, and the cores are for pytest's workers
if not torch.accelerator.is_available() and hasattr(torch.random, "_manual_seed_impl"):
    torch.random._manual_seed_impl = torch.default_generator.manual_seed  # else each seed notes the stack for devices that are not there
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of the child processes compiles the whole package, a second of its time


MODES: dict[str, tuple[Callable[[], Any], Any]] = {
    "gradients off": (torch.is_grad_enabled, True),
    "inference mode": (torch.is_inference_mode_enabled, False),
    "another default dtype": (torch.get_default_dtype, torch.float32),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, False),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), False),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files of tests/golden anew")


def pytest_configure() -> None:
    """What is imported and collected stays to the end, hundreds of thousands of objects: nothing is searched for garbage meanwhile."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on collections that look at all of it are rare."""
    gc.collect()
    gc.set_threshold(20_000, 10, 20)
    gc.enable()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tests that need a browser are left out where there is none: says so, and how many."""
    left_out = [r for r in terminalreporter.stats.get("skipped", []) if ABSENT in str(r.longrepr)]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} tests of the page were left out: {ABSENT}", yellow=True)


STATM = Path("/proc/self/statm")  # the second number: the pages that are in memory
MUCH, MORE = 2**30 // 4096, 2**28 // 4096
_kept = [MUCH - MORE]  # pages that were in memory behind the last time


def give_back() -> None:
    """Returns what is free to the system: glibc keeps the blocks of large models, 1.2 GB of one ViT, so that workers grow to 2 GB. It looks
    at all its blocks for it, 30 ms in a process of 1 GB: done where 256 MB have come, and not behind each test."""
    if not STATM.exists() or int(STATM.read_text().split()[1]) < _kept[0] + MORE:
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
    _kept[0] = max(int(STATM.read_text().split()[1]), MUCH - MORE)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A test that leaves torch in another mode fails itself, instead of those that run after it in its process. What it imported from its
    own folder goes with it: another's module of that name would be refused."""
    known = len(sys.modules)
    yield
    for name, module in list(sys.modules.items())[known:]:
        if "pytest-of-" in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]
    left = [name for name, (found, wanted) in MODES.items() if found() != wanted]
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    if torch.are_deterministic_algorithms_enabled():  # setting it imports torch._inductor: three seconds, and half again as many objects
        torch.use_deterministic_algorithms(False)
    give_back()
    assert not left, f"the test left torch with {', '.join(left)}"


@pytest.fixture
def eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that are made by hand get the bits that they have on CPUs with VNNI."""
    from qcompiler.nn.quantized import from_float, row

    for module in (from_float, row):
        monkeypatch.setattr(module, "adds_in_16_bits", lambda: False)
