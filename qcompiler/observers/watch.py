"""An observer at its place in the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qcompiler.errors import CalibrationError, NumericsError, Where

MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Recorded:
    """What a module had recorded at one time: its buffers and the attributes of its own."""

    module: nn.Module
    buffers: dict[str, torch.Tensor | None]
    attributes: dict[str, Any]

    @staticmethod
    def of(module: nn.Module) -> Recorded:
        with torch.inference_mode(False):  # a buffer made inside inference mode could not be changed outside it
            buffers = {name: None if value is None else value.clone() for name, value in module._buffers.items()}
        own = {name: value for name, value in vars(module).items() if name not in MODULE}
        return Recorded(module, buffers, {n: v.copy() if isinstance(v, (list, dict, set)) else v for n, v in own.items()})

    def restore(self) -> None:
        for name in [n for n in vars(self.module) if n not in MODULE and n not in self.attributes]:
            del vars(self.module)[name]
        vars(self.module).update(self.attributes)
        self.module._buffers.update(self.buffers)


class Watch(nn.Module):
    """An observer at its place in the graph; names the node when the data cannot be observed.

    A call that fails or is interrupted leaves the observer as it was. `take_back` undoes the last call that did not.
    """

    def __init__(self, observer: nn.Module, place: Where) -> None:
        super().__init__()
        self.observer = observer
        self.place = place
        self.before: tuple[Recorded, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.before = tuple(Recorded.of(module) for module in self.observer.modules())
        try:
            self.observer(x)
        except BaseException as error:
            self.take_back()
            if not isinstance(error, NumericsError):
                raise
            raise CalibrationError(error.message, code=error.code, where=self.place,
                                   hint="look at this batch, and at the layers before this node") from error  # fmt: skip
        return x

    def take_back(self) -> None:
        for recorded in self.before:
            recorded.restore()
        self.before = ()


class Batch:
    """One batch through all observers of a prepared module: it counts as a whole or not at all.

    `take_back` after an error or an interrupt, wherever it came.
    """

    def __init__(self, prepared: nn.Module) -> None:
        self.watches = [module for module in prepared.modules() if isinstance(module, Watch)]
        self.begin()

    def begin(self) -> None:
        for watch in self.watches:
            watch.before = ()

    def take_back(self) -> None:
        for watch in self.watches:
            watch.take_back()
