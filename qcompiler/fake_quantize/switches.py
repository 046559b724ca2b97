"""What every fake-quantize module has: two switches, and functions that set them in a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from qcompiler.inputs.door import door
from qcompiler.observers import ObserverBase


class FakeQuantizeBase(ObserverBase):
    """Base of modules that observe (`observer_enabled`) and fake-quantize (`fake_quant_enabled`) what passes.

    The switches are buffers, as torch.ao's, so that they are saved. `is_on` answers from a copy in Python and reads a buffer only
    after it was written: reading waits for an accelerator. In torch.compile a buffer that was written by hand, and not by
    `enable_...`, counts from the next call of `train()` or `eval()`.
    """

    switches: tuple[str, ...] = ("observer_enabled", "fake_quant_enabled")
    fake_quant_enabled: torch.Tensor
    observer_enabled: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, dtype: torch.dtype = torch.quint8, is_dynamic: bool = False) -> None:
        super().__init__(dtype, is_dynamic)
        self._on: dict[str, bool] = {}
        self._written: dict[str, tuple[int, int]] = {}
        self.add_switch("fake_quant_enabled", True)
        self.add_switch("observer_enabled", True)

    def add_switch(self, name: str, on: bool) -> None:
        """For constructors: a buffer that `is_on` reads. The class names it in `switches`."""
        self.register_buffer(name, torch.tensor([int(on)], dtype=torch.int64))
        self._on[name] = on

    def is_on(self, switch: str) -> bool:
        """Whether one of `switches` is on."""
        if not torch.compiler.is_compiling():
            self._look(switch)
        return self._on[switch]

    def _look(self, switch: str) -> None:
        buffer = getattr(self, switch)
        stamp = (id(buffer), -1 if buffer.is_inference() else buffer._version)
        if not buffer.is_meta and (buffer.is_inference() or self._written.get(switch) != stamp):
            self._on[switch] = bool(buffer[0])
            self._written[switch] = stamp

    def _set(self, switch: str, on: bool) -> None:
        getattr(self, switch).fill_(int(on))
        self._on[switch] = on

    def train(self, mode: bool = True) -> Self:
        for switch in self.switches:
            self._look(switch)
        return super().train(mode)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        self._set("fake_quant_enabled", enabled)

    def disable_fake_quant(self) -> None:
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        self._set("observer_enabled", enabled)

    def disable_observer(self) -> None:
        self.enable_observer(False)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._written.clear()
        for switch in self.switches:
            self._look(switch)


@door
def enable_fake_quant(module: nn.Module) -> None:
    """For `model.apply`: fake-quantize from now on."""
    if isinstance(module, FakeQuantizeBase):
        module.enable_fake_quant()


@door
def disable_fake_quant(module: nn.Module) -> None:
    """For `model.apply`: pass values on unchanged."""
    if isinstance(module, FakeQuantizeBase):
        module.disable_fake_quant()


@door
def enable_observer(module: nn.Module) -> None:
    """For `model.apply`: update qparams from now on."""
    if isinstance(module, FakeQuantizeBase):
        module.enable_observer()


@door
def disable_observer(module: nn.Module) -> None:
    """For `model.apply`: keep qparams as they are."""
    if isinstance(module, FakeQuantizeBase):
        module.disable_observer()
