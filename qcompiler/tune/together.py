"""One search in several processes: each has a share of the data, and all take the same decisions.

What is counted on a share (ends of channels, weights of ranges, rows of products, errors) is put together in the order of the ranks before
anything is decided on it. So every rank goes the same way, and ends with the same corrections. Times are those of the slowest rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.inputs.door import door
from qcompiler.workflow.ranks import Failed, Ranks, told

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
RESTART = "with a log, the same call goes on from the finished steps"


@dataclass(frozen=True)
class Refused:
    """What a rank says whose step is not possible: why."""

    why: str


class RefusedElsewhere(ConfigError):
    """A step that another rank could not make."""


class Together:
    """The processes that work on one search; without ranks this one alone."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks

    @property
    def is_alone(self) -> bool:
        return self.ranks is None or not self.ranks.others

    @property
    def is_first(self) -> bool:
        return self.ranks is None or self.ranks.own == 0

    def all(self, words: T) -> list[T]:
        """What each rank says, in their order. Raises CalibrationError that names a rank which failed or does not answer."""
        if self.ranks is None or self.is_alone:
            return [words]
        try:
            said = self.ranks.exchange(words)
        except CalibrationError as error:
            hint = f"did it end? its own output says why; {RESTART}"
            raise told(CalibrationError(error.message, code=error.code, hint=hint)) from error
        for rank, one in enumerate(said):
            if isinstance(one, Failed):
                text = f"rank {rank} failed: {one.why}"
                raise told(CalibrationError(text, code="rank-failed", hint=RESTART))
        for rank, one in enumerate(said):
            if isinstance(one, Refused):
                raise RefusedElsewhere(f"rank {rank}: {one.why}" if rank != self.ranks.own else one.why, code="rank-refused")
        return said  # type: ignore[return-value]

    def of_first(self, words: T) -> T:
        """What rank 0 says; the others may say anything."""
        if self.is_alone:
            return words
        return self.all(words if self.is_first else None)[0]  # type: ignore[return-value]

    def most(self, number: float) -> float:
        return max(self.all(number))

    def refuse(self, error: ConfigError) -> None:
        """Tells the others that a step is not possible here, so that they leave it as well."""
        if self.is_alone or isinstance(error, RefusedElsewhere):
            return
        try:
            self.all(Refused(error.message))
        except RefusedElsewhere:
            return


ALONE = Together()
_TOGETHER: ContextVar[Together] = ContextVar("together", default=ALONE)


def together() -> Together:
    """The processes that the work at hand is shared with."""
    return _TOGETHER.get()


@door
@contextmanager
def sharing(group: ProcessGroup | None, timeout: float = 1800.0) -> Iterator[None]:
    """Within it, `equalize`, `fit_ranges`, `reconstruct` and `correct_bias` are called by all processes of the group, each with its share
    of the batches, and give all of them the same corrections. The model is prepared and calibrated with the same group before.

    `group`: of torch.distributed; None for this process alone. `timeout`: seconds that one process waits for another.
    Raises CalibrationError that names a rank which fails or does not answer, ConfigError where no group was begun.
    """
    if group is None:
        yield
        return
    ranks = Ranks(group, timeout)
    token = _TOGETHER.set(Together(ranks))
    try:
        yield
    except BaseException as error:
        ranks.part(error)
        raise
    finally:
        _TOGETHER.reset(token)
