"""autotune in several processes: the same decisions and corrections on every rank, errors that name a rank, a log to go on from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import qcompiler
from qcompiler.tune import Corrections
from tests.test_calibrate_on_ranks import run
from tests.tuned_on_ranks import Net, batches, corrections

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def on_ranks(scenario: str, size: int, folder: Path) -> list[str]:
    return run(scenario, size, folder, "tests.tuned_on_ranks")


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_ranks_get_the_same(size: int, tmp_path: Path) -> None:
    """Each correction alone, and the search; ends of channels are those of one process to the bit, sums but for their last digits."""
    printed = on_ranks("parts,whole", size, tmp_path)
    for name in ("part-0", "part-1", "part-2", "whole"):
        assert (tmp_path / f"{name}-0").exists(), printed
        first, *others = (Corrections.load(tmp_path / f"{name}-{rank}") for rank in range(size))
        assert first and all(other == first for other in others), name
    steps = {re.search("^steps (.*)$", text, re.M)[1] for text in printed}  # type: ignore[index]
    assert len(steps) == 1 and all("best True" in text for text in printed), printed
    prepared = qcompiler.prepare_fx(Net().eval(), None, (batches()[0],))
    qcompiler.calibrate(prepared, batches())
    equal, ranges, codes = corrections(batches(), prepared)
    found = [Corrections.load(tmp_path / f"part-{number}-0") for number in range(3)]
    assert found[0] == equal and found[1].ranges.keys() == ranges.ranges.keys() and found[2].codes.keys() == codes.codes.keys()


def test_what_one_rank_cannot_and_what_is_unlike(tmp_path: Path) -> None:
    first, second = on_ranks("refused", 2, tmp_path)
    for text in (first, second):
        assert "('impossible', False, 'not possible: " in text and "not on this machine" in text and "('scale-inputs'" in text, text
        assert "other rank 1 searches with another seed than rank 0" in text, text
    assert "few rank 1 failed: 1 batch of data" in first and "few 1 batch of data" in second


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_the_log_goes_on(tmp_path: Path) -> None:
    first, _ = on_ranks("dies", 2, tmp_path)
    assert "gone rank 1 does not answer" in first and "goes on from the finished steps" in first and "log 1" in first, first
    (tmp_path / "store").unlink()
    printed = on_ranks("whole", 2, tmp_path)
    assert all("best True" in text for text in printed), printed
    assert (tmp_path / "log").read_text().count('"name"') > 1


def test_without_a_group() -> None:
    with pytest.raises(qcompiler.ConfigError, match="no process group"):
        qcompiler.autotune(Net().eval(), batches(), progress=False, group=object())  # type: ignore[arg-type]
