"""The modules of a drawing as nested clusters, for the formats that lay out themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from qcompiler.viz.boxes import Drawing


@dataclass
class Cluster:
    """A module, or part of the path to one: the items that stand in it directly, and the clusters inside."""

    name: str
    number: int = 0
    items: list[int] = field(default_factory=list)
    inner: list[Cluster] = field(default_factory=list)


def clusters(drawing: Drawing) -> Cluster:
    """The root cluster; numbers follow execution order. A cluster of one item and nothing else is left out."""
    root = Cluster("")
    found: dict[tuple[str, ...], Cluster] = {(): root}
    for i, item in enumerate(drawing.items):
        for depth in range(1, len(item.modules) + 1):
            key = item.modules[:depth]
            if key not in found:
                found[key] = Cluster(".".join(key))
                found[key[:-1]].inner.append(found[key])
        found[item.modules].items.append(i)
    _unwrap(root)
    for number, cluster in enumerate(_walk(root)):
        cluster.number = number
    return root


def _unwrap(cluster: Cluster) -> None:
    for inner in cluster.inner:
        _unwrap(inner)
    single = [c for c in cluster.inner if len(c.items) + len(c.inner) == 1 and not c.inner]
    cluster.items = sorted([*cluster.items, *(c.items[0] for c in single)])
    cluster.inner = [c for c in cluster.inner if c not in single]


def _walk(cluster: Cluster) -> Iterator[Cluster]:
    yield cluster
    for inner in cluster.inner:
        yield from _walk(inner)
