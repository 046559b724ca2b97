"""Cases in child processes: each way to fail is told with its number, the rest goes on, and a log is gone on behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import children

COMMAND = ["tests.planted_cases"]


def test_each_way_to_fail_is_told_with_its_number(capfd: pytest.CaptureFixture[str]) -> None:
    found = children.run(COMMAND, 0, 10, children.Log())
    bad = dict(found.bad)
    assert sorted(bad) == [3, 5, 7, 9]  # what kills the child at its exit is told with the last case
    assert "signal 11 in the case" in bad[3] and "ValueError: five" in bad[5] and "exit status 1 in the case seven" in bad[7]
    assert "signal 6 at the exit behind" in bad[9]
    assert found.outcomes == {"even": 5, "odd": 1, "BAD": 4}
    assert children.report(found) == 1
    told = capfd.readouterr()
    assert "number 3: CRASH" in told.out
    assert "number 3: CRASH" in told.err and told.err.endswith("10 of 10 done, 4 bad\n")  # as they came


def test_a_run_goes_on_behind_its_log(tmp_path: Path) -> None:
    file = tmp_path / "log"
    first = children.run(COMMAND, 0, 4, children.Log(file, *COMMAND))
    lines = file.read_text()
    file.write_text(lines[:-9])  # it was ended while it wrote
    again = children.Log(file, *COMMAND)
    assert sorted(again.done) == [0, 1, 2]
    assert children.run(COMMAND, 0, 4, again) == first
    assert file.read_text() == lines
    with pytest.raises(ValueError, match="another command"):
        children.Log(file, "other")


def test_a_child_that_never_starts_is_told() -> None:
    (bad,) = children.run(["tests.no_such_module"], 4, 1, children.Log()).bad
    assert bad[0] == 4 and "exit status 1" in bad[1] and "No module named" in bad[1]
