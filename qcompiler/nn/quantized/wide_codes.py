"""A look at what callers hand to a module whose kernels overflow where activations have 8 bits: at its first calls, then no more.

Which bits a tensor's maker meant stands nowhere in it, and its codes are read by a pass over it. So the first calls alone are looked at;
a warm-up with zeros is not all that is seen.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from qcompiler.backends.torch.program.other_cpu import OtherCPUWarning

CALLS = 8
LARGEST = 127  # of two products of a code up to this and an int8 weight, the sum fits into 16 bits


def watched(forward: types.FunctionType, done: Callable[[], object], name: str) -> types.FunctionType:
    """`forward(module, *inputs)` that warns once where an input has codes above 127; `done` is called when it needs no more looks.

    torch.jit.script reads the same source as of `forward`, among the same globals.
    """
    left = CALLS

    def look(*inputs: object) -> None:
        nonlocal left
        if torch._C._is_tracing():  # there a look at values would be part of the trace
            return
        left -= 1
        wide = any(_is_wide(x) for x in inputs)
        if wide:
            text = (f"an input of {name} has codes above {LARGEST}: on this CPU, which lacks VNNI, kernels add products in 16 bits, and "
                    f"large sums are cut off. Quantize it to 7 bits: a scale of (largest - smallest) / {LARGEST}")  # fmt: skip
            warnings.warn(text, OtherCPUWarning, stacklevel=5)
        if wide or left <= 0:
            done()

    def watching(module: object, *inputs: object, **more: object) -> object:
        look(*inputs, *more.values())
        return forward(module, *inputs, **more)

    made = types.FunctionType(watching.__code__, forward.__globals__, forward.__name__, None, watching.__closure__)
    made.__wrapped__ = forward.__wrapped__  # type: ignore[attr-defined]
    return made


def _is_wide(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_quantized and x.numel() > 0 and int(x.int_repr().max()) > LARGEST
