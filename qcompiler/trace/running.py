"""Runs the user's calls on the examples: nothing is recorded meanwhile, and what fails says where the user called it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.node import Target
from torch.utils._pytree import tree_leaves

from qcompiler.errors import InputError, QCompilerError, UnsupportedOpError, Where, out_of_memory
from qcompiler.inputs.input_text import first_sentence, how_to_mend
from qcompiler.trace import places
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.mode import Training
from qcompiler.trace.nested import map_nested
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.recording import Recording


class Running:
    """The example values of one recorder."""

    def __init__(self, recorder: Recording) -> None:
        self._recorder = recorder

    def concrete(self, value: Any) -> Any:
        """Examples in place of proxies. Buffers are copied: no run on examples may change the model."""
        if type(value) is Proxy or type(value) is Opaque:
            return value.example
        if type(value) is Training:
            return False  # examples run in eval mode: one image has no batch statistics
        if isinstance(value, torch.Tensor) and self._recorder.attributes.is_buffer(value):
            return value.clone()
        return value

    def execute(self, op: str, target: Target, args: Any, kwargs: Any) -> Any:
        """The value of a call on the examples of its arguments."""
        values, options = map_nested(self.concrete, tuple(args)), map_nested(self.concrete, kwargs)
        if isinstance(target, str):  # a method
            return self.on_examples(getattr(type(values[0]), target), values, options)
        return self.on_examples(target, values, options)

    def on_examples(self, function: Callable[..., Any], args: Any, kwargs: Any) -> object:
        """Run plain torch on plain values; InputError where that fails."""
        if torch._C._is_any_autocast_enabled():  # the model's own: a trace begins without
            self._note_autocast()
            with torch._C._DisableAutocast():
                return self.on_examples(function, args, kwargs)
        self._recorder.paused += 1
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                return function(*args, **kwargs)
        except QCompilerError:
            raise
        except Exception as error:
            if (short := out_of_memory(error)) is not None:
                raise short from error
            raise self._failure(function, (args, kwargs), error) from error
        finally:
            self._recorder.paused -= 1

    def _failure(self, function: Callable[..., object], arguments: object, error: Exception) -> QCompilerError:
        file, line = places.raised_at(error.__traceback__)
        if file is None:
            file, line = places.user_line(sys._getframe(1), places.BOUNDARY)
        name = getattr(function, "__name__", type(function).__name__)
        name = type(function.args[0]).__name__ if type(function) is functools.partial else name  # a module
        text = f"{name} fails on the example inputs: {type(error).__name__}: {first_sentence(error)}"
        self._recorder.explain_failure(text)
        where, hint = Where(module_path=self._path(), source=places.spell(file, line)), how_to_mend(arguments, error)
        hint = hint or "call the model on these inputs to see the failure on its own"
        if any(isinstance(value, torch.Tensor) and value.is_complex() for value in tree_leaves(arguments)):
            return UnsupportedOpError(f"of complex values, {text}", code="complex", where=where, hint=hint)
        return InputError(text, where=where, hint=hint)

    def _note_autocast(self) -> None:
        remarks, path = self._recorder.remarks, self._path()
        if not any(remark.kind == "autocast" and remark.where.module_path == path for remark in remarks):
            where = Where(module_path=path, source=places.spell(*places.user_line(sys._getframe(1), places.BOUNDARY)))
            text = "autocast inside forward is left out: what it would compute in half precision is int8, or float32"
            remarks.append(TraceRemark("autocast", where, text))

    def _path(self) -> str | None:
        scopes = self._recorder.scopes
        return scopes[-1][0] if scopes else None
