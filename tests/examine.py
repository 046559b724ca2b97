"""examine: compiles a model and checks that nothing was left unsaid. Used by tests/test_remarks.py and tests/sweep.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, explain, prepare_fx, remarks
from qcompiler.compile.matching import find
from qcompiler.compile.pass_manager import Context, Pass
from qcompiler.compile.rewrite import Rule
from qcompiler.debug import PassInstrument, PassRecord
from qcompiler.ir.types import source_of
from qcompiler.ops.table import OPS
from qcompiler.passes.annotate import computes_float
from qcompiler.patterns import FUSE as RULES


def left_by(rule: Rule, node: fx.Node) -> list[str]:
    """The candidates of near misses that end in a node, and the node itself where the rule would not have it stand alone."""
    ends = [known[rule.pattern[rule.position].name].name for known in find(rule.pattern, OPS, node)]
    return [*ends, *([node.name] if rule.needs_partner and rule.pattern[rule.position].matches(OPS.of(node)) else [])]


@dataclass
class Watcher(PassInstrument):
    """Collects the nodes without provenance at each stage, and the candidates that fuse leaves."""

    homeless: list[str] = field(default_factory=list)
    candidates: list[tuple[str, str]] = field(default_factory=list)

    def before(self, step: Pass, gm: fx.GraphModule, context: Context) -> None:
        self._check("before", step, gm)

    def after(self, step: Pass, gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
        self._check("after", step, gm)
        if step.name == "fuse":
            self.candidates = [(rule.name, name) for node in gm.graph.nodes for rule in RULES for name in left_by(rule, node)]

    def _check(self, when: str, step: Pass, gm: fx.GraphModule) -> None:
        for node in gm.graph.nodes:
            source = source_of(node)
            if not (source.file and source.line and source.module_type and source.origin):
                self.homeless.append(f"{when} {step.name}: {node.name}: {source}")


def examine(model: nn.Module, *x: Tensor, backend: str = "torch") -> nn.Module:
    """The int8 module, once every node has its provenance, every float op and every near miss of a fusion a remark."""
    watcher = Watcher()
    prepared = prepare_fx(model, None, x, backend=backend, debug=watcher)
    calibrate(prepared, [x])
    module = convert_fx(prepared, debug=watcher)
    assert not watcher.homeless
    noted = remarks(module)
    assert all(r.code and r.text and not r.text.endswith(": ") for r in noted)
    about = {r.node for r in noted}
    computing = {n.name for n in prepared.graph.nodes if computes_float(n)}
    floats = [row for row in explain(module).rows if not row.int8 and row.node in computing]
    assert not [row for row in floats if row.node not in about]
    fused = {(r.text.split(":")[0], r.node) for r in noted if r.pass_name == "fuse"}
    assert not [c for c in watcher.candidates if c not in fused]
    return module
