r"""Fixtures of the kernel tests: one library a session, and its kernels for each instruction set in turn.

QCOMPILER_TEST_CFLAGS adds flags to the library's, as for sanitizers:
LD_PRELOAD=$(cc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
QCOMPILER_TEST_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -O1" pytest ...
Undefined behaviour ends the process so: else it is a line on stderr, which pytest drops where the test passes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from qcompiler.backends.native import isa
from tests.native_abi import Kernels, Library
from tests.native_emulated import Emulated, needs_emulator
from tests.native_without_silicon import install

install()  # tests run on each instruction set that the machine has or can be made to have


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    return Library(tmp_path_factory.mktemp("kernels"), os.environ.get("QCOMPILER_TEST_CFLAGS", "").split())


@pytest.fixture(scope="session")
def emulated_neon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    needs_emulator()
    made = Emulated("neon", tmp_path_factory.mktemp("neon"))
    yield made
    made.close()


@pytest.fixture(params=[*isa.isas(isa.architecture()), *([] if isa.architecture() == "aarch64" else ["neon"])])
def kernels(request: pytest.FixtureRequest, native_library: Library) -> Kernels | Emulated:
    if request.param == "neon" and isa.architecture() != "aarch64":
        return request.getfixturevalue("emulated_neon")  # type: ignore[no-any-return]
    found = native_library.kernels(request.param)
    if found is None:
        pytest.skip(f"this machine has no {request.param}")
    return found
