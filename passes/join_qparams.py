"""Gives the inputs and the output of a cat common qparams where that adds no noise, so that the cat is a copy.

Rounding to steps of s adds noise of s**2 / 12. Apart, input i of a cat is rounded to its own steps and again to the cat's:
s_i**2 + s_cat**2. With common steps s it is rounded once: s**2. So the cat is joined where s**2 <= s_i**2 + s_cat**2 for each
input, here and in all cats that were joined with it before, but for CHAIN: what one cat loses so, the next ones of a chain gain (of
the cats of densenet121 55 are copies instead of 32, at 33.6 dB instead of 33.5; densenet169 33.4 instead of 33.2; never less).
Whatever else uses an input sees s in place of s_i: SLACK bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.groups import members_of
from qcompiler.ir.types import QUANT, QParams, Stage, quant_of
from qcompiler.ops.arguments import activations, is_int8_join
from qcompiler.ops.spec import Output

NAME = "join_qparams"
SLACK = 1.02  # steps at most 2 % coarser: 0.17 dB at worst
CHAIN = 1.12  # for what cats alone use: 1 dB at worst, where nothing behind the cat gains


@dataclass(frozen=True)
class _Range:
    """Real values that share qparams, the largest scale they may get, and their integers."""

    low: float
    high: float
    limit: float
    integers: tuple[Any, int, int]

    @staticmethod
    def of(qparams: QParams, limit: float) -> _Range:
        return _Range(*qparams.range, limit, (qparams.dtype, qparams.quant_min, qparams.quant_max))

    @staticmethod
    def union(parts: Iterable[_Range], limit: float) -> _Range | None:
        """None where their integers differ."""
        parts = list(parts)
        if len({p.integers for p in parts}) > 1:
            return None
        return _Range(min(p.low for p in parts), max(p.high for p in parts), min(limit, *(p.limit for p in parts)), parts[0].integers)

    @property
    def scale(self) -> float:
        return (self.high - self.low) / (self.integers[2] - self.integers[1])

    def qparams(self) -> QParams:
        dtype, least, most = self.integers
        return QParams(self.scale, least - round(self.low / self.scale), least, most, dtype)


@dataclass(frozen=True)
class JoinQParams:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        return _Joining(gm, context).run()


class _Joining:
    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        from networkx.utils import UnionFind

        self.gm, self.context, self.table = gm, context, context.table
        self.members = members_of(gm.graph)
        self.own = {group: quant_of(nodes[0]).qparams for group, nodes in self.members.items()}
        self.sets: UnionFind = UnionFind()
        self.ranges: dict[int, _Range] = {}  # by the set's root

    def run(self) -> bool:
        for node in self.gm.graph.nodes:
            if is_int8_join(node, self.table):
                self._cat(node)
        joined = [g for g in self.members if g in self.sets.parents]
        for group in joined:
            qparams = self.ranges[self.sets[group]].qparams()
            for node in self.members[group]:
                node.meta[QUANT] = quant_of(node).with_(qparams=qparams)
        return bool(joined)

    def _cat(self, node: fx.Node) -> None:
        groups = [quant_of(value).group for value in [*activations(self.table, node), node]]
        together = self._together(groups)
        if together is None:
            text = "its inputs differ in range: each keeps its own qparams, the op requantizes"
            self.context.remark(NAME, "not-joined", text, node)
        elif not self.context.allows("join", node):
            self.context.remark(NAME, "held-back", "its inputs could share qparams, but that was held back", node)
        else:
            self.sets.union(*groups)
            self.ranges[self.sets[groups[0]]] = together
            self.context.journal.matches += 1

    def _together(self, groups: list[Any]) -> _Range | None:
        """The range of the set that a cat of these groups, its result's last, would make; None where it must not."""
        own = [self.own.get(g) for g in groups]
        if any(p is None for p in own) or any(self._is_fixed(g) for g in groups):
            return None
        *inputs, result = [p.scale for p in own if p is not None and isinstance(p.scale, float)]
        limit = min((math.hypot(scale, result) for scale in inputs), default=math.inf) * CHAIN
        together = _Range.union([self._range(g, is_result=g == groups[-1]) for g in groups], limit)
        return together if together is not None and together.scale <= together.limit else None

    def _range(self, group: int, is_result: bool) -> _Range:
        """The range of the group's set. A group of its own may get any scale where cats alone use it, and as a cat's result."""
        if group in self.sets.parents:
            return self.ranges[self.sets[group]]
        qparams = self.own[group]
        assert qparams is not None and isinstance(qparams.scale, float)
        return _Range.of(qparams, math.inf if is_result or self._feeds_cats_alone(group) else SLACK * qparams.scale)

    def _is_fixed(self, group: int) -> bool:
        row = self.table.of(self.members[group][0])
        return row is not None and row.output is Output.FIXED

    def _feeds_cats_alone(self, group: int) -> bool:
        users = (user for node in self.members[group] for user in node.users)
        return all(quant_of(u).group == group or is_int8_join(u, self.table) for u in users)
