"""The kernels of another architecture under qemu: a process gets the struct of each call and all memory that it points into."""

from __future__ import annotations

import contextlib
import ctypes as C
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qcompiler.backends.native import isa
from tests.native_abi import FAMILIES, STRUCTS, live_arrays

REQUIRED = "QCOMPILER_REQUIRE_ARM"


def cross_compiler() -> list[str] | None:
    """A command that compiles for aarch64, statically: zig, or a cross gcc."""
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    for name in ("zig", "python-zig"):
        if shutil.which(name):
            return [name, "cc", "-target", "aarch64-linux-musl"]
    return ["aarch64-linux-gnu-gcc"] if shutil.which("aarch64-linux-gnu-gcc") else None


def needs_emulator() -> None:
    """Skips the test where Arm's code cannot be compiled or run, unless QCOMPILER_REQUIRE_ARM says that it must be."""
    if cross_compiler() is not None and shutil.which("qemu-aarch64") is not None:
        return
    reason = "needs zig or a cross compiler for aarch64, and qemu-aarch64"
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


def pointer_offsets(kind: type[C.Structure], at: int = 0) -> Iterator[int]:
    """Where a struct holds pointers, those of its members included."""
    for name, member, *_ in kind._fields_:
        where = at + getattr(kind, name).offset
        if member is C.c_void_p:
            yield where
        elif issubclass(member, C.Array) and member._type_ is C.c_void_p:
            yield from range(where, where + C.sizeof(member), C.sizeof(C.c_void_p))
        elif issubclass(member, C.Structure):
            yield from pointer_offsets(member, where)


class Emulated:
    """As tests.native_abi.Kernels, for one instruction set of aarch64."""

    def __init__(self, name: str, folder: Path) -> None:
        self.isa, self.folder = name, folder
        compiler = cross_compiler()
        assert compiler is not None
        objects = []
        for unit, (source, flags) in isa.units("aarch64").items():
            objects.append(str(folder / f"{unit}.o"))
            subprocess.run([*compiler, *flags, "-Wall", "-Wextra", "-Werror", "-c", str(source), "-o", objects[-1]], check=True)
        runner = Path(__file__).with_name("native_runner.c")
        command = [*compiler, "-O1", f"-I{isa.KERNELS}", "-static", str(runner), *objects, "-o", str(folder / "runner")]
        subprocess.run(command, check=True)
        self.runner: subprocess.Popen[bytes] | None = None  # starting it takes ten times as long as most calls

    def close(self) -> None:
        if self.runner is not None:
            self.runner.communicate()
            self.runner = None

    def _solve(self, problem: Path) -> None:
        """Raises CalledProcessError where the runner fails; the next call has another one."""
        if self.runner is None:
            command = ["qemu-aarch64", "-cpu", "max", str(self.folder / "runner"), self.isa, str(problem)]
            self.runner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.runner.stdin is not None and self.runner.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.runner.stdin.write(b"\n")
            self.runner.stdin.flush()
        said = self.runner.stdout.readline()
        if said != b"0\n":
            runner = self.runner
            self.close()
            raise subprocess.CalledProcessError(runner.returncode, runner.args, said)

    def __call__(self, family: str, threads: int = 1, **members: object) -> None:
        args = STRUCTS[family](**members)
        arrays = {a.ctypes.data: a for a in live_arrays()}
        starts, at = {}, 0
        for address, array in arrays.items():
            starts[address] = at + address % 64  # what is aligned stays aligned
            at += -(-(array.nbytes + 128) // 64) * 64
        raw, places = bytearray(bytes(args)), list(pointer_offsets(STRUCTS[family]))
        for place in places:
            (pointer,) = struct.unpack_from("<q", raw, place)
            struct.pack_into("<q", raw, place, self._offset(pointer, arrays, starts))
        memory = np.zeros(at + 64, np.uint8)
        for address, start in starts.items():
            memory[start : start + arrays[address].nbytes] = arrays[address].view(np.uint8).reshape(-1)
        head = struct.pack("<3q16s", len(places), memory.size, len(raw), family.encode())
        problem = self.folder / "problem"
        problem.write_bytes(head + bytes(raw) + struct.pack(f"<{len(places)}q", *places) + memory.tobytes())
        self._solve(problem)
        after = np.frombuffer(problem.read_bytes()[-memory.size :], np.uint8)
        for address, start in starts.items():
            arrays[address].view(np.uint8).reshape(-1)[:] = after[start : start + arrays[address].nbytes]

    @staticmethod
    def _offset(pointer: int, arrays: dict[int, np.ndarray], starts: dict[int, int]) -> int:  # type: ignore[type-arg]
        if pointer == 0:
            return -1
        for address, array in arrays.items():
            if address <= pointer < address + array.nbytes:
                return starts[address] + pointer - address
        raise AssertionError("a pointer leads to memory that tests.native_abi does not know")


assert set(FAMILIES) == set(STRUCTS)
