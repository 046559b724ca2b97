"""From nodes to what a drawing shows: constants left out, modules collapsed to boxes with their sums.

A box is a run of neighbours in execution order that share the first parts of their module path. So edges between boxes never
form a cycle, and a module that is called twice is two boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qcompiler.debug.document import Document, Node
from qcompiler.debug.op_steps import is_op
from qcompiler.viz.labels import count_text, plain, shape_text, short_op

HIDDEN = ("attr", "pack", "observer")  # what an op is made of, not what it computes
BOX = "box"


Run = tuple[str | None, tuple[str, ...], list[Node]]  # title of its own, module path, nodes


@dataclass(frozen=True)
class Sums:
    """What some nodes add up to. `macs`, `int8_macs`: per `unit`. `sqnr`: the worst, in dB; None where none was measured."""

    ops: int = 0
    int8_ops: int = 0
    params: int = 0
    macs: float = 0
    int8_macs: float = 0
    sqnr: float | None = None
    unit: str = ""

    @property
    def int8_share(self) -> float | None:
        """Of the multiply-accumulates; of the ops where there are none; None without ops."""
        if self.macs:
            return self.int8_macs / self.macs
        return self.int8_ops / self.ops if self.ops else None

    @property
    def verdict(self) -> str:
        """How much runs in int8, as explain says it; empty without ops."""
        if self.macs:
            return f"{self.int8_share:.1%} in int8"
        return f"{self.int8_ops} of {self.ops} ops in int8" if self.ops else ""


@dataclass(frozen=True)
class Item:
    """One thing in a drawing: an op, or a box of several. `modules`: the parts of the module path that it stands in."""

    title: str
    kind: str
    modules: tuple[str, ...]
    nodes: tuple[Node, ...]
    sums: Sums
    lines: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node["name"] for node in self.nodes)


@dataclass(frozen=True)
class Drawing:
    """Items in execution order and the edges between them, as positions; each edge runs forward."""

    title: str
    items: tuple[Item, ...]
    edges: tuple[tuple[int, int], ...]
    depth: int | None = None
    total: Sums = field(default_factory=Sums)


def parts_of(node: Node) -> tuple[str, ...]:
    return tuple(filter(None, str(node.get("path", "")).split(".")))


def sums_of(nodes: Sequence[Node], document: Document) -> Sums:
    numerics, sample = document.numerics, document.sample
    ops = [n for n in nodes if is_op(n)]
    int8 = [n for n in ops if n["kind"] == "int8"]
    measured = [numerics[n["name"]]["sqnr"] for n in nodes if (numerics.get(n["name"]) or {}).get("sqnr") is not None]
    macs, int8_macs = (sum(n.get("macs", 0) for n in part) / sample.count for part in (ops, int8))
    return Sums(len(ops), len(int8), sum(n.get("params", 0) for n in nodes), macs, int8_macs, min(measured, default=None), sample.unit)


def draw(document: Document, *, depth: int | None = None, limit: int = 60, stage: int = -1) -> Drawing:
    """The drawing of one stage: as deep as at most `limit` items show, or to `depth` module levels."""
    nodes = document.nodes_at(stage)
    seen = [n for n in nodes if n["kind"] not in HIDDEN]
    deepest = max((len(parts_of(n)) for n in seen), default=0) + 1
    depths = [depth] if depth is not None else list(range(deepest, 0, -1))
    for chosen in depths:
        runs = _runs(seen, chosen)
        if len(runs) <= limit:
            break
    owned = _constants(nodes)
    items = [_item(run, owned, document) for run in _chunks(runs, limit)]
    return Drawing(plain(document.title), tuple(items), _edges(nodes, items), chosen if chosen < deepest else None,
                   sums_of(nodes, document))  # fmt: skip


def _runs(nodes: Sequence[Node], depth: int) -> list[tuple[tuple[str, ...], list[Node]]]:
    """(module path, nodes) of neighbours that share `depth` parts of their path; a node with fewer parts stands alone."""
    runs: list[tuple[tuple[str, ...], list[Node]]] = []
    for node in nodes:
        key = parts_of(node)[:depth]
        if runs and len(key) == depth and runs[-1][0] == key:
            runs[-1][1].append(node)
        else:
            runs.append((key, [node]))
    return runs


def _chunks(runs: list[tuple[tuple[str, ...], list[Node]]], limit: int) -> list[Run]:
    """The runs as they are, or neighbours put together where a flat model has too many."""
    if len(runs) <= limit:
        return [(None, key, nodes) for key, nodes in runs]
    size = math.ceil(len(runs) / limit)
    made: list[Run] = []
    for start in range(0, len(runs), size):
        part = runs[start : start + size]
        made.append((f"items {start + 1}–{start + len(part)}", (), [n for _, nodes in part for n in nodes]))
    return made


def _constants(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Node -> the constants that it is the first to read, itself or through its pack."""
    found: dict[str, list[Node]] = {}
    waiting = {n["name"]: [n] for n in nodes if n["kind"] == "attr"}
    for node in nodes:
        read = [c for name in node["in"] for c in waiting.pop(name, [])]
        (waiting if node["kind"] in HIDDEN else found).setdefault(node["name"], []).extend(read)
    return found


def _item(run: Run, owned: Mapping[str, list[Node]], document: Document) -> Item:
    name, key, nodes = run
    sums = sums_of([*nodes, *(c for n in nodes for c in owned.get(n["name"], []))], document)
    if len(nodes) > 1:
        title = name or ".".join(key)
        return Item(plain(title), BOX, key[:-1], tuple(nodes), sums, tuple(_box_lines(nodes, sums)))
    (node,) = nodes
    title = node["name"] if node["kind"] == "input" else short_op(node["op"])
    lines = [plain(node.get("path") or node["kind" if node["kind"] == "input" else "name"]), plain(shape_text(node))]
    lines += [f"{sums.sqnr:.1f} dB"] if sums.sqnr is not None else []
    return Item(plain(title), node["kind"], parts_of(node), (node,), sums, tuple(filter(None, lines)))


def _box_lines(nodes: Sequence[Node], sums: Sums) -> list[str]:
    first = f"{sums.ops} ops" + (f", {count_text(sums.macs)} MACs" if sums.macs else "")
    share = sums.int8_share
    second = [f"int8 {share:.0%}"] if share is not None else []
    second += [f"worst {sums.sqnr:.1f} dB"] if sums.sqnr is not None else []
    return [first, ", ".join(second)] if second else [first]


def _edges(nodes: Sequence[Node], items: Sequence[Item]) -> tuple[tuple[int, int], ...]:
    """Edges between items; what is left out passes on what it reads."""
    place = {name: i for i, item in enumerate(items) for name in item.names}
    through: dict[str, list[int]] = {}
    found: set[tuple[int, int]] = set()
    for node in nodes:
        name = node["name"]
        sources = [i for source in node["in"] for i in through.get(source, [])]
        through[name] = [place[name]] if name in place else sources
        found |= {(i, place[name]) for i in sources if name in place and i != place[name]}
    return tuple(sorted(found))
