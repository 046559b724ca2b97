"""Assignments into a copy: what reads the copy reads a view of it that is made behind the last assignment.

    y = clone(x); setitem(y, index, value); z = op(y)   ->   y = clone(x); setitem(y, index, value); v = getitem(y, ...); z = op(v)

So no value changes after it was made, and a quantize that is put behind `v` sees what was assigned.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import SOURCE, VALUE, Stage, source_of, value_of
from qcompiler.ops.arguments import changes
from qcompiler.ops.functional import getitem


@dataclass(frozen=True)
class SeparateAssignments:
    name: str = "separate_assignments"
    stage: Stage = Stage.TRACED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        changed = False
        for node in list(gm.graph.nodes):
            writes = [u for u in node.users if changes(u, node)]
            if writes and writes[-1].target is operator.setitem:
                changed |= _separate(gm, node, writes)
        return changed


def _separate(gm: fx.GraphModule, node: fx.Node, writes: list[fx.Node]) -> bool:
    last = max(writes)  # nodes compare by their place in the graph
    readers = [u for u in node.users if u > last]
    if len(readers) == 1 and readers[0].target is getitem and readers[0].kwargs == {"index": ...}:
        return False
    with gm.graph.inserting_after(last):
        everything: dict[str, Any] = {"index": ...}
        view = gm.graph.create_node("call_function", getitem, (node,), everything, name=f"{node.name}_assigned")
    view.meta[VALUE], view.meta[SOURCE] = value_of(node), source_of(last)
    for user in readers:
        user.replace_input_with(node, view)
    return True
