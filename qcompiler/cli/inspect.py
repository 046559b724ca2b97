"""`qcompiler inspect`: what a file holds, for people or as JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

import qcompiler
from qcompiler.artifact.read import file_of
from qcompiler.cli.commands import app, clean_errors, console, facts, load, megabytes
from qcompiler.cli.options import Modules
from qcompiler.debug.explain import Explanation


@app.command()
@clean_errors
def inspect(
    file: Annotated[Path, typer.Argument(help="A file or folder that `quantize` wrote.")],
    modules: Modules = None,
    code: Annotated[bool, typer.Option("--code", help="Print the program's Python source as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ops, scales, zero points, ranges and dtypes as JSON instead.")] = False,
    codes: Annotated[bool, typer.Option("--codes", help="With --json: the integers of the weights as well.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the layers, shapes and memory of a native module as well.")] = False,
) -> None:
    """Show what FILE holds: each op int8 or float, with the reason, and the share of multiply-accumulates in int8."""
    converted = load(file, modules)
    explanation = qcompiler.explain(converted)
    if as_json:
        print(json.dumps(_as_data(converted, explanation, codes), indent=1, allow_nan=False))
        return
    console.print(explanation.table())
    table = facts(str(file))
    table.add_row("size", megabytes(os.stat(file_of(file)).st_size))
    table.add_row("tensors", str(len(converted.state_dict())))
    table.add_row("runs in int8", explanation.verdict)
    console.print(table)
    if code:
        console.print(str(getattr(converted, "code", "")), markup=False, highlight=False, soft_wrap=True)
    if plan:
        console.print(qcompiler.native_plan(converted), markup=False, highlight=False, soft_wrap=True)


def _as_data(module: nn.Module, explanation: Explanation, codes: bool) -> dict[str, object]:
    """As qcompiler/debug/schema/inspect.schema.json describes it."""
    share = explanation.int8_mac_share
    return {
        "format": "qcompiler-inspect", "version": 1, "verdict": explanation.verdict, "int8_mac_share": None if math.isnan(share) else share,
        "macs": explanation.macs, "sample": explanation.sample.to_data(), "ops": explanation.to_data(),
        "scales": _scales(module, codes),
    }  # fmt: skip


def _scales(module: nn.Module, codes: bool) -> list[dict[str, object]]:
    """Of each form of the call."""
    return [qcompiler.scales(form).to_data(codes) for form in getattr(module, "call_forms", [module])]
