"""QUANTIZED -> LOWERED: each int8 op between dequantize and quantize becomes kernel calls on quint8 tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.backends.torch.passes.check_sites import few_steps, wrong_sites
from qcompiler.backends.torch.passes.lay_out_pairs import lay_out_pairs
from qcompiler.backends.torch.passes.lowering import Lowering
from qcompiler.backends.torch.passes.reuse_memory import reuse_memory
from qcompiler.backends.torch.passes.settle_windows import settle_windows
from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import Stage


@dataclass(frozen=True)
class Lower:
    """`sums_fit`: the passes before asked what the sums of torch's kernels hold. Else kernels that may overflow are left out."""

    sums_fit: bool = True
    name: str = "lower"
    stage: Stage = Stage.LOWERED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        graph = _checked(gm, context, self.sums_fit)
        reuse_memory(graph)
        gm.graph = graph  # compiles the code: so not before it is done
        return True


def _checked(gm: fx.GraphModule, context: Context, sums_fit: bool) -> fx.Graph:
    """The lowered graph. Where there is an example, kernels that compute something else on it are left out, with a remark."""
    wrong: dict[str, dict[str, str]] = {}
    while True:
        lowering = Lowering(gm, context, wrong, sums_fit)
        graph = lowering.graph(gm.graph)
        graph.eliminate_dead_code()
        settle_windows(graph, context.table)
        lay_out_pairs(graph)
        spans = dict.fromkeys((value for value, _, _ in lowering.rounded), 0.0)
        found = []
        if context.example is not None and (lowering.sites or spans):
            found = wrong_sites(gm, graph, lowering.sites, context.example, lowering.target.engine, spans)
        for entry in found:
            site = entry.lowered
            reason = f"{site.kernel} is wrong on the example inputs: {entry.text}"
            wrong.setdefault(site.node.name, {})[site.kernel] = reason
            context.remark("lower", "wrong-kernel", f"another kernel or float: {reason}", site.node)
        if not found:
            for value, reduced, node in lowering.rounded:
                if (text := few_steps(spans[value], reduced)) is not None:
                    context.remark("lower", "tiny-range", text, node)
            return graph
