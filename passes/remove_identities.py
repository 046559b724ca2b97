"""Takes out what does nothing in eval mode (dropout, identity, stochastic depth), and code whose result nobody uses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import Stage
from qcompiler.ops.arguments import changes


@dataclass(frozen=True)
class RemoveIdentities:
    name: str = "remove_identities"
    stage: Stage = Stage.TRACED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        before = len(gm.graph.nodes)
        for node in list(gm.graph.nodes):
            row = context.table.of(node)
            if row is None or not row.identity(node.kwargs) or any(changes(user, node) for user in node.users):
                continue
            if context.allows("remove_identity", node):
                node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
                gm.graph.erase_node(node)
                context.journal.matches += 1
            else:
                context.remark(self.name, "held-back", "does nothing, but its removal was held back", node)
        gm.graph.eliminate_dead_code()
        return len(gm.graph.nodes) != before
