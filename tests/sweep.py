"""A model zoo through the compiler: `python -m tests.sweep [--zoo timm|users] [NAME ...]` prints a line a model and a summary.

Each model runs in a process of its own, with a time limit. It is prepared, calibrated, converted and run; the line has the SQNR
against float, the share of multiply-accumulates in int8, the time of one forward in float and in int8, and the modules that
stay float leaves. A model fails where it raises, where a node has no provenance, or where what stays float or was not fused has
no remark (examine.py). `--backend native` adds how many regions it is, and what runs in torch beside them. `--full` also checks
torch.jit.script and a save and load; `--json FILE` adds a line a model with all of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import qcompiler
from qcompiler.debug import compute_sqnr
from tests.examine import examine

ZOOS = ("torchvision", "timm", "users")


def tensors(result: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


def sqnr(expected: Any, result: Any) -> float:
    """Of the worst of the outputs, dB."""
    pairs = zip(tensors(expected), tensors(result), strict=True)
    return min(float(compute_sqnr(a, b)) for a, b in pairs if a.is_floating_point())


def forward_ms(module: nn.Module, x: tuple[Any, ...]) -> float:
    """The fastest of a few calls, in ms."""
    found, begun = [], time.time()
    while len(found) < 3 or (len(found) < 20 and time.time() - begun < 2):
        start = time.perf_counter()
        module(*x)
        found.append(time.perf_counter() - start)
    return min(found) * 1e3


def attempt(check: Callable[[], bool]) -> str:
    """ "ok", "differs" or the first line of the error."""
    try:
        return "ok" if check() else "differs"
    except Exception as error:  # a sweep reports every failure
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def reloaded(module: nn.Module, folder: str) -> nn.Module:
    path = Path(folder) / "model.qc"
    qcompiler.save(module, path)
    loaded: nn.Module = qcompiler.load(path)
    return loaded


def native_parts(module: nn.Module) -> dict[str, Any]:
    """How many regions a native module has, and what runs in torch beside them."""
    calls = Counter(call.op for call in module.program.calls)  # type: ignore[operator, union-attr]
    why = Counter(remark.text for remark in qcompiler.remarks(module) if remark.code == "native-torch")
    return {"regions": calls.pop("runtime.run_region", 0), "why": dict(why.most_common()),
            "torch": {op: n for op, n in calls.items() if op != "operator.getitem"}}  # fmt: skip


@torch.no_grad()
def measure(model: nn.Module, x: tuple[Any, ...], full: bool, backend: str) -> dict[str, Any]:
    """What is to know of one model."""
    expected = model(*x)
    start = time.time()
    module = examine(model, *x, backend=backend)
    found: dict[str, Any] = {"seconds": time.time() - start}
    result = module(*x)
    rows = qcompiler.explain(module).rows
    floats = Counter(f"{row.op}: {row.reason}" for row in rows if not row.int8 and not row.mode)
    found |= {
        "size": list(x[0].shape), "sqnr": sqnr(expected, result), "share": qcompiler.explain(module).int8_mac_share,
        "leaves": {str(r.where.module_path): r.text for r in qcompiler.remarks(module) if r.code == "leaf"},
        "floats": dict(floats.most_common()), "float_macs": {row.node: [row.op, row.macs] for row in rows if row.macs and not row.int8},
        "ops": len(rows), "float_ms": forward_ms(model, x), "int8_ms": forward_ms(module, x),
    }  # fmt: skip
    if backend == "native":
        found["native"] = native_parts(module)
    if full:
        with tempfile.TemporaryDirectory() as folder:
            found["load"] = attempt(lambda: equal(result, reloaded(module, folder)(*x)))
        found["script"] = attempt(lambda: equal(result, torch.jit.script(module)(*x)))
    return found


def one(zoo: Any, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one model; `error` where it fails."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    try:
        return {"name": name} | measure(*zoo.build(name, arguments.pixels), arguments.full, arguments.backend)
    except Exception as error:  # a sweep reports every model
        return {"name": name, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def isolated(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """`one` in a process of its own, so that neither a crash nor an endless loop ends the sweep."""
    command = [
        sys.executable,
        "-m",
        "tests.sweep",
        "--zoo",
        arguments.zoo,
        "--backend",
        arguments.backend,
        "--only",
        name,
        *(["--full"] if arguments.full else []),
        *(["--pixels", str(arguments.pixels)] if arguments.pixels else []),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"name": name, "error": f"takes more than {arguments.limit} s"}
    except (IndexError, ValueError):
        return {"name": name, "error": f"exit status {done.returncode}: {done.stderr[-400:]}"}


def line(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"{found['name']:36s} FAILED {' '.join(found['error'].split())[:200]}"
    more = [f"{key}: {found[key][:80]}" for key in ("load", "script") if found.get(key, "ok") != "ok"]
    if "native" in found:
        more.append(f"{found['native']['regions']} regions, in torch: {found['native']['torch'] or 'nothing'}")
    leaves = [f"float leaves: {list(found['leaves'])[:4]}"] if found["leaves"] else []
    return (f"{found['name']:36s} {found['sqnr']:6.1f} dB  {found['share']:6.1%} int8  {found['float_ms']:7.1f} ms float"
            f" {found['int8_ms']:7.1f} int8  {found['seconds']:5.1f} s  {'  '.join(leaves + more)}")  # fmt: skip


def summary(records: list[dict[str, Any]]) -> str:
    good = [r for r in records if "error" not in r]
    text = f"{len(good)} of {len(records)} converted and ran, {sum(not r['leaves'] for r in good)} without a float leaf"
    if len(good) < 2:
        return text
    low, middle, high = statistics.quantiles((r["sqnr"] for r in good), n=4, method="inclusive")
    return f"{text}\nSQNR: quartiles {low:.1f}, {middle:.1f}, {high:.1f} dB"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--zoo", choices=ZOOS, default=ZOOS[0])
    parser.add_argument("--backend", choices=("torch", "native"), default="torch")
    parser.add_argument("--pixels", type=int, help="of a side, where the model takes any")
    parser.add_argument("--limit", type=float, default=300, help="seconds a model may take")
    parser.add_argument("--full", action="store_true", help="torch.jit.script, save and load too")
    parser.add_argument("--json", help="a file to which a line a model is added")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    zoo = importlib.import_module(f"tests.sweep_{arguments.zoo}")
    if arguments.only:
        print(json.dumps(one(zoo, arguments.only, arguments)))
        return
    try:
        wanted = arguments.names or zoo.names()
    except qcompiler.QCompilerError as error:
        sys.exit(str(error))
    records = []
    for name in wanted:
        records.append(isolated(arguments, name))
        print(line(records[-1]), flush=True)
        if arguments.json:
            with open(arguments.json, "a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    print(summary(records))


if __name__ == "__main__":
    main()
