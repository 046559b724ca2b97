"""Document: one graph through its passes as plain data. Everything that is drawn, dumped or exported is made from it.

Stage 0 holds all nodes; each later stage holds what its pass changed: `put` (new or changed nodes in graph order, each with the
name of the node before it), `drop` (names that are gone) and `replaced` (new node -> the dropped ones it stands for).
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qcompiler.debug.sample import UNKNOWN, Sample
from qcompiler.errors import ConfigError
from qcompiler.executable.node_data import rounded

FORMAT, VERSION = "qcompiler-graph", 1
Node = dict[str, Any]
Stage = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """`stages` as in the module's text; `numerics`: measures by node name; `overlays`: title -> node name -> number.

    `sample`: what the nodes' multiply-accumulates, those of a call with the example inputs, are divided by where they are shown. `times`:
    what the times among the measures are parts of, in ms: `steps_ms`, and `call_ms`, a call as a whole.
    """

    title: str
    stages: tuple[Stage, ...]
    numerics: Mapping[str, Any] = field(default_factory=dict)
    overlays: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sample: Sample = UNKNOWN
    times: Mapping[str, float] = field(default_factory=dict)

    def nodes_at(self, stage: int) -> list[Node]:
        """All nodes after a stage, in graph order; -1 is the last."""
        nodes: list[Node] = []
        for data in self.stages[: range(len(self.stages))[stage] + 1]:
            nodes = apply_delta(nodes, data)
        return [{**node, "after": nodes[i - 1]["name"] if i else None} for i, node in enumerate(nodes)]

    @property
    def names(self) -> set[str]:
        """The names of all nodes of all stages."""
        return {node["name"] for stage in self.stages for node in stage["put"]}

    def with_numerics(self, numerics: Any) -> Document:
        """With measures by node name (see docs/visualization.md), or with what has them as `to_numerics()`.

        ConfigError for a name that no stage has.
        """
        values: Mapping[str, Any] = numerics.to_numerics() if hasattr(numerics, "to_numerics") else numerics
        if not isinstance(values, Mapping):
            raise ConfigError(f"numerics must be a dict of measures by node name, got a {type(values).__name__}", code="argument",
                              hint="give what debug.compare returns")  # fmt: skip
        self._check(values, "numerics")
        times = numerics.to_times() if hasattr(numerics, "to_times") else {}
        return replace(self, numerics={**self.numerics, **rounded(values)}, times={**self.times, **times})

    def with_overlay(self, title: str, values: Mapping[str, float]) -> Document:
        """With one number a node, to colour by. ConfigError for a name that no stage has."""
        self._check(values, f"overlay {title!r}")
        return replace(self, overlays={**self.overlays, title: rounded({k: float(v) for k, v in values.items()})})

    def _check(self, values: Mapping[str, Any], what: str) -> None:
        unknown = sorted(set(map(str, values)) - self.names)
        if unknown:
            raise ConfigError(f"{what}: the graph has no node {', '.join(unknown[:5])}", code="unknown-node",
                              hint="keys are node names, as `nodes_at` and the drawings show them")  # fmt: skip

    def then(self, later: Document) -> Document:
        """This compile followed by `later`, which starts from where this one ended: prepare, then convert."""
        first, *rest = later.stages
        begin = delta(self.nodes_at(-1), later.nodes_at(0))
        joined = [{**first, **begin, "name": "calibrate"}] if begin["put"] or begin["drop"] else []
        return replace(self, stages=(*self.stages, *joined, *rest), numerics={**self.numerics, **later.numerics},
                       overlays={**self.overlays, **later.overlays})  # fmt: skip

    def to_data(self) -> dict[str, object]:
        """Plain JSON data."""
        data: dict[str, Any] = {"format": FORMAT, "version": VERSION, "title": self.title, "stages": list(self.stages)}
        data |= {"sample": self.sample.to_data()} if self.sample != UNKNOWN else {}
        data |= {"times": dict(self.times)} if self.times else {}
        data |= {"numerics": dict(self.numerics)} if self.numerics else {}
        return data | ({"overlays": dict(self.overlays)} if self.overlays else {})

    def to_json(self) -> str:
        """Compact ASCII text: the same document gives the same bytes."""
        return json.dumps(self.to_data(), ensure_ascii=True, separators=(",", ":"), allow_nan=False) + "\n"

    @staticmethod
    def from_data(data: object) -> Document:
        """The document that `to_data` wrote. ConfigError for anything else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT or not data.get("stages"):
            raise ConfigError("not a graph document", code="not-a-document", hint='it starts with {"format": "qcompiler-graph"')
        if data.get("version") != VERSION:
            raise ConfigError(f"a graph document of version {data.get('version')!r:.20}; this qcompiler reads {VERSION}",
                              code="document-version", hint="upgrade qcompiler")  # fmt: skip
        try:
            stages = tuple(_complete(s) for s in data["stages"])
            made = Document(str(data["title"]), stages, data.get("numerics") or {}, data.get("overlays") or {},
                            Sample.from_data(data.get("sample")), data.get("times") or {})  # fmt: skip
            made.nodes_at(-1)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"a damaged graph document: {error!r:.100}", code="not-a-document") from None
        return made

    @staticmethod
    def of_nodes(title: str, phase: str, nodes: Sequence[Node], sample: Sample = UNKNOWN) -> Document:
        """One graph without a history."""
        return Document(title, (stage(phase, phase, delta([], nodes)),), sample=sample)


def _complete(data: Mapping[str, object]) -> Stage:
    empty = {"changed": True, "ms": 0.0, "matches": 0, "put": [], "drop": [], "replaced": {}, "remarks": []}
    return {**data, **{k: v for k, v in empty.items() if k not in data}}


def stage(
    name: str, phase: str, change: Mapping[str, object], *, ms: float = 0.0, matches: int = 0, remarks: Sequence[object] = ()
) -> Stage:
    """One entry of `Document.stages`."""
    return {"name": name, "phase": phase, "changed": bool(change["put"] or change["drop"]), "ms": rounded(float(ms)), "matches": matches,
            **change, "remarks": list(remarks)}  # fmt: skip


def delta(before: Sequence[Node], after: Sequence[Node]) -> dict[str, object]:
    """What turns one list of nodes into the other. Structural: a node is the same where all its data but its place is."""
    old, names = {n["name"]: n for n in before}, {n["name"] for n in after}
    same = [n["name"] for n in after if n["name"] in old and _content(old[n["name"]]) == _content(n)]
    place = {n["name"]: i for i, n in enumerate(before)}
    kept = set(_longest_increasing(same, place))
    put = [n for n in after if n["name"] not in kept]
    drop = [name for name in old if name not in names]
    return {"put": put, "drop": drop, "replaced": _replaced(put, drop, old)}


def apply_delta(nodes: Sequence[Node], change: Mapping[str, Any]) -> list[Node]:
    """The nodes after a stage, from those before it."""
    gone = set(change["drop"]) | {n["name"] for n in change["put"]}
    following: dict[str | None, list[Node]] = {}
    for node in change["put"]:
        following.setdefault(node["after"], []).append(node)
    result: list[Node] = []
    pending = following.pop(None, [])[::-1]
    for node in [*({"name": None},), *(n for n in nodes if n["name"] not in gone)]:
        if node["name"] is not None:
            result.append(node)
            pending = following.pop(node["name"], [])[::-1]
        while pending:
            result.append(pending.pop())
            pending += following.pop(result[-1]["name"], [])[::-1]
    if following:
        raise ValueError(f"no node {next(iter(following))!r} to stand behind")
    return result


def _content(node: Node) -> Node:
    return {k: v for k, v in node.items() if k != "after"}


def _longest_increasing(names: Sequence[str], place: Mapping[str, int]) -> list[str]:
    """The most of `names` whose places rise: these stay where they are, the others moved."""
    ends: list[int] = []
    length: list[int] = []
    for name in names:
        at = bisect.bisect_left(ends, place[name])
        ends[at : at + 1] = [place[name]]
        length.append(at)
    kept: list[str] = []
    wanted = len(ends) - 1
    for name, at in zip(reversed(names), reversed(length), strict=True):
        if at == wanted and (not kept or place[name] < place[kept[-1]]):
            kept.append(name)
            wanted -= 1
    return kept[::-1]


def _replaced(put: Sequence[Node], drop: Sequence[str], old: Mapping[str, Node]) -> dict[str, list[str]]:
    """New node -> dropped nodes of the same origin; constants stand for constants, calls for calls."""
    by_origin: dict[tuple[str, bool], list[str]] = {}
    for name in drop:
        for origin in old[name].get("origin", [name]):
            by_origin.setdefault((origin, old[name]["kind"] == "attr"), []).append(name)
    found = {}
    for node in put:
        key = node["kind"] == "attr"
        names = [name for origin in node.get("origin", []) for name in by_origin.get((origin, key), [])]
        if names:
            found[node["name"]] = list(dict.fromkeys(names))
    return found
