"""What one of several processes does that calibrate together: python -m tests.ranked SCENARIO,... SIZE FOLDER RANK."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

import qcompiler
from qcompiler import QConfig
from qcompiler.observers import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, default_per_channel_weight_observer
from qcompiler.observers import get_observer_state_dict as statistics
from tests.children import WAITING

OBSERVERS = {"minmax": MinMaxObserver, "histogram": HistogramObserver.with_args(bins=64)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return torch.cat([x, self.b(x) + x], 1)


class Counter(nn.Module):
    """Keeps state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.register_buffer("last", torch.zeros(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x + self.last)
        return self.last


def batches() -> list[Tensor]:
    return [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)) * (1 + i % 3) for i in range(8)]


def prepared(name: str, raw: bool = False) -> Any:
    model = Net().eval()
    if raw:
        return model
    return qcompiler.prepare_fx(model, QConfig(OBSERVERS[name], default_per_channel_weight_observer), (batches()[0],))


def shard(data: list[Tensor], rank: int, size: int) -> list[Tensor]:
    """Two batches in turn: unlike in length, and none of five for the last of four ranks."""
    return [batch for i, batch in enumerate(data) if (i // 2) % size == rank]


def exact(rank: int, size: int, folder: Path) -> None:
    for name in OBSERVERS:
        made = prepared(name)
        counts = tuple(
            qcompiler.calibrate(made, shard(part, rank, size), group=dist.group.WORLD) for part in (batches()[:5], batches()[5:])
        )
        texts = [remark.text for remark in qcompiler.remarks(made) if remark.pass_name == "calibrate"]
        torch.save((counts, dict(statistics(made)), texts), folder / f"{name}-{rank}.pt")


def held(made: fx.GraphModule) -> None:
    if not any(module.observed for module in made.modules() if isinstance(module, MinMaxObserver)):
        print("nothing is held")


def fails(rank: int, size: int, folder: Path) -> None:
    made, data = prepared("minmax"), shard(batches(), rank, size)
    broken = [*data[:1], data[1].clone(), *data[2:]]
    if rank:
        broken[1][0, 0, 0, 0] = torch.nan
    try:
        qcompiler.calibrate(made, broken, group=dist.group.WORLD, timeout=WAITING)
    except qcompiler.CalibrationError as error:
        print(error)
    held(made)
    print(f"all {qcompiler.calibrate(made, data, group=dist.group.WORLD)} batches")


def gone(rank: int, timeout: float, leave: Any) -> None:
    def ends() -> Any:
        yield batches()[0]
        leave()

    made = prepared("minmax")
    try:
        qcompiler.calibrate(made, ends() if rank else batches(), group=dist.group.WORLD, timeout=timeout)
    except qcompiler.CalibrationError as error:
        print(error)
    held(made)


def dies(rank: int, size: int, folder: Path) -> None:
    gone(rank, WAITING, lambda: os._exit(1))


def hangs(rank: int, size: int, folder: Path) -> None:
    gone(rank, 2, lambda: time.sleep(6))


def refused(rank: int, size: int, folder: Path) -> None:
    average = QConfig(MovingAverageMinMaxObserver, default_per_channel_weight_observer)
    other = prepared("minmax")
    if rank:
        qcompiler.calibrate(other, batches()[:1])
    for made in (
        qcompiler.prepare_fx(Net().eval(), average, (batches()[0],)), other,
        qcompiler.prepare_fx(Counter().eval(), None, (torch.randn(1, 3),)),
    ):  # fmt: skip
        try:
            qcompiler.calibrate(made, batches(), group=dist.group.WORLD)
        except qcompiler.ConfigError as error:
            print(error)


def begin(scenarios: dict[str, Any]) -> None:
    """Joins the group that the command line names, and runs its scenarios."""
    scenario, size, folder, rank = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=WAITING))
    for name in scenario.split(","):
        scenarios[name](rank, size, folder)


if __name__ == "__main__":
    begin(globals())
