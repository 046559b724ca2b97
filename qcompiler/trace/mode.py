"""`module.training` while a model is traced for training: it goes into the graph as a value that is read at each call.

So `F.dropout(x, training=self.training)` follows train() and eval() of the module that it was traced from. A branch on it
cannot: the way that was taken in the trace is the graph's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

NAME = "training"


class Training(int):
    """Equals the flag; `path` names it in the model. `branched` hears where it becomes a truth value in the user's code."""

    path: str
    branched: Callable[[], None]

    def __new__(cls, value: bool, path: str, branched: Callable[[], None]) -> Training:
        flag = super().__new__(cls, value)
        flag.path, flag.branched = path, branched
        return flag

    def __bool__(self) -> bool:
        self.branched()
        return int(self) != 0

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, (int(self),)


class Modes:
    """Puts flags on the modules that are being followed, and takes them away."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def enter(self, module: nn.Module, path: str, branched: Callable[[], None]) -> bool:
        """Whether there was something to do: a module that is being followed already has its flag."""
        flag = vars(module).get(NAME)
        if not self.wanted or type(flag) is not bool:
            return False
        vars(module)[NAME] = Training(flag, f"{path}.{NAME}".lstrip("."), branched)
        return True

    @staticmethod
    def leave(module: nn.Module) -> None:
        vars(module)[NAME] = int(vars(module)[NAME]) != 0


@contextlib.contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Examples run in eval mode: of a batch of one, BatchNorm cannot make statistics, and the shape is what counts."""
    training = module.training
    vars(module)["training"] = False
    try:
        yield
    finally:
        vars(module)["training"] = training
