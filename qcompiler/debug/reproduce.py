"""Runs what a crash reproducer holds: `python repro.py [--reduce]`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from qcompiler.debug.case import Case
from qcompiler.debug.reduce import reduce_into
from qcompiler.errors import ConfigError

NOT_REPRODUCED = 3  # exit status: the pipeline ran to its end


@cache
def script(path: str) -> object:
    """The user's script as a module, without what stands under `if __name__ == "__main__"`."""
    spec = importlib.util.spec_from_file_location("reproduced_script", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported", code="reproducer")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
