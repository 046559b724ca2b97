"""Puts one observer behind the source of each group: the value that the rest of the group copies or pools.

The observer comes from the qconfig of the op that computes the value, or of the first int8 op that takes it. A value whose op
has a fixed range needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from qcompiler.ir.types import QUANT, SOURCE, VALUE, Stage, quant_of, source_of
from qcompiler.ir.verify import where
from qcompiler.observers.watch import Watch
from qcompiler.ops.arguments import activations
from qcompiler.ops.spec import Output
from qcompiler.pass_manager import Context


@dataclass(frozen=True)
class InsertObservers:
    name: str = "insert_observers"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        seen: set[int] = set()
        gm.add_module("observers", nn.Module())
        for node in list(gm.graph.nodes):
            group = quant_of(node).group
            if group is None or group in seen:
                continue
            seen.add(group)
            row = context.table.of(node)
            if row is not None and row.output is Output.FIXED and quant_of(node).int8:
                node.meta[QUANT] = quant_of(node).with_(qparams=row.fixed)
            else:
                _observe(gm, node, _factory(node, context))
        return bool(seen)


def _factory(node: fx.Node, context: Context) -> Callable[[], Any]:
    own = quant_of(node).qconfig if quant_of(node).int8 else None
    takers = (quant_of(u).qconfig for u in node.users if quant_of(u).int8 and node in set(activations(context.table, u)))
    qconfig = own or next(takers)
    factory: Callable[[], Any] = qconfig.activation
    return factory


def _observe(gm: fx.GraphModule, node: fx.Node, factory: Callable[[], Any]) -> None:
    observers, name = gm.get_submodule("observers"), node.name
    while hasattr(observers, name):  # `to`, `float`: a module has them already
        name += "_"
    observers.add_module(name, Watch(factory(), where(node)))
    with gm.graph.inserting_after(node):
        watch = gm.graph.create_node("call_module", f"observers.{name}", (node,), name=f"{node.name}_observer")
    watch.meta[VALUE], watch.meta[SOURCE] = node.meta.get(VALUE), source_of(node)
    node.replace_all_uses_with(watch, delete_user_cb=lambda user: user is not watch)
