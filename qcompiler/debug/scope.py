"""Which instruments watch a compile: those of its `debug=`, of the `with` blocks around it, and of the environment.

| variable | value | what it does |
|---|---|---|
| QCOMPILER_DEBUG | a directory | dumps every compile into it |
| QCOMPILER_PRINT | after, changed or diff, then maybe `:` and a glob of pass names | prints graphs to stderr |
| QCOMPILER_BISECT | a number, -1 for all | lets only the first rewrites run, and prints a line for each |
| QCOMPILER_REPRO_WEIGHTS | 0 or 1 | puts the real weights into crash reproducers |

An empty variable is as good as none. A value that means nothing is a ConfigError that names the variable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from qcompiler.compile.pass_manager import Context, tell, watch
from qcompiler.debug.blocks import of_blocks
from qcompiler.debug.dump_directory import Dump
from qcompiler.debug.environment import real_weights, setting
from qcompiler.debug.gate import Gate, gated, resumed
from qcompiler.debug.printer import Printer
from qcompiler.errors import ConfigError

HOOKS = ("start", "should_run", "before", "after", "on_error", "built", "finish")


def instruments_of(debug: object) -> list[object]:
    """The instruments of a `debug=` argument, the blocks and the environment. ConfigError for what is none."""
    found = [*_read(debug), *of_blocks()]
    unique = list({id(instrument): instrument for instrument in found}.values())
    return [*_environment(any(_is_dump(instrument) for instrument in unique)), *unique]


def _is_dump(instrument: object) -> bool:
    return isinstance(instrument, Dump)


def _read(debug: object) -> list[object]:
    if debug is None:
        return []
    if isinstance(debug, (list, tuple)):
        return [instrument for item in debug for instrument in _read(item)]
    if isinstance(debug, (str, os.PathLike)):
        return [Dump(debug)]
    if isinstance(debug, Gate):
        return [debug]
    if isinstance(debug, type) or not any(callable(getattr(debug, hook, None)) for hook in HOOKS):
        raise ConfigError(f"debug= takes a directory, an instrument, a Gate, or a list of these, not {debug!r:.100}", code="debug",
                          hint="an instrument is an object of a subclass of qcompiler.debug.PassInstrument")  # fmt: skip
    return [debug]


def _environment(dumps: bool) -> Iterator[object]:
    """A directory that was given takes the place of QCOMPILER_DEBUG's."""
    if os.environ.get("QCOMPILER_PRINT"):
        yield setting("QCOMPILER_PRINT", Printer.read, "after, changed or diff, or one of these with `:pass-glob`")
    if os.environ.get("QCOMPILER_DEBUG") and not dumps:
        yield Dump(setting("QCOMPILER_DEBUG", _directory, "a directory"))
    if os.environ.get("QCOMPILER_REPRO_WEIGHTS"):
        real_weights()  # refuse a bad value now, not in the middle of a failure


def _limit(text: str) -> int:
    limit = int(text)
    if limit < -1:
        raise ValueError("it is below -1")
    return limit


def _directory(text: str) -> str:
    if os.path.exists(text) and not os.path.isdir(text):
        raise ValueError("a file stands there")
    return text


@contextmanager
def watched(debug: object, phase: str, model: str, context: Context) -> Iterator[None]:
    """One compile: its instruments are started, watch all passes inside the block, and are finished, also after an error."""
    found, limit = instruments_of(debug), setting("QCOMPILER_BISECT", _limit, "a number of rewrites, or -1 for all of them")
    gate = next((g for g in found if isinstance(g, Gate)), None) or (resumed(limit, context) if limit is not None else None)
    instruments = [_started(i, phase, model, context) for i in found if not isinstance(i, Gate)]
    try:
        with watch(context, instruments), nullcontext() if gate is None else gated(gate):
            yield
    finally:
        tell(instruments, "finish", context, context)


def _started(instrument: object, phase: str, model: str, context: Context) -> object:
    made = tell([instrument], "start", context, phase, model, context)
    return instrument if not made or made[0] is None else made[0]
