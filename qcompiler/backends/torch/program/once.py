"""What runs when a module is built: the once calls of its program, under its quantized engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.pack_store import PackStore, key_of
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import Call, ProgramError
from qcompiler.backends.torch.program.values import Const, Scale, ZeroPoint
from qcompiler.backends.torch.runtime.by_shape import ENGINE_LOCK
from qcompiler.backends.torch.runtime.once_arguments import ArgumentError, check_once
from qcompiler.errors import ConfigError
from qcompiler.ir.nested import Ref, rewrite


@contextmanager
def quantized_engine(engine: str) -> Iterator[None]:
    """Makes `engine` torch's quantized engine inside the block; one thread at a time. Raises ConfigError if torch lacks it."""
    if engine not in torch.backends.quantized.supported_engines:
        supported = ", ".join(sorted(torch.backends.quantized.supported_engines))
        raise ConfigError(f"the module was compiled for engine {engine!r:.40}; this torch has {supported}", code="engine")
    with ENGINE_LOCK:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


class _Once:
    """The once calls of a program, with what they have made so far."""

    def __init__(self, tensor: Callable[[str], Tensor], scales: Sequence[float], zero_points: Sequence[int]) -> None:
        self.tensor, self.scales, self.zero_points = tensor, scales, zero_points
        self.made: dict[str, Any] = {}

    def value(self, v: Any, copied: bool = True) -> Any:
        """An argument. A pack keeps the bias it is given: it must not change with the module's buffer, and so is copied."""
        if isinstance(v, Ref):
            return self.made[v.name]
        if isinstance(v, Const):
            return self.tensor(v.name).clone() if copied else self.tensor(v.name)
        if isinstance(v, Scale):
            return self.scales[v.index]
        return self.zero_points[v.index] if isinstance(v, ZeroPoint) else v

    def run(self, call: Call) -> Any:
        function = registry.resolve(call.op)
        given = functools.partial(self.value, copied=not getattr(function, "copies", False))
        args, kwargs = rewrite(call.args, given), rewrite(call.kwargs, given)
        try:
            check_once(function, args, kwargs)
        except ArgumentError as error:
            raise ProgramError(f"it cannot be built: {error}") from None
        return function(*args, **kwargs)


def run_once(
    program: Program,
    tensor: Callable[[str], Tensor],
    qparams: tuple[Sequence[float], Sequence[int]],
    store: PackStore | None = None,
    own: Collection[str] = (),
) -> dict[str, object]:
    """Results of the once calls, by name. The caller sets the engine. `qparams`: the program's scales and zero points. `store`: where
    equal ones are kept for several programs, but for those called `own`."""
    once = _Once(tensor, *qparams)
    if store is not None:
        store.leave(id(program))
    with torch.no_grad():
        for call in program.once:
            assert call.out is not None
            if store is None or call.out in own:
                once.made[call.out] = once.run(call)
                continue
            key, tensors = key_of(call, tensor, once.made, once.value)
            once.made[call.out] = store.made(id(program), key, tensors, functools.partial(once.run, call))
    return once.made
