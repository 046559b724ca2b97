"""Fixtures of the kernel tests: one library a session, and its kernels for each instruction set in turn."""

from __future__ import annotations

import shutil

import pytest

from qcompiler.backends.native import isa
from tests.native_abi import Kernels, Library


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    return Library(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=isa.isas(isa.architecture()))
def kernels(request: pytest.FixtureRequest, native_library: Library) -> Kernels:
    found = native_library.kernels(request.param)
    if found is None:
        pytest.skip(f"this machine has no {request.param}")
    return found
