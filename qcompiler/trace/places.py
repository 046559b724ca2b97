"""Lines of the user's code: where a traced value comes from, where an exception was raised."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import re
import sys
import sysconfig
from collections.abc import Callable
from functools import lru_cache
from types import FrameType, TracebackType

import torch
from torch import nn

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
BOUNDARY = ("run_forward", "trace")  # no line of the user's model lies outside these functions of the tracer
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep


@lru_cache(maxsize=4096)
def is_user_file(name: str) -> bool:
    """Whether a file is neither of torch, nor of this package, nor of the standard library, nor generated."""
    if name.startswith("<"):
        return False
    path = os.path.abspath(name)
    return not path.startswith((_TORCH, PACKAGE)) and ("site-packages" in path or not path.startswith(_STDLIB))


def user_line(frame: FrameType | None, boundaries: tuple[str, ...]) -> tuple[str | None, int | None]:
    """File and line of the innermost user frame, searched outwards up to a function of this package with a name in `boundaries`."""
    while frame is not None:
        code = frame.f_code
        if is_user_file(code.co_filename):
            return code.co_filename, frame.f_lineno
        if code.co_name in boundaries and os.path.abspath(code.co_filename).startswith(PACKAGE):
            break
        frame = frame.f_back
    return None, None


def user_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of a user's file."""
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def is_own(frame: FrameType | None) -> bool:
    """Whether code of the trace itself is called in a frame, and not a function of torch's that it hands on (`session`)."""
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE) and frame.f_code.co_name != "call"


def calling_frame() -> FrameType | None:
    """The frame of the user's that calls a method of a proxy, directly or through a builtin; None where torch's code does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return frame


def definition(function: Callable[..., object]) -> tuple[str | None, int | None]:
    """File and line of a function's `def`, of torch's as well; nothing where it is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return None, None
    file: str = code.co_filename  # of generated code `<eval_with_key>.7`, where the number depends on what ran before
    return (file[: file.index(">") + 1] if file.startswith("<") and ">" in file else file), code.co_firstlineno


def assigned_at(kind: type[nn.Module], name: str) -> str | None:
    """The first line of a class that assigns to an attribute or item of this name outside `__init__`; else that of its forward."""
    found = definition(kind.forward)
    with contextlib.suppress(OSError, TypeError):
        lines, first = inspect.getsourcelines(kind)
        inside = ""
        for number, line in enumerate(lines, first):
            inside = match[1] if (match := re.match(r"\s*def (\w+)", line)) else inside
            if inside != "__init__" and re.search(rf"(\.|['\"]){re.escape(name)}\b['\"\]]*\s*[-+*/|&%]*=(?!=)", line):
                return spell(inspect.getsourcefile(kind), number)
    return spell(*found)


def raised_at(traceback: TracebackType | None) -> tuple[str | None, int | None]:
    """File and line of the innermost user frame of an exception."""
    found: tuple[str | None, int | None] = (None, None)
    while traceback is not None:
        if is_user_file(traceback.tb_frame.f_code.co_filename):
            found = (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def text_of(file: str | None, line: int | None) -> str:
    """The source text of a line, or an empty string."""
    return linecache.getline(file, line).strip() if file and line else ""


def spell(file: str | None, line: int | None) -> str | None:
    return f"{file}:{line}" if file else None
