"""What one of several processes does that tune together: python -m tests.tuned_on_ranks SCENARIO,... SIZE FOLDER RANK."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import qcompiler
from qcompiler.tune import Corrections, Tuned, equalize, fit_ranges, reconstruct, sharing
from qcompiler.tune import autotune as room
from qcompiler.tune.moves import Move, State, Tell
from tests.children import WAITING
from tests.ranked import begin


class Net(nn.Module):
    """Depthwise and pointwise, with channels of unlike size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        for layer in (self.stem, self.depthwise, self.point):
            layer.weight.data *= torch.exp(torch.randn(len(layer.weight), 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.point(torch.relu(self.depthwise(torch.relu(self.stem(x)))))).mean((2, 3)))
        return y


def batches() -> list[Tensor]:
    return [torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(i)) for i in range(12)]


def shard(rank: int, size: int) -> list[Tensor]:
    """Unlike in length: rank 0 has more than the others."""
    data = batches()
    return data[: len(data) - 2 * (size - 1)] if rank == 0 else data[len(data) - 2 * (size - rank) :][:2]


def corrections(data: list[Tensor], prepared: Any) -> list[Corrections]:
    """One of each kind, each on the one before."""
    equal = equalize(prepared, data, alpha=0.5)
    ranges = fit_ranges(prepared, data, corrections=equal)
    return [equal, ranges, reconstruct(prepared, data, corrections=ranges)]


def parts(rank: int, size: int, folder: Path) -> None:
    """Each correction by itself."""
    prepared = qcompiler.prepare_fx(Net().eval(), None, (batches()[0],))
    qcompiler.calibrate(prepared, shard(rank, size), group=dist.group.WORLD)
    with sharing(dist.group.WORLD, WAITING):
        found = corrections(shard(rank, size), prepared)
    for number, one in enumerate(found):
        one.save(folder / f"part-{number}-{rank}")


def tuned(rank: int, size: int, **given: Any) -> Tuned:
    options = {"progress": False, "seconds": 600, "group": dist.group.WORLD, "timeout": WAITING} | given
    return qcompiler.autotune(Net().eval(), shard(rank, size), **options)


def whole(rank: int, size: int, folder: Path) -> None:
    found = tuned(rank, size, log=folder / "log")
    found.corrections.save(folder / f"whole-{rank}")
    print("steps", [(step.name, step.accepted, step.score) for step in found.steps])
    print("best", max(row.score.sqnr for row in found.table if row.score is not None and row.milliseconds) > found.table[1].score.sqnr + 1)  # type: ignore[union-attr]


def refused(rank: int, size: int, folder: Path) -> None:
    """A step that one rank cannot make is left by all, and what is asked otherwise on one rank is told; then all go on."""
    moves = room.MOVES

    def impossible(state: State, tell: Tell, effort: float) -> Corrections:
        if rank == 1:
            raise qcompiler.ConfigError("not on this machine")
        return equalize(state.prepared, state.batches, alpha=0.5)

    room.MOVES = (Move("impossible", lambda state: None, impossible), moves[1])  # type: ignore[misc]
    try:
        print("refused", [(step.name, step.accepted, step.why) for step in tuned(rank, size).steps[1:]])
    finally:
        room.MOVES = moves  # type: ignore[misc]
    try:
        tuned(rank, size, seed=rank)
    except qcompiler.QCompilerError as error:
        print("other", error)
    try:
        qcompiler.autotune(Net().eval(), shard(rank, size)[: 1 if rank else 4], progress=False, group=dist.group.WORLD, timeout=WAITING)
    except qcompiler.QCompilerError as error:
        print("few", error)


def dies(rank: int, size: int, folder: Path) -> None:
    """A rank ends within the second step; what was finished stands in the log."""
    moves = room.MOVES

    def ends(state: State, tell: Tell, effort: float) -> Corrections:
        if rank == 1:
            os._exit(1)
        return moves[2].make(state, tell, effort)

    room.MOVES = (moves[0], Move("reconstruct", lambda state: None, ends))  # type: ignore[misc]
    try:
        tuned(rank, size, log=folder / "log")
    except qcompiler.QCompilerError as error:
        print("gone", error)
    print("log", (folder / "log").read_text().count('"name"'))


if __name__ == "__main__":
    begin(globals())
