"""Patterns: small graphs of ops, in forward order, and where one ends in a node.

Each Link is one node. Without `args` it takes the link before it as its first argument, so that a list of links is a chain. With
`args` it names its operands: an earlier link; a number; or any other name, which stands for whatever is there. A name that occurs
twice is one value. Where the row of an op says `commutes`, its two operands are tried in both orders. x * sigmoid(x) is

    Link("gate", ("sigmoid",), ("x",)), Link("product", ("mul",), ("x", "gate"), {})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler.errors import ConfigError
from qcompiler.inputs.near_names import near_names
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import value_of
from qcompiler.ops.spec import Op
from qcompiler.ops.stays_float import constant
from qcompiler.ops.table import Table

Known = dict[str, Any]  # what each name of a pattern stands for: nodes and numbers
SAME_NUMBER = 1e-6  # relative; float32 tells numbers apart by 1.2e-7, and 1 / 6 may have been written in seven digits


@dataclass(frozen=True)
class Link:
    """One node of a pattern: its name in the rewrite, and which ops it may be (names, or a predicate on the row).

    `args`: its first operands, by name or as numbers; None is the link before it. `settings`: the keyword arguments that the call
    must have, and no others; None allows any. A call with others is a near miss.
    """

    name: str
    ops: tuple[str, ...] | Callable[[Op], bool]
    args: tuple[str | float, ...] | None = None
    settings: Mapping[str, Any] | None = None

    def matches(self, row: Op | None) -> bool:
        if row is None:
            return False
        return self.ops(row) if callable(self.ops) else row.name in self.ops


def operands_of(pattern: Sequence[Link], position: int) -> tuple[str | float, ...]:
    """The operands of a link: its own, or the link before it."""
    given = pattern[position].args
    return given if given is not None else tuple(link.name for link in pattern[max(position - 1, 0) : position])


def check_pattern(name: str, pattern: Sequence[Link]) -> None:
    """Raises ConfigError for a pattern that cannot match: a name given twice, an operand that comes later, a link that leads nowhere."""
    names = [link.name for link in pattern]
    for i, link in enumerate(pattern):
        late = [a for a in link.args or () if a in names[i:]]
        if late or link.name in names[:i]:
            raise _bad(name, f"{late[0]!r} is used before it is made" if late else f"two links are called {link.name!r}")
    used = {a for i in range(len(pattern)) for a in operands_of(pattern, i)}
    loose = [n for n in names[:-1] if n not in used]
    if loose or not names:
        raise _bad(name, f"nothing uses {loose[0]!r}" if loose else "it has no link")


def check_ops(name: str, pattern: Sequence[Link], table: Table) -> None:
    """Raises ConfigError for a link none of whose ops the table has: such a rule would never fire, and say nothing."""
    for link in pattern:
        if not callable(link.ops) and not any(op in table.rows for op in link.ops):
            close = near_names(" ".join(link.ops[:1]), table.rows)
            hint = f"did you mean {', '.join(close)}?" if close else "docs/ops.md has the names of all ops; rows of your own go into table="
            raise ConfigError(f"the link {link.name!r} of rule {name!r} is no op of the table: {', '.join(link.ops) or 'no name'}",
                              code="unknown-op", hint=hint)  # fmt: skip


def _bad(name: str, problem: str) -> ConfigError:
    return ConfigError(f"the pattern of rule {name!r} cannot match: {problem}", code="bad-pattern",
                       hint="name links in forward order, each used by a later one")  # fmt: skip


def find(pattern: Sequence[Link], table: Table, last: fx.Node) -> list[Known]:
    """Every way in which the pattern ends in `last`, by ops, operands and numbers alone; what stands last in the graph comes first."""
    if not pattern[-1].matches(table.of(last)):
        return []
    search = _Search(pattern, table)
    found = list(search.value(pattern[-1].name, last, {}))
    return found if len(found) < 2 else sorted(found, key=search.nodes, reverse=True)


class _Search:
    """Walks back from the last link, and tries both orders of operands that commute."""

    def __init__(self, pattern: Sequence[Link], table: Table) -> None:
        self.table = table
        self.links = {link.name: link for link in pattern}
        self.args = {link.name: operands_of(pattern, i) for i, link in enumerate(pattern)}

    def nodes(self, known: Known) -> list[fx.Node]:
        return [known[name] for name in reversed(self.links)]

    def value(self, name: str | float, value: Any, known: Known) -> Iterator[Known]:
        """What is known once `value` stands for `name`; nothing where it cannot."""
        if not isinstance(name, str):
            if math.isclose(_number(value), name, rel_tol=SAME_NUMBER):
                yield known
        elif name in known:
            if known[name] is value or (_is_number(value) and value == known[name]):
                yield known
        elif name not in self.links:
            yield {**known, name: value}
        elif isinstance(value, fx.Node):
            yield from self.call(name, value, known)

    def call(self, name: str, node: fx.Node, known: Known) -> Iterator[Known]:
        link, row = self.links[name], self.table.of(node)
        args = self.args[name]
        if row is None or not link.matches(row) or len(node.args) < len(args):
            return
        swaps = link.args is not None and len(args) == 2 and node.args[0] is not node.args[1] and row.commutes(node.kwargs)
        for operands in (node.args[:2], node.args[1::-1]) if swaps else (node.args,):
            if any(not isinstance(wanted, str) and _spreads(given, operands) for wanted, given in zip(args, operands, strict=False)):
                continue
            yield from self.operands(list(zip(args, operands, strict=False)), {**known, name: node})

    def operands(self, pairs: list[tuple[str | float, object]], known: Known) -> Iterator[Known]:
        if not pairs:
            yield known
            return
        (name, value), *rest = pairs
        for more in self.value(name, value, known):
            yield from self.operands(rest, more)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: object) -> float:
    """A number, or that of a constant of one element, as exporters write it, which nothing trains; NaN where it is neither."""
    if _is_number(value):
        return float(value)  # type: ignore[arg-type]
    if not isinstance(value, fx.Node) or value.op != "get_attr" or _is_trained(value):
        return math.nan
    held = constant(value)
    return float(held) if isinstance(held, Tensor) and held.numel() == 1 and held.dtype is torch.float32 else math.nan


def _is_trained(value: fx.Node) -> bool:
    module = value.graph.owning_module
    return module is not None and isinstance(attribute(module, str(value.target)), nn.Parameter)


def _spreads(value: object, operands: Sequence[object]) -> bool:
    """Whether a constant has more dimensions than what it meets, so that a number in its place would change the shape of the result."""
    ranks = [len(shape) for one in operands if isinstance(one, fx.Node) and one is not value and (shape := value_of(one).shape) is not None]
    own = value_of(value).shape if isinstance(value, fx.Node) else None
    return bool(own) and len(own or ()) > max(ranks, default=0)
