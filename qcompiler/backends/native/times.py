"""What each layer of native regions takes in a call of any module that runs some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qcompiler.ambient import in_plain_torch
from qcompiler.backends.native.operator import OPERATOR, region_of_constants
from qcompiler.errors import ConfigError
from qcompiler.inputs.checks import check_whole
from qcompiler.inputs.door import door


@in_plain_torch
@door
def native_times(module: nn.Module, *args: object, repeat: int = 5, threads: int = 1, **kwargs: object) -> dict[str, dict[str, float]]:
    """Milliseconds of each native layer by the name of its value, `{"conv_q": {"ms": 0.12}}`: the least of `repeat` calls.

    What viz.save, viz.print and Document.with_numerics take as `numerics=`. ConfigError for a module that runs no native region.
    """
    if not isinstance(module, nn.Module):
        raise _not_native()
    check_whole(repeat, "repeat", 1)
    check_whole(threads, "threads", 1)
    watch = _Times(threads)
    for _ in range(repeat):
        with watch:
            module(*args, **kwargs)
    if not watch.least:
        raise _not_native()
    return {name: {"ms": nanoseconds / 1e6} for name, nanoseconds in watch.least.items()}


def _not_native() -> ConfigError:
    return ConfigError("native_times takes a module of the native back end", code="not-native", hint='convert with backend="native"')


class _Times(TorchDispatchMode):
    """Runs regions layer by layer with a clock between; `least`: nanoseconds by layer."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads = threads
        self.least: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        if func is not OPERATOR:
            return func(*args, **(kwargs or {}))
        inputs, constants, description = args
        region = region_of_constants(constants, description)
        times, results = region.times(*inputs, threads=self.threads)
        for name, nanoseconds in times.items():
            self.least[name] = min(nanoseconds, self.least.get(name, nanoseconds))
        return [result for result in results if isinstance(result, Tensor)]


__all__ = ["native_times"]
