"""The tensors of compiled modules: found under the user's names, and kept on the CPU in their dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import ConfigError

MODULE = frozenset(dir(nn.Module))
MAX_PATH, MAX_PARTS = 2**16, 1024  # a module is made for each part: a bound on what a file's names allocate


def is_path(text: object) -> bool:
    """Whether it can be the dotted name of a tensor or submodule: no empty part, nothing of nn.Module's own, within bounds.

    Any other text will do: a name is only ever a key of a dict, or a literal in source.
    """
    if not isinstance(text, str) or len(text) > MAX_PATH or text.count(".") >= MAX_PARTS:
        return False
    return all(part and part not in MODULE for part in text.split("."))


def find_submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule under a dotted name, also where an attribute of the class hides it."""
    for part in filter(None, path.split(".")):
        module = module._modules[part]  # type: ignore[assignment]
    return module


def find(module: nn.Module, path: str) -> Tensor:
    """The tensor under a dotted name, through any attribute of a module that the name passes."""
    scopes, _, last = path.rpartition(".")
    value: Any = find_submodule(module, scopes)
    for table in (value._buffers, value._parameters):
        if table.get(last) is not None:
            return table[last]  # type: ignore[no-any-return]
    return getattr(value, last)  # type: ignore[no-any-return]


def keep_dtypes(fn: Callable[[Tensor], Tensor], what: str) -> Callable[[Tensor], Tensor]:
    """What `.to(...)` may do to an int8 module's tensors: ConfigError naming `what` for other devices and for casts."""
    probe = fn(torch.zeros(1, device="cpu", dtype=torch.float32))
    if probe.device.type != "cpu":
        raise ConfigError(f"{what} runs on the CPU, not on {probe.device}", code="device")
    if probe.dtype is not torch.float32:
        raise ConfigError(f"{what} keeps its dtypes; it cannot be cast to {probe.dtype}", code="dtype")

    def keep(tensor: Tensor) -> Tensor:
        made = fn(tensor)
        return made if made.dtype is tensor.dtype else tensor

    return keep
