"""A cache folder of the native back end that goes with a test run: the kernels of the user's cache, and none of the networks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qcompiler.backends.native.build import cache
from qcompiler.backends.native.build.library import chosen, runtime


def native_cache(folder: Path, name: str | None = None) -> dict[str, str]:
    """The environment of child processes that build libraries of random networks below `folder`. The kernels of the fastest
    instruction set, and of one that is named, are built if they are not."""
    if shutil.which("cc") is not None:
        for wanted in {name or chosen(), chosen()}:
            runtime(wanted)
    made = folder / "cache" / "native"
    made.mkdir(mode=0o700, parents=True)
    for file in cache.folder().glob("qcompiler-*"):
        if file.suffix != ".lock" and not os.path.exists(made / file.name):
            shutil.copy2(file, made)
    return {cache.VARIABLE: str(made.parent)}
