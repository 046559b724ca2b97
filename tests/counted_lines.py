"""How much work a function is, as a number that is the same on every machine and in every run."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.fx

import qcompiler

OURS = tuple(f"{Path(str(package.__file__)).resolve().parent}/" for package in (qcompiler, torch.fx))


def counted_lines(function: Callable[[], Any]) -> tuple[int, Any]:
    """How many lines of this compiler and of torch.fx a function runs (a comprehension runs one for each element), and its result.

    Lines of other modules are not counted: what a garbage collection lets go of is cleared up in weakref's the next time that anybody
    looks, at chance. The collector waits as well, for the sake of callbacks of ours.
    """
    count, before = 0, sys.gettrace()

    def line(frame: types.FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def call(frame: types.FrameType, event: str, arg: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(OURS) else None

    gc.disable()
    sys.settrace(call)
    try:
        result = function()
    finally:
        sys.settrace(before)
        gc.enable()
    return count, result
