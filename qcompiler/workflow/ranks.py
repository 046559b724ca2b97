"""One calibration on several machines: each rank runs its shard, and all ranks end with what one process would have seen in all of it.

Observers are merged in the order of the ranks, exactly or not at all: an observer that has no exact merge is an error before any data is
run. Each rank hears every other one by itself, so that one that is gone is named by its number.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import pickle
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from qcompiler.errors import CalibrationError, ConfigError, QCompilerError
from qcompiler.executable.call_forms import forms_of
from qcompiler.observers.base import SAW_DATA, ObserverBase
from qcompiler.observers.watch import MODULE, Recorded, Watch
from qcompiler.ops.state_nodes import held_names
from qcompiler.prepared.module import state_of

PARTING = timedelta(seconds=10)  # a rank which fails waits so long for the others to take its word
TOLD = "told_to_ranks"  # the attribute of an error that the others know of
TAGS = itertools.count()  # of messages: what one call leaves unheard is no other call's


class Ranks:
    """The processes of a group, for one call of all of them. `timeout`: seconds that one waits for another."""

    def __init__(self, group: dist.ProcessGroup, timeout: float) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ConfigError("no process group was begun", code="ranks", hint='torch.distributed.init_process_group("gloo") first')
        if dist.get_rank(group) < 0:
            raise ConfigError("this process is none of the group", code="ranks")
        self.group, self.timeout, self.own = group, timedelta(seconds=timeout), dist.get_rank(group)
        self.others = [rank for rank in range(dist.get_world_size(group)) if rank != self.own]

    def exchange(self, words: object) -> list[object]:
        """What each rank says, in the order of the ranks. CalibrationError that names the one that does not answer."""
        tag = next(TAGS)
        sent, heard = self._sent(words, tag), {self.own: words}
        for rank in self.others:
            heard[rank] = self._heard(rank, tag)
        if not any(isinstance(said, Failed) for said in heard.values()):  # one that failed does not listen
            for rank, work, _ in sent:
                self._wait(rank, work)
        return [heard[rank] for rank in sorted(heard)]

    def part(self, error: BaseException) -> None:
        """Last words of a rank that fails, said once: an error that was told goes through other calls on its way out."""
        if getattr(error, TOLD, False):
            return
        setattr(error, TOLD, True)
        why = error.message if isinstance(error, QCompilerError) else f"{type(error).__name__}: {error}"
        for _, work, _ in self._sent(Failed(why), next(TAGS)):
            try:
                work.wait(min(PARTING, self.timeout))
            except RuntimeError:
                return

    def _sent(self, words: object, tag: int) -> list[tuple[int, dist.Work, Tensor]]:
        data = torch.frombuffer(bytearray(pickle.dumps(words)), dtype=torch.uint8)
        found = []
        for rank in self.others:
            for part in (torch.tensor([len(data)]), data):
                try:
                    work = dist.isend(part, group=self.group, group_dst=rank, tag=tag)
                except RuntimeError:  # it is gone: hearing tells
                    continue
                if work is not None:
                    found.append((rank, work, part))
        return found

    def _heard(self, rank: int, tag: int) -> object:
        length = torch.zeros(1, dtype=torch.int64)
        self._receive(rank, length, tag)
        data = torch.empty(int(length), dtype=torch.uint8)
        self._receive(rank, data, tag)
        return pickle.loads(bytes(data.numpy()))

    def _receive(self, rank: int, into: Tensor, tag: int) -> None:
        try:
            work = dist.irecv(into, group=self.group, group_src=rank, tag=tag)
        except RuntimeError as error:
            raise _lost(rank, error) from error
        if work is not None:
            self._wait(rank, work)

    def _wait(self, rank: int, work: dist.Work) -> None:
        try:
            work.wait(self.timeout)
        except RuntimeError as error:
            raise _lost(rank, error) from error


def _lost(rank: int, error: Exception) -> CalibrationError:
    return told(CalibrationError(f"rank {rank} does not answer: {str(error).splitlines()[0]:.200}", code="rank-lost",
                                 hint="did it end? its own log says why; nothing of this call is held"))  # fmt: skip


def told(error: CalibrationError) -> CalibrationError:
    """An error about another rank, which all hear of by themselves."""
    setattr(error, TOLD, True)
    return error


@dataclass(frozen=True)
class Said:
    """What one rank saw: batches, its observers, the ranges of each batch by watch, and numbers given as arguments."""

    count: int
    observers: list[ObserverBase]
    seen: list[array[float] | None]
    numbers: list[dict[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Failed:
    """What a rank says that stops: why."""

    why: str


class Held:
    """What calibration changes in a prepared module: observers by path, batches that were seen, and numbers given as arguments."""

    def __init__(self, prepared: nn.Module) -> None:
        self.observers = [(name, module) for name, module in prepared.named_modules() if isinstance(module, ObserverBase)]
        self.watches = [module for module in prepared.modules() if isinstance(module, Watch)]
        self.numbers = [state.numbers for form in forms_of(prepared) if (state := state_of(form)) is not None]
        self.before, self.seen = [Recorded(observer) for _, observer in self.observers], self._seen()

    def _seen(self) -> list[array[float] | None]:
        return [copy.copy(watch.seen) for watch in self.watches]

    def restore(self) -> None:
        for recorded in self.before:
            recorded.restore()
        for watch, seen in zip(self.watches, self.seen):
            watch.seen = seen

    def forget(self) -> None:
        """All data, so that what is merged is what this call saw."""
        for _, observer in self.observers:
            if callable(reset := getattr(observer, "reset_min_max_vals", None)):
                reset()
        for watch in self.watches:
            watch.seen = None

    def checksum(self) -> str:
        """Of names, classes and statistics: ranks begin with the same."""
        found = hashlib.sha256()
        for name, observer in self.observers:
            found.update(f"{name} {type(observer).__name__}".encode())
            for key, value in observer.state_dict().items():
                found.update(f"{key} {value.dtype} {value.tolist()}".encode())
        return found.hexdigest()

    def said(self, count: int) -> Said:
        return Said(count, [observer for _, observer in self.observers], self._seen(), [held.seen for held in self.numbers])

    def take(self, said: Sequence[Said]) -> int:
        """What all ranks say, in their order, in place of what this one has; the number of batches."""
        for place, (_, observer) in enumerate(self.observers):
            _put(observer, [one.observers[place] for one in said])
        for place, watch in enumerate(self.watches):
            parts = [seen for one in said if (seen := one.seen[place]) is not None]
            watch.seen = array("d", [number for part in parts for number in part]) if parts else None
        for place, held in enumerate(self.numbers):
            for name, values in ((name, values) for one in said for name, values in one.numbers[place].items()):
                for value in values:
                    held.note({name: value})
        return sum(one.count for one in said)


def _put(observer: ObserverBase, found: Sequence[ObserverBase]) -> None:
    merged = copy.deepcopy(found[0])
    for other in found[1:]:
        if merged.gives_qparams is False or merged.measures:
            merged.merge(other)
    if any(vars(one).get(SAW_DATA) for one in found):
        vars(observer)[SAW_DATA] = True
    vars(observer).update({name: value for name, value in vars(merged).items() if name not in MODULE and name != SAW_DATA})
    observer._buffers.update(merged._buffers)


def over_ranks(prepared: nn.Module, ranks: Ranks, run: Callable[[], int]) -> int:
    """Runs this rank's shard, and merges; the number of batches of all. After an error on any rank all hold what they held before."""
    _check(prepared)
    held = Held(prepared)
    other = [rank for rank, said in enumerate(ranks.exchange(held.checksum())) if said != held.checksum()]
    if other:
        raise ConfigError(f"rank {other[0]} prepared another model, or calibrated this one on other data", code="ranks",
                          hint="prepare the same model on all ranks; calibrate it under one group from the first batch on")  # fmt: skip
    if ranks.own:
        held.forget()
    try:
        said = ranks.exchange(held.said(_shard(ranks, run)))
        failed = next(((rank, one) for rank, one in enumerate(said) if isinstance(one, Failed)), None)
        if failed is not None:
            text = f"rank {failed[0]} failed: {failed[1].why}"
            raise told(CalibrationError(text, code="rank-failed", hint="nothing of this call is held"))
        return held.take([one for one in said if isinstance(one, Said)])
    except BaseException:
        held.restore()
        raise


def _shard(ranks: Ranks, run: Callable[[], int]) -> int:
    """The number of batches of this rank; the others hear of its error."""
    try:
        return run()
    except BaseException as error:
        ranks.part(error)
        raise


def _check(prepared: nn.Module) -> None:
    """Raises ConfigError for what cannot be merged exactly."""
    for form in forms_of(prepared):
        state = state_of(form)
        if state is not None and state.settings.trains:
            raise ConfigError("several ranks calibrate a model of prepare_fx; this one is trained", code="ranks")
        if isinstance(form, fx.GraphModule) and held_names(form):
            raise ConfigError("the model keeps state between calls, so its batches are calls in turn, of one process", code="ranks")
    for name, module in prepared.named_modules():
        if isinstance(module, ObserverBase) and module.gives_qparams and module.measures:
            try:
                copy.deepcopy(module).merge(copy.deepcopy(module))
            except ConfigError as error:
                raise ConfigError(f"{name}: {error.message}", code=error.code, hint="choose an observer that has an exact merge") from error
