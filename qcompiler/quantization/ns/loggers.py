"""Modules that keep what passes through them, and the shadow that runs a float module beside a quantized one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.executable.steps import real


def kept(value: object) -> Any:
    """A value as loggers keep it: detached, and safe from in-place ops that come later."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [kept(v) for v in value] if isinstance(value, (tuple, list)) else value


class Logger(nn.Module):
    """Base of loggers: `stats` is a dict of lists, one entry a call. A logger of your own takes no arguments to make."""

    def __init__(self) -> None:
        super().__init__()
        self.stats: dict[str, list[Any]] = {}

    def forward(self, *values: Any) -> object:
        """Subclasses record `values` in `stats`."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class OutputLogger(Logger):
    """Keeps every value that it is called with, under `stats["tensor_val"]`, and hands it on."""

    def __init__(self) -> None:
        super().__init__()
        self.stats["tensor_val"] = []

    def forward(self, x: Any) -> object:
        """Keeps a copy of `x`; returns `x` itself."""
        self.stats["tensor_val"].append(kept(x))
        return x


class ShadowLogger(Logger):
    """Keeps the outputs of a quantized module and of its float shadow, under `stats["quantized"]` and `stats["float"]`.

    Of a tuple, such as an LSTM's output and state, it keeps the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stats |= {"float": [], "quantized": []}

    def forward(self, x: Any, y: Any) -> None:
        """Keeps copies of the quantized output `x` and the float output `y`."""
        for name, value in (("quantized", x), ("float", y)):
            self.stats[name].append(kept(value[0] if isinstance(value, (tuple, list)) else value))


class Shadow(nn.Module):
    """A quantized module with the float module that it came from: both get the same input, the logger both outputs.

    Returns what the quantized module returns. `q_module`, `float_module`: the two. `logger_cls`: makes the logger, which is
    called with (quantized output, float output). The methods of FloatFunctional are shadowed like forward.
    """

    def __init__(self, q_module: nn.Module, float_module: nn.Module, logger_cls: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.orig_module = q_module
        self.shadow_module = float_module
        self.logger = logger_cls()

    def _both(self, method: str, *args: object, **kwargs: object) -> object:
        output = getattr(self.orig_module, method)(*args, **kwargs)
        named = {name: real(value) for name, value in kwargs.items()}
        with torch.no_grad():
            self.logger(output, getattr(self.shadow_module, method)(*(real(a) for a in args), **named))
        return output

    def forward(self, *args: Any, **kwargs: Any) -> object:
        """The output of the quantized module."""
        return self._both("__call__", *args, **kwargs)

    def add(self, x: Tensor, y: Tensor) -> Any:
        """Both modules' add."""
        return self._both("add", x, y)

    def add_scalar(self, x: Tensor, y: float) -> object:
        """Both modules' add_scalar."""
        return self._both("add_scalar", x, y)

    def mul(self, x: Tensor, y: Tensor) -> Any:
        """Both modules' mul."""
        return self._both("mul", x, y)

    def mul_scalar(self, x: Tensor, y: float) -> object:
        """Both modules' mul_scalar."""
        return self._both("mul_scalar", x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Any:
        """Both modules' cat."""
        return self._both("cat", x, dim)

    def add_relu(self, x: Tensor, y: Tensor) -> object:
        """Both modules' add_relu."""
        return self._both("add_relu", x, y)

    def matmul(self, x: Tensor, y: Tensor) -> Any:
        """Both modules' matmul."""
        return self._both("matmul", x, y)
