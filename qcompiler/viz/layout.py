"""Layered layout of a small acyclic graph, top to bottom: ranks, order within a rank, places.

Long edges run through dummy points, one a rank. Ranks are networkx's topological generations, the order within them comes from
barycentre sweeps, the places from isotonic regression. For the at most 60 or so boxes of a static drawing; x in box widths.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx as nx

SWEEPS, PATIENCE = 12, 4  # how often to sort the ranks, and how often without gain
DUMMY = 0.25  # room for an edge that passes, in box widths
GAP = 0.14

Point = tuple[float, int]  # x of the middle in box widths, rank
Edge = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Where each box stands, and the points that each edge passes between its two boxes."""

    boxes: tuple[Point, ...]
    bends: Mapping[Edge, tuple[Point, ...]]

    @property
    def width(self) -> float:
        xs = [x for x, _ in self.boxes] + [x for bend in self.bends.values() for x, _ in bend]
        return max(xs, default=0.0) + 0.5

    @property
    def ranks(self) -> int:
        return max((rank for _, rank in self.boxes), default=-1) + 1


def place(count: int, edges: Sequence[Edge]) -> Layout:
    """The layout of boxes 0..count-1; `edges` run from lower to higher numbers."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(edges)
    rank = {node: r for r, nodes in enumerate(nx.topological_generations(graph)) for node in sorted(nodes)}
    _pull_down(graph, rank)
    chains = _chains(count, edges, rank)
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    ranks = _ordered(rank, links)
    xs = _positions(ranks, links, count)
    boxes = tuple((xs[i], rank[i]) for i in range(count))
    return Layout(boxes, {edge: tuple((xs[d], rank[d]) for d in chain[1:-1]) for edge, chain in chains.items()})


def _pull_down(graph: nx.DiGraph, rank: dict[int, int]) -> None:
    """A box without inputs stands right above the first that reads it, not at the top."""
    import networkx as nx

    for node in reversed(list(nx.topological_sort(graph))):
        users = [rank[u] for u in graph.successors(node)]
        if users and not graph.in_degree(node):
            rank[node] = min(users) - 1


def _chains(count: int, edges: Sequence[Edge], rank: dict[int, int]) -> dict[Edge, list[int]]:
    """Each edge as its boxes with a dummy for every rank between them; gives the dummies their ranks."""
    chains, following = {}, count
    for source, target in edges:
        between = range(rank[source] + 1, rank[target])
        dummies = list(range(following, following + len(between)))
        rank.update(zip(dummies, between))
        following += len(dummies)
        chains[source, target] = [source, *dummies, target]
    return chains


def _neighbours(links: Sequence[Edge]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for a, b in links:
        below.setdefault(a, []).append(b)
        above.setdefault(b, []).append(a)
    return above, below


def _ordered(rank: Mapping[int, int], links: Sequence[Edge]) -> list[list[int]]:
    """Ranks with their nodes in an order of few crossings: the best of some barycentre sweeps."""
    ranks: list[list[int]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for node in sorted(rank):
        ranks[rank[node]].append(node)
    above, below = _neighbours(links)
    best, fewest, since = [list(r) for r in ranks], _crossings(ranks, below), 0
    for sweep in range(SWEEPS):
        if not fewest or since == PATIENCE:
            break
        down = sweep % 2 == 0
        for row in ranks if down else ranks[::-1]:
            _sort_row(row, ranks, rank, above if down else below, -1 if down else 1)
        crossings = _crossings(ranks, below)
        since = 0 if crossings < fewest else since + 1
        if crossings < fewest:
            best, fewest = [list(r) for r in ranks], crossings
    return best


def _sort_row(row: list[int], ranks: list[list[int]], rank: Mapping[int, int], beside: Mapping[int, list[int]], step: int) -> None:
    if not row or not 0 <= rank[row[0]] + step < len(ranks):
        return
    at = {node: i for i, node in enumerate(ranks[rank[row[0]] + step])}
    own = {node: i for i, node in enumerate(row)}

    def middle(node: int) -> float:
        found = [at[n] for n in beside.get(node, []) if n in at]
        return sum(found) / len(found) if found else float(own[node])

    row.sort(key=lambda node: (middle(node), own[node]))


def _crossings(ranks: Sequence[Sequence[int]], below: Mapping[int, list[int]]) -> int:
    total = 0
    for upper, lower in pairwise(ranks):
        at = {node: i for i, node in enumerate(lower)}
        ends = [at[b] for a in upper for b in sorted(below.get(a, []), key=lambda n: at.get(n, 0)) if b in at]
        seen: list[int] = []
        for end in ends:
            total += len(seen) - bisect.bisect_right(seen, end)
            bisect.insort(seen, end)
    return total


def _positions(ranks: Sequence[Sequence[int]], links: Sequence[Edge], count: int) -> dict[int, float]:
    """x of every node: as near to the middle of its neighbours as the order of its rank leaves room for."""
    above, below = _neighbours(links)
    size = {node: 1.0 if node < count else DUMMY for row in ranks for node in row}
    xs: dict[int, float] = {}
    for row in ranks:
        _settle(row, dict.fromkeys(row, 0.0), size, xs)
    for sweep in range(SWEEPS):
        beside = (above, below)[sweep % 2]
        for row in ranks if sweep % 2 == 0 else ranks[::-1]:
            wanted = {}
            for node in row:
                found = [xs[n] for n in beside.get(node, [])]
                wanted[node] = sum(found) / len(found) if found else xs[node]
            _settle(row, wanted, size, xs)
    left = min((xs[n] - size[n] / 2 for n in xs), default=0.0)
    return {node: round(x - left, 4) for node, x in xs.items()}


def _settle(row: Sequence[int], wanted: Mapping[int, float], size: Mapping[int, float], xs: dict[int, float]) -> None:
    """Places a row in its order, without overlap, at the least sum of squared distances from `wanted` (isotonic regression)."""
    offset, blocks, total = [], [], 0.0
    for i, node in enumerate(row):
        total += (size[row[i - 1]] + size[node]) / 2 + GAP if i else 0.0
        offset.append(total)
        blocks.append([wanted[node] - total, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, weight = blocks.pop()
            first = blocks[-1]
            first[0] = (first[0] * first[1] + mean * weight) / (first[1] + weight)
            first[1] += weight
    values = [mean for mean, weight in blocks for _ in range(int(weight))]
    for node, shift, value in zip(row, offset, values):
        xs[node] = value + shift
