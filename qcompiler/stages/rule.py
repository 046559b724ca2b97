"""One rule of the IR: a code, a sentence, the stages where it holds, and the check that finds a breach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import fx

from qcompiler.ir.types import Quant, Stage, Value, quant_of, value_of
from qcompiler.ops.spec import Op
from qcompiler.ops.table import Table


class Breach(NamedTuple):
    """What breaks a rule, in words, and where."""

    text: str
    node: fx.Node | None = None


class Place:
    """One node as the rules see it: its row, its notes, its stage. What rules remember of earlier nodes hangs in `seen`."""

    __slots__ = ("gm", "node", "quant", "row", "seen", "stage", "table", "value")

    def __init__(self, gm: fx.GraphModule, node: fx.Node, stage: Stage, table: Table, seen: Seen) -> None:
        self.gm, self.node, self.stage, self.table, self.seen = gm, node, stage, table, seen
        self.row: Op | None = table.of(node)
        self.quant: Quant = quant_of(node)
        self.value: Value = value_of(node)


@dataclass
class Seen:
    """What one walk over a graph gathers."""

    observers: dict[str, fx.Node] = field(default_factory=dict)  # by the path of the module
    watched: dict[int, fx.Node] = field(default_factory=dict)  # the observer's call of each group
    groups: dict[int, fx.Node] = field(default_factory=dict)  # the first member of each group that has qparams


@dataclass(frozen=True)
class Rule:
    """`check` returns what is wrong with a node; `says` states the rule in one sentence, for docs/quantized.md.

    `finish`: looks at the whole graph behind the walk.
    """

    code: str
    says: str
    stages: tuple[Stage, ...]
    check: Callable[[Place], str | None] | None = None
    finish: Callable[[fx.GraphModule, Seen], Breach | None] | None = None


EARLY = (Stage.TRACED, Stage.FUSED)
DECIDED = (Stage.OBSERVED, Stage.QUANTIZED)  # where it is settled what is int8
PLAIN = (*EARLY, *DECIDED)  # where every op has float semantics and no back end is known
ALL = tuple(Stage)


def flat(arg: object) -> Iterator[object]:
    """The entries of an argument, those of lists one by one."""
    if isinstance(arg, (list, tuple)):
        for part in arg:
            yield from flat(part)
    else:
        yield arg
