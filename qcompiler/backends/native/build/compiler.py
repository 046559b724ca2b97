"""The C compiler: the first of QCOMPILER_CC, cc, gcc, clang and the ziglang package that there is."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qcompiler.errors import ConfigError, QCompilerError

VARIABLE = "QCOMPILER_CC"
SYSTEM = ("cc", "gcc", "clang")
HINT = f"install gcc or clang, or `pip install 'qcompiler[native]'` for one as a Python package, or set {VARIABLE} to a compiler's command"


class CompileError(QCompilerError):
    """The C compiler failed."""

    default_code = "native-compile"


@dataclass(frozen=True)
class Compiler:
    """`command`: what starts it; `version`: the first line that it says of itself."""

    command: tuple[str, ...]
    version: str

    def run(self, arguments: Iterable[str], folder: Path) -> None:
        """Raises CompileError with what the compiler says."""
        command = [*self.command, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            said = "\n".join(done.stderr.strip().splitlines()[:12])
            raise CompileError(
                f"{shlex.join(command)} failed in {folder}:\n{said}", hint=f"{self.version}; gcc 12 and clang 14 are known to work"
            )


def find() -> Compiler:
    """The compiler of this machine. Raises ConfigError where there is none."""
    found = find_if_there()
    if found is None:
        raise ConfigError("the native back end needs a C compiler and finds none", code="no-compiler", hint=HINT)
    return found


def find_if_there() -> Compiler | None:
    """The compiler of this machine; None where there is none. Raises ConfigError where the one that was asked for does not start."""
    return _found(os.environ.get(VARIABLE, ""))


@cache
def _found(asked: str) -> Compiler | None:
    if asked:
        made = _asked_version(tuple(shlex.split(asked)))
        if made is None:
            raise ConfigError(f"{VARIABLE}={asked!r:.200} starts no compiler", code="no-compiler", hint=HINT)
        return made
    return next((made for command in _candidates() if (made := _asked_version(command)) is not None), None)


def _candidates() -> Iterable[tuple[str, ...]]:
    for name in SYSTEM:
        if path := shutil.which(name):
            yield (path,)
    if importlib.util.find_spec("ziglang") is not None:
        yield (sys.executable, "-m", "ziglang", "cc")


def _asked_version(command: tuple[str, ...]) -> Compiler | None:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace", check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = done.stdout.strip().splitlines()
    return Compiler(command, said[0]) if done.returncode == 0 and said else None


@dataclass(frozen=True)
class Unit:
    """A C file of a library, and the flags that it is compiled with. `include`: where its headers lie, which changes nothing of it."""

    name: str
    source: Path
    flags: tuple[str, ...]
    include: tuple[Path, ...] = ()


def link(compiler: Compiler, units: Sequence[Unit], folder: Path, result: Path) -> None:
    """Compiles the units side by side in `folder` and makes a shared library of them."""

    def compile_one(unit: Unit) -> str:
        compiler.run([*unit.flags, *(f"-I{path}" for path in unit.include), "-c", str(unit.source), "-o", f"{unit.name}.o"], folder)
        return f"{unit.name}.o"

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, units))
    compiler.run(["-shared", "-o", str(result), *objects, "-lpthread"], folder)
