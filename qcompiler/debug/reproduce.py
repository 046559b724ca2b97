"""Runs what a crash reproducer holds: `python repro.py [--reduce]`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tokenize
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType

from qcompiler.debug.case import Case
from qcompiler.debug.definitions import definitions
from qcompiler.debug.reduce import reduce_into
from qcompiler.debug.reproducer import SCRIPTS
from qcompiler.errors import ConfigError
from qcompiler.ops.float_statements import Statement

NOT_REPRODUCED = 3  # exit status: the pipeline ran to its end


@cache
def script(path: str, *names: str) -> ModuleType:
    """What the user's script defines under these names, as a module; nothing else of it runs. Raises ConfigError where it has no such."""
    spec = importlib.util.spec_from_file_location(SCRIPTS[1], path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported", code="reproducer")
    with tokenize.open(path) as file:
        tree, missing = definitions(file.read(), names)
    if missing:
        raise ConfigError(f"{path} defines no {', '.join(sorted(missing))} at its top level", code="reproducer",
                          hint="the script has changed since, or makes it while it runs: put it into a module of its own")  # fmt: skip
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile(tree, path, "exec"), vars(module))
    return module


def statement(module: ModuleType, source: str, name: str, owner: str, file: str, line: int) -> FunctionType:
    """A statement of the user's code as a function, with the globals of its module."""
    return Statement(source, name, owner, module.__name__, file, line).function(vars(module))


def main(file: str, pipeline: str, names: Mapping[str, object], arguments: Sequence[str] | None = None) -> None:
    """What repro.py calls."""
    parser = argparse.ArgumentParser(prog="repro.py", description="Runs a failed pipeline again.")
    parser.add_argument("--reduce", action="store_true", help="write the smallest case that fails in the same way into reduced/")
    options = parser.parse_args(arguments)
    folder = Path(file).resolve().parent
    case = Case.load(folder, pipeline, names)
    if options.reduce:
        print(reduce_into(folder / "reduced", case))
        return
    case.run()
    expected = case.data["expected"]
    print(f"not reproduced: {expected['type']} ({expected['code']}) was expected, but the pipeline {pipeline} ran to its end",
          file=sys.stderr)  # fmt: skip
    sys.exit(NOT_REPRODUCED)
