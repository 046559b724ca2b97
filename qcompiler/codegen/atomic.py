"""atomic_write: a file that is whole, old or new, whatever happens in between."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from qcompiler.errors import ArtifactWriteError

try:
    import fcntl
except ImportError:  # Windows: temporary files of killed processes stay behind
    fcntl = None  # type: ignore[assignment]


def atomic_write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes the chunks to `path`: temporary file beside it, fsync, rename, fsync of the folder.

    Keeps the mode of a file that is replaced; removes the temporary file on any exception, and those of writers that were
    killed. Raises ArtifactWriteError, with what stood there intact.
    """
    target = Path(os.path.realpath(path))
    try:
        _clean(target)
        descriptor, temporary = _open_locked(target)
        try:
            _write(descriptor, chunks)
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        _sync_folder(target.parent)
    except OSError as error:
        raise ArtifactWriteError(f"{path}: cannot write: {error.strerror or error}", hint="what stood there before is intact") from error


def _write(descriptor: int, chunks: Iterable[bytes | memoryview]) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(descriptor)


def _open_locked(target: Path) -> tuple[int, Path]:
    """A new temporary file, locked for as long as its writer lives."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.qcsave")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
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
    for name in glob.glob(f".{glob.escape(target.name)}.*.qcsave", root_dir=target.parent):
        leftover = target.parent / name
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW)
            try:
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
