"""Takes out what does nothing in eval mode (dropout, identity, stochastic depth), and code whose result nobody uses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.ir.types import Stage
from qcompiler.ops.arguments import changes
from qcompiler.pass_manager import Context


@dataclass(frozen=True)
class RemoveIdentities:
    name: str = "remove_identities"
    stage: Stage = Stage.TRACED

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        before = len(gm.graph.nodes)
        for node in list(gm.graph.nodes):
            row = context.table.of(node)
            if row is not None and row.identity(node.kwargs) and not any(changes(user, node) for user in node.users):
                node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
                gm.graph.erase_node(node)
        gm.graph.eliminate_dead_code()
        return len(gm.graph.nodes) != before
