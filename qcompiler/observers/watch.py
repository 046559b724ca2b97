"""An observer at its place in the graph."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qcompiler.errors import CalibrationError, NumericsError, Where
from qcompiler.observers.base import ObserverBase, UniformQuantizationObserverBase

MODULE = frozenset(vars(nn.Module()))
COLLECTIONS = (list, dict, set)


class Recorded:
    """What a module had recorded at one time: its buffers and the attributes of its own. Taken at every call, so it is cheap."""

    __slots__ = ("attributes", "buffers", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.buffers = [(name, None if value is None else value.clone()) for name, value in module._buffers.items()]
        self.attributes = module.__dict__.copy()
        for name, value in module.__dict__.items():
            if type(value) in COLLECTIONS and name not in MODULE:
                self.attributes[name] = value.copy()

    def restore(self) -> None:
        module = self.module
        for name in [n for n in vars(module) if n not in self.attributes]:
            del vars(module)[name]
        vars(module).update(self.attributes)
        with torch.inference_mode(False):  # a buffer made inside inference mode could not be changed outside it
            module._buffers.update({name: None if value is None else value.clone() for name, value in self.buffers})


@dataclass(frozen=True)
class WatchKey:
    """What a watch looks at and how: the name and origin of the node, and what made the observer. A graph that is decided anew has the
    same keys for the same watches. Copies are the same object, as what makes observers is equal to itself alone."""

    name: str
    origin: tuple[str, ...]
    maker: Callable[..., Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> WatchKey:
        return self


class Watch(nn.Module):
    """An observer at its place in the graph; names the node when the data cannot be observed. `is_spare`: convert drops it (watch_spares).

    A call that fails or is interrupted leaves the observer as it was. `take_back` undoes the last call that did not. `seen`: the smallest
    and largest value of each batch that calibrate ran, NaN where it had none, and the number of its data, one triple behind the other.
    """

    seen: array[float] | None = None
    rounds = False  # what it passes on

    def __init__(self, observer: nn.Module, place: Where, key: WatchKey | None = None, is_spare: bool = False) -> None:
        super().__init__()
        self.key, self.is_spare = key, is_spare
        self.observer = observer
        self.place = place
        self.before: tuple[Recorded, ...] = ()
        self.parts = tuple(observer.modules())

    @property
    def of_its_group(self) -> bool:
        """Whether it finds the range of the group of its value. Spares do not, nor does what looks at a value for another reason."""
        return not self.is_spare and getattr(self.observer, "gives_qparams", True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.before = tuple(map(Recorded, self.parts))
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

    `take_back` after an error or an interrupt, wherever it came; `keep` otherwise, which counts. As a context around all batches of a call.
    """

    def __init__(self, prepared: nn.Module) -> None:
        self.watches = [module for module in prepared.modules() if isinstance(module, Watch)]
        watched = {id(part) for watch in self.watches for part in watch.parts}
        # observers that stand by themselves, as in hand-prepared models, are remembered whole: nothing tells when they are called
        self.others = [m for m in prepared.modules() if isinstance(m, ObserverBase) and id(m) not in watched]
        self.count = 0

    def begin(self) -> None:
        for watch in self.watches:
            watch.before = ()
            if isinstance(watch.observer, UniformQuantizationObserverBase):
                watch.observer.latest = ()
        self.before = [Recorded(observer) for observer in self.others]
        self.lengths = [len(watch.seen or ()) for watch in self.watches]

    def keep(self, number: float) -> None:
        """`number`: of the batch's data, equal for equal data."""
        for watch in self.watches:
            latest = getattr(watch.observer, "latest", None)
            if latest is not None:
                watch.seen = array("d") if watch.seen is None else watch.seen
                watch.seen.extend((*map(float, latest or (math.nan, math.nan)), number))
        self.count += 1

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *error: object) -> None:
        for watch in self.watches:
            vars(watch.observer).pop("latest", None)

    def take_back(self) -> None:
        for watch, length in zip(self.watches, self.lengths):
            watch.take_back()
            if watch.seen is not None:
                del watch.seen[length:]
        for recorded in self.before:
            recorded.restore()
