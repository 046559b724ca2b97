"""What is set around a call of ours: autocast, default dtype and device, gradients, modes. A model is compiled as outside all of it."""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map_only

from qcompiler.errors import ConfigError, out_of_memory

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=nn.Module)
PLAIN = "__compiles_plainly__"  # on the functions that `in_plain_torch` made

Setting = tuple[Callable[[], Any], Callable[[Any], None], Any]  # read, write, what a plain process has


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _precision(op: str) -> Setting:
    """How float32 products are rounded inside oneDNN ("bf16": of 8 bits of mantissa)."""

    def read() -> str:
        found: str = torch._C._get_fp32_precision_getter("mkldnn", op)
        return "none" if found == "ieee" else found

    def write(value: str) -> None:
        torch._C._set_fp32_precision_setter("mkldnn", op, "ieee" if value == "none" else value)

    return read, write, "none"


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


DTYPE: Setting = (torch.get_default_dtype, torch.set_default_dtype, torch.float32)
# Sums of integers have one result in any order; torch refuses them under this flag because they resize their output.
DETERMINISTIC: Setting = (_deterministic, _set_deterministic, (False, False))
OF_CALLS = (DTYPE, DETERMINISTIC)
OF_COMPILES: tuple[Setting, ...] = (
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, True),
    (torch._C._get_mkldnn_deterministic, torch._C._set_mkldnn_deterministic, False),
    *(_precision(op) for op in ("matmul", "conv", "rnn")),
)


class _Shared:
    """Settings of the whole process, plain while at least one thread is inside: the first sets them, the last puts them back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside: dict[int, int] = {}
        self.before: dict[int, Any] = {}

    @contextmanager
    def plain(self, setting: Setting) -> Iterator[None]:
        read, write, wanted = setting
        key, entered = id(setting), 0
        try:  # from here on: a Ctrl-C may come at any line
            with self.lock:
                entered = self.inside[key] = self.inside.get(key, 0) + 1
                if key not in self.before:
                    self.before[key] = read()
                    write(wanted)
            yield
        finally:
            with self.lock:
                self.inside[key] = max(self.inside.get(key, 0) - bool(entered), 0)
                if not self.inside[key] and key in self.before:
                    write(self.before[key])
                    del self.before[key]

    def needed(self, setting: Setting) -> bool:
        """Whether a setting is not plain, or is so only until another thread leaves."""
        return bool(self.inside.get(id(setting))) or setting[0]() != setting[2]


_shared = _Shared()


def call_is_plain() -> bool:
    """Whether a call of an int8 module computes here what it computes anywhere."""
    if torch.compiler.is_compiling():  # torch.compile keeps the settings of its own call
        return True
    around = torch._C._is_any_autocast_enabled() or torch._C._len_torch_function_stack() or torch._C._get_deterministic_algorithms()
    return not around and torch.get_default_dtype() is torch.float32


def widened(arguments: object) -> Any:
    """The arguments of a call, with float32 for the halves that float layers around hand out under autocast."""
    if not torch._C._is_any_autocast_enabled():
        return arguments
    halves = (torch.float16, torch.bfloat16)
    return tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype in halves else x, arguments)


def _default_device_stands() -> bool:
    modes = (torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack()))
    return any(isinstance(mode, DeviceContext) and mode.device.type != "cpu" for mode in modes)


@contextmanager
def plain_call() -> Iterator[None]:
    """Runs what is inside without autocast and deterministic mode, with the default dtype float32 on the CPU; gradients as they are."""
    with ExitStack() as stack:
        if torch._C._is_any_autocast_enabled():
            stack.enter_context(torch._C._DisableAutocast())
        for setting in OF_CALLS:
            if _shared.needed(setting):
                stack.enter_context(_shared.plain(setting))
        if _default_device_stands():
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def plain_torch() -> Iterator[None]:
    """Runs what is inside as in a fresh process and without gradients. ConfigError where tensors hold no values of their own.

    Parameters made in inference mode could not be saved or changed later, so it is off.
    """
    check_modes()
    with ExitStack() as stack:
        stack.enter_context(plain_call())
        for setting in OF_COMPILES:
            if _shared.needed(setting):
                stack.enter_context(_shared.plain(setting))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield


def check_modes() -> None:
    """Raises ConfigError inside what computes with stand-ins for tensors: fake tensors, torch.func's transforms, torch.jit.trace."""
    found = next((name for name in map(_stands_in, _get_current_dispatch_mode_stack()) if name), None)
    level = torch._C._functorch.peek_interpreter_stack()
    if level is not None:
        found = f"a transform of torch.func ({level.key().name.lower()})"
    if torch._C._get_tracing_state() is not None:
        found = "torch.jit.trace"
    if found is not None:
        raise ConfigError(f"a model cannot be compiled inside {found}: its tensors there hold no values of their own", code="inside-mode",
                          hint="compile the model before, and call the result inside")  # fmt: skip


def _stands_in(mode: object) -> str | None:
    kind = type(mode)
    stands_in = kind.__module__.startswith(("torch._subclasses.", "torch.fx.experimental."))
    return kind.__name__ if stands_in else None


def in_plain_torch(function: F) -> F:
    """The function, run inside `plain_torch`: what every public function that compiles, calibrates or measures a model is."""

    @functools.wraps(function)
    def run(*args: object, **kwargs: object) -> Any:
        with plain_torch():
            try:
                return function(*args, **kwargs)
            except Exception as error:
                short = out_of_memory(error)
                if short is None or short is error:
                    raise
                raise short from error

    setattr(run, PLAIN, True)
    return run  # type: ignore[return-value]


def copied_with_data(module: M) -> M:
    """A copy of a module that is made while shapes alone are run: its tensors have data, and those of some classes cannot be copied
    without (BatchNorm's buffers are such)."""
    with unset_fake_temporarily():
        return copy.deepcopy(module)


def caller_level() -> int:
    """The `stacklevel` at which a warning of the function that asks names the first line outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:
        frame, level = frame.f_back, level + 1
    return level
