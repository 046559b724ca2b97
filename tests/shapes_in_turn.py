"""Times int8 modules at shapes in turn: python -m tests.shapes_in_turn [MODEL ...] [--engine E] [--threads N].

One column a shape: milliseconds of the float model, of a module that was called with that shape alone, and of one that takes the shapes
in turn: the last two should agree. Best of interleaved rounds, since others' work only adds time.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import qcompiler
from qcompiler.vision import import_torchvision


def best_of(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each in its best round, after three calls that are not counted. Of one thread, those of the processor."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 3):
        for name, run in runs.items():
            start = clock()
            run()
            taken = (clock() - start) * 1e3
            best[name] = min(best[name], taken) if number >= 3 else best[name]
    return best


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="*", default=["mobilenet_v2"])
    arguments.add_argument("--engine", default="x86")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=40)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("model", "", *(shapes := ["16 x 224", "1 x 224", "4 x 192"]), title=f"ms, {options.engine}, {options.threads} threads")
    for name in options.models:
        model = getattr(import_torchvision().models, name)(weights=None).eval()
        inputs = [torch.randn(int(s.split()[0]), 3, int(s.split()[2]), int(s.split()[2])) for s in shapes]
        module = qcompiler.quantize(model, inputs[1:2], engine=options.engine, progress=False)
        alone = [copy.deepcopy(module) for _ in inputs]
        runs = {f"{kind}{i}": (lambda m=m, x=x: m(x)) for i, x in enumerate(inputs)
                for kind, m in (("float", model), ("alone", alone[i]), ("in turn", module))}  # fmt: skip
        with torch.inference_mode():
            best = best_of(runs, options.rounds)
        for kind in ("float", "alone", "in turn"):
            table.add_row(name, kind, *(f"{best[f'{kind}{i}']:.2f}" for i in range(len(inputs))))
    Console().print(table)


if __name__ == "__main__":
    main()
