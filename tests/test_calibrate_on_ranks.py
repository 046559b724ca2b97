"""calibrate in several processes: the ranges of all data to the bit, on every rank, and an error that names the rank which is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qcompiler
from qcompiler import QConfig
from qcompiler.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    default_per_channel_weight_observer,
    get_observer_state_dict,
)
from qcompiler.workflow.ranks import Held
from tests.children import WAITING
from tests.ranked import OBSERVERS, batches, prepared

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def run(scenario: str, size: int, folder: Path, module: str = "tests.ranked") -> list[str]:
    """What each rank printed; the ranks are processes of this machine that meet through a file."""
    command = [sys.executable, "-m", module, scenario, str(size), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for rank in range(size)
    ]
    try:
        return [child.communicate(timeout=WAITING)[0] for child in children]
    finally:
        for child in children:
            child.kill()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_equal_to_one_process_to_the_bit(size: int, tmp_path: Path) -> None:
    """Min-max and histogram, in two calls, shards of unlike length, an empty one among them for four."""
    printed = run("exact", size, tmp_path)
    for name in OBSERVERS:
        whole = prepared(name)
        assert qcompiler.calibrate(whole, batches()[:5]) == 5
        assert qcompiler.calibrate(whole, batches()[5:]) == 3
        wanted = get_observer_state_dict(whole)
        for rank in range(size):
            path = tmp_path / f"{name}-{rank}.pt"
            assert path.exists(), printed[rank]
            count, found, texts = torch.load(path, weights_only=True)
            assert count == (5, 3) and list(found) == list(wanted)
            assert all(torch.equal(found[key], wanted[key]) for key in wanted), (name, rank)
            assert any(text.startswith("8 batches") for text in texts), texts


def test_a_rank_that_cannot_that_fails_and_that_dies(tmp_path: Path) -> None:
    """What cannot be merged is told before any data is run. All hold nothing of a call that one rank fails in, and go on. A rank
    that ends is named. One life of two processes, since starting them is what takes time."""
    first, second = run("refused,fails,dies", 2, tmp_path)
    for text in (first, second):
        assert "moving averages depend on the order" in text and "another model" in text and "in turn" in text
        assert "\nall 8 batches" in text
    assert "rank 1 failed: batch 1: 1 NaN" in first and "batch 1: 1 NaN" in second and "rank 1 failed" not in second
    assert "rank 1 does not answer" in first
    assert (first.count("nothing is held"), second.count("nothing is held")) == (2, 1)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tmp_path: Path) -> None:
    printed = run("hangs", 2, tmp_path)
    assert "rank 1 does not answer" in printed[0]


def test_without_a_group() -> None:
    with pytest.raises(qcompiler.ConfigError, match="no process group"):
        qcompiler.calibrate(prepared("minmax"), batches(), group=object())  # type: ignore[arg-type]


@pytest.mark.parametrize("observer", [MinMaxObserver, HistogramObserver])
def test_merging_is_that_of_the_observers(observer: type) -> None:
    """In one process: what two ranks say, put into a third."""
    mapping = QConfig(observer, default_per_channel_weight_observer)
    whole, *parts = (qcompiler.prepare_fx(prepared("minmax", raw=True), mapping, (batches()[0],)) for _ in range(3))
    qcompiler.calibrate(whole, batches())
    qcompiler.calibrate(parts[0], batches()[:3])
    qcompiler.calibrate(parts[1], batches()[3:])
    said = [Held(part).said(n) for part, n in zip(parts, (3, 5))]
    assert Held(parts[1]).take(said) == 8
    found, wanted = get_observer_state_dict(parts[1]), get_observer_state_dict(whole)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_an_average_is_no_exact_merge() -> None:
    with pytest.raises(qcompiler.ConfigError, match="order"):
        MovingAverageMinMaxObserver().merge(MovingAverageMinMaxObserver())
