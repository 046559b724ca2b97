"""What stands in for instructions that this processor has not: computes what they do, refuses what they refuse, finds planted faults."""

from __future__ import annotations

import ctypes as C
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qcompiler.backends.native import isa
from qcompiler.backends.native.build import library
from qcompiler.backends.native.build.compiler import Unit, find, link
from tests import native_without_silicon as stand_in
from tests import test_native_convolution as convolutions
from tests.native_abi import Library

FLAGS = ("-O1", "-fPIC", "-mamx-tile", "-mamx-int8")
# Of each instruction set: a file, what stands in it, what is written instead, and the convolution that shows it.
FAULTS = {
    "amx": [
        ("conv_amx.h", "QC_TILE_DOT(3, 5, 7);", "QC_TILE_DOT(3, 4, 7);", "3x3"),
        ("conv_amx.h", "QC_TILE_DOT(C1, A, 7);", "QC_TILE_DOT(C1, A, 6);", "pointwise, long"),
    ],
    "avx_vnni": [("vec.h", 'QC_DP_CLASS(x), QC_DP_CLASS "m"(w)', "QC_DP_CLASS(w), QC_DP_CLASS(x)", "3x3")],
}


class Sizes(C.Structure):
    _fields_ = [(name, C.c_int32) for name in ("rows", "bytes", "a_rows", "a_bytes", "b_rows", "b_bytes")]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "amx" not in stand_in.emulated():
        pytest.skip("AMX is not emulated here: the processor has it, or has no AVX-512 VNNI")
    folder = tmp_path_factory.mktemp("tiles")
    units = [Unit(name, stand_in.EMULATE / f"{name}.c", FLAGS) for name in ("tiles", "tiles_test")]
    link(find(), units, folder, folder / "tiles.so")
    return folder / "tiles.so"


def ends(tiles: Path, call: str) -> subprocess.CompletedProcess[str]:
    """How a process ends that makes the call. The tiles are 16 rows of sums, 16 of a, and 8 of b, which 32 bytes of a meet."""
    code = (
        f"from ctypes import *; c = CDLL({str(tiles)!r}); z = (c_int64 * 3)(64, 64, 64); s = (c_int32 * 6)(16, 64, 16, 32, 8, 64)\n"
        f"m = create_string_buffer(16384); at = c_void_p(addressof(m) + 8192)\n{call}"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("rows, chunk, channels", [(16, 64, 16), (1, 4, 1), (7, 32, 16), (16, 12, 5), (14, 60, 16)])
def test_a_product_of_tiles(tiles: Path, rows: int, chunk: int, channels: int) -> None:
    rng = np.random.default_rng(rows)
    a, b = rng.integers(0, 256, (rows, 100), dtype=np.uint8), rng.integers(-128, 128, (chunk // 4, 64), dtype=np.int8)
    a[0], b[:, :4] = 255, -128  # no sum saturates
    sums, down = np.full((rows, 24), 7, np.int32), (C.c_int64 * 3)(100, 64, 96)
    sizes = Sizes(rows, 4 * channels, rows, chunk, chunk // 4, 4 * channels)
    C.CDLL(str(tiles)).product(C.byref(sizes), *(C.c_void_p(x.ctypes.data) for x in (a, b, sums)), down, 3)
    weights = b.reshape(chunk // 4, 16, 4).transpose(0, 2, 1).reshape(chunk, 16)
    assert np.array_equal(sums[:, :channels], 3 * (a[:, :chunk].astype(np.int32) @ weights.astype(np.int32))[:, :channels])
    assert (sums[:, channels:] == 7).all()


def test_addresses_between_products(tiles: Path) -> None:
    """Each form of lea gives what the processor computes, where the handler takes it along with the instruction before it."""
    found = (C.c_int64 * 2 * 9 * 2)()
    assert C.CDLL(str(tiles)).addresses(C.byref(Sizes(16, 64, 16, 32, 8, 64)), found) == len(found[0])
    emulated, own = np.array(found)
    assert np.array_equal(emulated, own) and len(np.unique(own)) > len(own)


@pytest.mark.parametrize(
    "call, message",
    [
        ("c.never_configured()", "not configured"),
        ("s[4] = 16; c.product(s, at, at, at, z, 1)", "do not fit"),
        ("s[2] = 8; c.product(s, at, at, at, z, 1)", "do not fit"),
        ("s[2] = 17; c.product(s, at, at, at, z, 1)", "of such a size"),
    ],
)
def test_what_the_processor_would_refuse_ends_the_process(tiles: Path, call: str, message: str) -> None:
    done = ends(tiles, call)
    assert done.returncode == -signal.SIGABRT and message in done.stderr


def test_other_unknown_instructions_end_the_process_as_ever(tiles: Path) -> None:
    assert ends(tiles, "c.product(s, at, at, at, z, 1)").returncode == 0
    assert ends(tiles, "c.another_instruction()").returncode == -signal.SIGILL


def test_nothing_of_it_is_taken_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.ISA, raising=False)
    assert library.chosen() == stand_in.really()[-1] and set(stand_in.really()) | set(stand_in.emulated()) == set(library.here())
    script = "from qcompiler.backends.native.build.library import here; print(*here())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == stand_in.really()


@pytest.mark.slow  # builds kernels anew
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in library.here():
        pytest.skip(f"this machine has no {name}")
    copied = shutil.copytree(isa.KERNELS, tmp_path / "kernels")
    for file, right, wrong, _ in FAULTS[name]:
        text = (copied / file).read_text()
        assert right in text
        (copied / file).write_text(text.replace(right, wrong))
    monkeypatch.setattr(isa, "KERNELS", copied)
    faulty = Library(tmp_path, ["-O1"]).kernels(name)
    assert faulty is not None and faulty.isa == name
    for *_, case in FAULTS[name]:
        with pytest.raises(AssertionError):
            convolutions.test_convolution(faulty, "conv", convolutions.CONVOLUTIONS[case])
