"""What torch itself asks at each of its functions while a model is traced."""

from __future__ import annotations

import sys
from typing import Any

from torch.overrides import TorchFunctionMode

from qcompiler.trace.recording import Recording


class TraceMode(TorchFunctionMode):
    """Sends every torch function that the model calls to the tracer."""

    def __init__(self, tracer: Recording) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.tracer.paused:
            return func(*args, **(kwargs or {}))
        return self.tracer.dispatch(func, args, kwargs or {}, sys._getframe(1))
