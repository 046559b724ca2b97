"""The result of compare: one row a node, the worst own error first, as a table, JSON and the page's numerics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qcompiler.debug.fitted_table import Column, FittedTable, as_text
from qcompiler.debug.profile import StepTimes
from qcompiler.debug.tally import Histogram

FLOOR = -300.0  # stands in JSON for -inf: noise without any signal


@dataclass(frozen=True)
class NodeError:
    """One value of the quantized graph against its float counterpart. Decibels are of the float signal against an error.

    op: what is called; computes: the float ops that it stands for, origin: their node names. sqnr: against all error; own: the
    error that the node itself makes, on the float graph's inputs; own_channel: the same for the median channel, since one channel
    far larger than the others hides them in a sum; inherited: the rest of the error, that of the nodes before it. saturation:
    share of float values beyond what the integers hold. unused: share of the integers that no value took. dead_channels:
    channels of one single value; dead_in_float: those that are so in the float graph. ms: the least of its wall times in whole runs.
    """

    name: str
    op: str
    computes: str
    module_path: str
    location: str
    origin: tuple[str, ...]
    sqnr: float
    own: float
    own_channel: float
    inherited: float
    max_abs: float
    saturation: float = 0.0
    unused: float = 0.0
    dead_channels: int = 0
    dead_in_float: int = 0
    ms: float | None = None
    activation: Histogram | None = None
    weight: Histogram | None = None


@dataclass(frozen=True)
class Comparison:
    """Rows with the worst own error first; `unmatched`: what has no float counterpart, and why; `output`: dB of the results.

    `times`: where they were asked for; a row's `ms` is its part of `times.together`.
    """

    nodes: tuple[NodeError, ...]
    unmatched: tuple[tuple[str, str], ...]
    output: float
    batches: int
    note: str = ""
    times: StepTimes | None = None

    def __iter__(self) -> Iterator[NodeError]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> NodeError:
        """The row of a node, by its name, by that of the float node it computes, or by the module path where one row has it."""
        for found in (
            [n for n in self.nodes if n.name == name],
            [n for n in self.nodes if n.origin[-1:] == (name,)],
            [n for n in self.nodes if n.module_path == name],
            [n for n in self.nodes if name in n.origin],
        ):
            if len(found) == 1:
                return found[0]
        raise KeyError(name)

    @property
    def worst(self) -> NodeError:
        return self.nodes[0]

    def table(self, limit: int | None = 20) -> Any:
        """The worst rows (None: all of them) for a rich console; it shows the columns that there is room for."""
        shown = self.nodes if limit is None else self.nodes[:limit]
        hidden = len(self.nodes) - len(shown)
        title = f"worst own error first; output {_db(self.output)}, {self.batches} batch{'es' * (self.batches != 1)}"
        if self.times is not None:
            title += f"; a call takes {self.times.call:.3g} ms, its steps one by one {self.times.together:.3g}"
        return FittedTable(title, _columns(shown), f"{hidden} more nodes" if hidden else "")

    def to_data(self) -> dict[str, object]:
        """Plain JSON data; null stands for a ratio without error."""
        return {
            "format": "qcompiler-comparison",
            "version": 1,
            "output": _number(self.output),
            "batches": self.batches,
            "note": self.note,
            "nodes": [_node_data(n) for n in self.nodes],
            "unmatched": [{"name": name, "reason": reason} for name, reason in self.unmatched],
            **({"times": self.to_times()} if self.times is not None else {}),
        }

    def to_times(self) -> dict[str, object]:
        """What the times of nodes are parts of: the key "times" of a graph document; empty where none were asked for."""
        return {} if self.times is None else {"call_ms": _number(self.times.call), "steps_ms": _number(self.times.together)}

    def to_json(self) -> str:
        return json.dumps(self.to_data(), indent=1, allow_nan=False)

    def to_numerics(self) -> dict[str, dict[str, object]]:
        """By node name: the key "numerics" of a graph document."""
        return {n.name: _numerics(n) for n in sorted(self.nodes, key=lambda n: n.name)}

    def __str__(self) -> str:
        warning = [f"WARNING: {self.note}"] if self.note else []
        return as_text(*warning, self.table(), *(f"not compared: {name}: {reason}" for name, reason in self.unmatched))


def _columns(nodes: tuple[NodeError, ...]) -> list[Column]:
    """Nodes of no module go by their own name."""
    unnamed = [not n.module_path for n in nodes]
    new_dead = [n.dead_channels - n.dead_in_float for n in nodes]
    return [
        Column("node", [n.name for n in nodes], rank=9, names=True),
        Column("module", [f"({n.name})" if alone else n.module_path for n, alone in zip(nodes, unnamed, strict=True)], names=True),
        Column("computes", [n.computes for n in nodes], rank=4),
        Column("own", [_db(n.own) for n in nodes], right=True),
        Column("median channel", [_db(n.own_channel) for n in nodes], rank=1, right=True),
        Column("inherited", [_db(n.inherited) for n in nodes], rank=2, right=True),
        Column("total", [_db(n.sqnr) for n in nodes], right=True),
        Column("max abs", [f"{n.max_abs:.4g}" for n in nodes], rank=7, right=True),
        Column("clipped", [_share(n.saturation) for n in nodes], rank=3, right=True),
        Column("unused", [_share(n.unused) for n in nodes], rank=5, right=True),
        Column("dead", [str(dead) if dead > 0 else "" for dead in new_dead], rank=6, right=True),
        Column("ms", [f"{n.ms:.3f}" if n.ms is not None else "" for n in nodes], rank=1, right=True),
    ]


def ordered(nodes: Iterable[NodeError]) -> tuple[NodeError, ...]:
    """The worst own error first, of the whole or of the median channel; then the worst error."""
    return tuple(sorted(nodes, key=lambda n: (min(n.own, n.own_channel), n.sqnr)))


def _db(value: float) -> str:
    return "exact" if value == math.inf else "no signal" if value == -math.inf else f"{value:.1f} dB"


def _share(value: float) -> str:
    return f"{value:.1%}" if value else ""


def _number(value: float) -> float | None:
    """Six significant digits; null for inf (and for nan, which is no figure either)."""
    return None if value == math.inf or math.isnan(value) else FLOOR if value == -math.inf else float(f"{value:.6g}")


def _histogram(h: Histogram) -> dict[str, object]:
    data: dict[str, Any] = {"low": _number(h.low), "high": _number(h.high), "counts": list(h.counts)}
    if h.clip is not None and h.step is not None:
        data |= {"clip": [_number(c) for c in h.clip], "step": _number(h.step)}
    return data


def _numerics(n: NodeError) -> dict[str, object]:
    data: dict[str, Any] = {
        "sqnr": _number(n.sqnr), "own": _number(n.own), "own_channel": _number(n.own_channel), "inherited": _number(n.inherited),
        "max_abs": _number(n.max_abs), "saturation": _number(n.saturation), "dead_channels": n.dead_channels,
    }  # fmt: skip
    if n.ms is not None:
        data["ms"] = _number(n.ms)
    data |= {key: _histogram(h) for key, h in (("act", n.activation), ("weight", n.weight)) if h is not None}
    return data


def _node_data(n: NodeError) -> dict[str, object]:
    place = {name: getattr(n, name) for name in ("name", "op", "computes", "module_path", "location")}
    return place | {"origin": list(n.origin)} | {"unused": _number(n.unused), "dead_in_float": n.dead_in_float} | _numerics(n)
