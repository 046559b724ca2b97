"""Files, functions, lists of arguments and uses of Any do not grow: limits stand in counts.toml, and go down with the counts."""

from __future__ import annotations

import ast

import pytest

from tests.counts import Counts, _count_function, counts, limits, set_by_others, sources


@pytest.fixture(scope="module")
def made() -> Counts:
    return counts()


@pytest.mark.parametrize("name", Counts().numbers())
def test_no_count_is_over_its_limit(made: Counts, name: str) -> None:
    """A count that fell: `python -m tests.counts --write`."""
    places = getattr(made, name)
    assert len(places) <= limits()[name], "\n".join(places if name != "any_uses" else places[-20:])


def test_all_files_are_read() -> None:
    paths = list(sources())
    assert len(paths) > 400 and len(set(paths)) == len(paths)
    assert {path.parent.name for path in paths} >= {"passes", "patterns", "trace", "native"}


def test_what_is_counted() -> None:
    """A function too long, with too many arguments."""
    path = next(sources())
    text = "def f(a, b, c, d, e, *f, **g):\n" + "    pass\n" * 40
    node, found = ast.parse("\n" * 9000 + text).body[0], Counts()
    assert isinstance(node, ast.FunctionDef)
    _count_function(found, node, "here", path)
    assert found.functions == found.arguments == ["here:9001 f"]


def test_signatures_of_others_are_known() -> None:
    names = {path.name for path, _ in set_by_others()}
    assert {"api.py", "bisect.py", "conv.py", "functional.py", "packs.py", "commands.py"} <= names
