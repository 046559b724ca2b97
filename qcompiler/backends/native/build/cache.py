"""Compiled libraries in the user's cache folder, under the hash of all that they are made from.

QCOMPILER_CACHE, else $XDG_CACHE_HOME/qcompiler, else ~/.cache/qcompiler. Beside each library stands a record with the compiler, the
flags and the hash of the library; one that is not as its record says (a disk that was full) is made anew. What is written gets its name
last, so that a process which reads finds a whole library or none; one that wants to build what another builds waits for it. Where there is
no compiler, a library that any compiler made of the same sources is taken: results do not depend on the compiler.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qcompiler.backends.native.build.compiler import HINT, CompileError, Compiler, Unit, link
from qcompiler.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VARIABLE = "QCOMPILER_CACHE"
ROOM = 2**23  # bytes that a compiler may need beside the library, for its own files


def folder() -> Path:
    """The cache folder, made where it is missing. Raises ConfigError where it is somebody else's, whose libraries are not run."""
    asked = os.environ.get(VARIABLE)
    base = Path(asked) if asked else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcompiler"
    found = base / "native"
    try:
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = found.stat()
    except OSError as error:
        raise ConfigError(f"no cache folder {found}: {error}", code="native-cache", hint=f"set {VARIABLE} to a folder of yours") from error
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        text = f"{found} belongs to another user, or others may write to it: libraries from there are not run"
        raise ConfigError(text, code="native-cache", hint=f"set {VARIABLE} to a folder of yours")
    return found


def key_of(compiler: Compiler, sources: str) -> str:
    """A hash of what `hash_of` says and of the compiler."""
    return _digest(json.dumps([list(compiler.command), compiler.version, sources]).encode())


def hash_of(units: Sequence[Unit], headers: Sequence[Path]) -> str:
    """A hash of the sources, the headers that they include and the flags; not of the folders where these files lie."""
    parts = [json.dumps([unit.name, list(unit.flags)]).encode() + unit.source.read_bytes() for unit in units]
    return _digest(b"".join([*parts, *(header.name.encode() + b"\0" + header.read_bytes() for header in headers)]))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def library(compiler: Compiler | None, name: str, units: Sequence[Unit], headers: Sequence[Path]) -> Path:
    """The library of these units: from the cache, or built. ConfigError where the folder takes no file, and where there is neither a
    compiler nor such a library; CompileError as `link`."""
    kept = folder()
    sources = hash_of(units, headers)
    if compiler is None:
        return _of_any_compiler(kept, name, sources)
    path = kept / f"{name}-{key_of(compiler, sources)}.so"
    record = path.with_suffix(".json")
    if _is_whole(path, record):
        return path
    try:
        with _alone(path.with_suffix(".lock")):
            if not _is_whole(path, record):  # another process may have built it meanwhile
                _build(compiler, units, path, sources)
    except OSError as error:  # read-only, or full
        text = f"a library cannot be written to the cache folder {kept}: {error}"
        hint = f"set {VARIABLE} to a folder of yours with space left, and TMPDIR where the compiler's own files find none"
        raise ConfigError(text, code="native-cache", hint=hint) from error
    return path


def _of_any_compiler(kept: Path, name: str, sources: str) -> Path:
    for record in sorted(kept.glob(f"{name}-*.json")):
        if _noted(record).get("sources") == sources and _is_whole(record.with_suffix(".so"), record):
            return record.with_suffix(".so")
    text = f"the native back end needs a C compiler and finds none, and the cache folder {kept} has no {name} that was built before"
    hint = f"{HINT}; or fill {VARIABLE} where there is one, with the same version of this package, the same model and instruction set"
    raise ConfigError(text, code="no-compiler", hint=hint)


def _build(compiler: Compiler, units: Sequence[Unit], path: Path, sources: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as building:
        made = Path(building) / path.name
        try:
            link(compiler, units, Path(building), made)
        except CompileError:
            _try_to_write(building, tempfile.gettempdir())
            raise
        data = {"compiler": list(compiler.command), "version": compiler.version, "flags": {u.name: list(u.flags) for u in units},
                "sources": sources, "sha256": hashlib.sha256(made.read_bytes()).hexdigest()}  # fmt: skip
        record = path.with_suffix(".json")
        note = Path(building) / record.name
        note.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
        os.replace(made, path)
        os.replace(note, record)


def _try_to_write(*folders: str) -> None:
    """Raises OSError where one of them has no room for what a compiler writes: that it failed for it, compilers say in many ways."""
    for place in folders:
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(bytes(ROOM))
        except OSError as error:
            raise OSError(error.errno, error.strerror, place) from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time builds a library: the others wait for it. Where files cannot be locked each builds its own."""
    if fcntl is None:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield


def _is_whole(path: Path, record: Path) -> bool:
    try:
        return _noted(record).get("sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return False


def _noted(record: Path) -> dict[str, object]:
    """What a record says; nothing where it is none."""
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
