"""Short versions of native_soak.py, which runs longer ones on demand."""

from __future__ import annotations

import shutil

import pytest

from tests.native_soak import VALGRIND, complaint, differing_calls, growth


def test_many_threads_get_the_bits_of_one() -> None:
    assert differing_calls(threads=8, calls=25) == 0


def test_changing_sizes_take_no_more_and_more_memory() -> None:
    assert growth(calls=200) < 2**23  # a table of sizes takes some 10 KB, and 16 of them are kept


@pytest.mark.slow  # each builds the kernels anew
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_valgrind_finds_nothing() -> None:
    assert not complaint("squeeze and excite", "scalar", VALGRIND)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(kind: str) -> None:
    assert not complaint("residual", "scalar", flags=[f"-fsanitize={kind}"])
