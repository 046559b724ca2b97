"""QUANTIZED -> LOWERED: each int8 op between dequantize and quantize becomes kernel calls on quint8 tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.backends.torch.passes.check_sites import wrong_sites
from qcompiler.backends.torch.passes.lowering import Lowering
from qcompiler.backends.torch.passes.reuse_memory import reuse_memory
from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import Stage


@dataclass(frozen=True)
class Lower:
    name: str = "lower"
    stage: Stage = Stage.LOWERED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        graph = _checked(gm, context)
        reuse_memory(graph)
        gm.graph = graph  # compiles the code: so not before it is done
        return True


def _checked(gm: fx.GraphModule, context: Context) -> fx.Graph:
    """The lowered graph. Where there is an example, kernels that compute something else on it are left out, with a remark."""
    wrong: dict[str, dict[str, str]] = {}
    while True:
        lowering = Lowering(gm, context, wrong)
        graph = lowering.graph(gm.graph)
        graph.eliminate_dead_code()
        found = (
            []
            if context.example is None or not lowering.sites
            else wrong_sites(gm, graph, lowering.sites, context.example, lowering.target.engine)
        )
        for entry in found:
            site = entry.lowered
            reason = f"{site.kernel} is wrong on the example inputs: {entry.text}"
            wrong.setdefault(site.node.name, {})[site.kernel] = reason
            context.remark("lower", "wrong-kernel", f"another kernel or float: {reason}", site.node)
        if not found:
            return graph
