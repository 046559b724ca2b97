"""atomic_write: a file that is whole, old or new, whatever happens in between."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from qcompiler.errors import ArtifactWriteError

LONGEST = 200  # bytes of a target's name: file systems take 255 for one, and the temporary's is 25 longer

try:
    import fcntl
except ImportError:  # Windows: temporary files of killed processes stay behind
    fcntl = None  # type: ignore[assignment]


def atomic_write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes the chunks to `path`: temporary file beside it, fsync, rename, fsync of the folder.

    Keeps the mode of a file that is replaced; removes the temporary file on any exception, and those of writers that were
    killed. Raises ArtifactWriteError, with what stood there intact.
    """
    try:
        target = Path(os.path.realpath(path))
        _clean(target)
        descriptor, temporary = _open_locked(target)
        try:
            _write(descriptor, chunks)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        _sync_folder(target.parent)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ArtifactWriteError(f"{path!s:.400}: cannot write: {reason}", hint="what stood there before is intact") from error


def _write(descriptor: int, chunks: Iterable[bytes | memoryview]) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(descriptor)


def _temporary(target: Path, token: str) -> str:
    """Its name starts as the target's, of which a digest stands for what would make it too long."""
    name = target.name
    if len(os.fsencode(name)) > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}.{token}.qcsave"


def _open_locked(target: Path) -> tuple[int, Path]:
    """A new temporary file, locked for as long as its writer lives, with the mode of what it will replace from the start."""
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    while True:
        temporary = target.with_name(_temporary(target, secrets.token_hex(8)))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666 if mode is None else 0o600 & mode)
        if mode is not None:
            os.chmod(temporary, mode)
        if fcntl is None:
            return descriptor, temporary
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else another writer took it for a leftover before it was locked
            return descriptor, temporary
        os.close(descriptor)


def _clean(target: Path) -> None:
    """Removes temporary files whose writers are dead: nobody holds their lock."""
    if fcntl is None:
        return
    start, _, end = _temporary(target, "*").rpartition("*")
    for name in glob.glob(f"{glob.escape(start)}*{end}", root_dir=target.parent):
        leftover = target.parent / name
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(leftover)
            finally:
                os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
