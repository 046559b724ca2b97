"""Threads of the native back end where other processes need the processors."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qcompiler.backends.native import isa
from qcompiler.backends.native.build.compiler import find
from qcompiler.backends.native.build.library import RUN

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
STRICT = ("-std=c11", "-O1", "-Wall", "-Wextra", "-Werror")


def test_workers_that_keep_the_caller_waiting_are_asked_less_and_later_again(tmp_path: Path) -> None:
    """Three, one, none; each piece is computed once all the while; after a time one is asked again."""
    program, sources = tmp_path / "program", [Path(__file__).parent / "native_workers.c", RUN / "workers.c"]
    include = (f"-I{RUN}", f"-I{isa.KERNELS}")
    find().run([*STRICT, *include, "-o", str(program), *map(str, sources), "-lpthread"], tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == "3 1 0 1\n"
