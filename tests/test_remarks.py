"""Every float op left and every candidate not fused has a remark; every node knows where it comes from. Over models of the zoo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, explain, load, prepare_fx, remarks, save
from qcompiler.debug import PassInstrument, PassRecord
from qcompiler.ir.types import source_of
from qcompiler.ops.table import OPS
from qcompiler.pass_manager import Context, Pass
from qcompiler.passes.annotate import computes_float
from qcompiler.patterns import FUSE as RULES
from tests import zoo
from tests.flow import randn
from tests.test_passes import MODELS
from tests.test_rules import NEAR, NearMiss

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
ZOO = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "mnasnet0_5", "convnext_tiny")
SLOW = ("vit_b_16", "swin_t", "densenet121", "efficientnet_b0", "inception_v3", "regnet_y_400mf")


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
            rows = [(node, OPS.of(node)) for node in gm.graph.nodes]
            self.candidates = [(rule.name, n.name) for n, row in rows for rule in RULES if rule.pattern[rule.position].matches(row)]

    def _check(self, when: str, step: Pass, gm: fx.GraphModule) -> None:
        for node in gm.graph.nodes:
            source = source_of(node)
            if not (source.file and source.line and source.module_type and source.origin):
                self.homeless.append(f"{when} {step.name}: {node.name}: {source}")


def examine(model: nn.Module, x: Tensor) -> nn.Module:
    watcher = Watcher()
    prepared = prepare_fx(model, None, (x,), debug=watcher)
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


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    examine(zoo.load(name), zoo.inputs(1, 64, 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_of_the_zoo(name: str) -> None:
    size = {"vit_b_16": 224, "inception_v3": 299}.get(name, 64)
    examine(zoo.load(name), zoo.inputs(1, size, 1)[0])


@pytest.mark.parametrize("name", MODELS)
def test_small_models(name: str) -> None:
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    examine(kind().eval(), randn(*shape))


@pytest.mark.parametrize("kind", [kind for kind, _, _ in NEAR])
def test_near_misses(kind: str) -> None:
    torch.manual_seed(0)
    examine(NearMiss(kind).eval(), randn(2, 4, 6, 6))


def test_remarks_are_saved(tmp_path: Any) -> None:
    torch.manual_seed(0)
    module = examine(NearMiss("bn_first").eval(), randn(2, 4, 6, 6))
    save(module, tmp_path / "m.qc")  # type: ignore[arg-type]
    again = remarks(load(tmp_path / "m.qc"))
    assert [r.to_data() for r in again] == [r.to_data() for r in remarks(module)] and again


def test_a_remark_about_no_partner_names_the_neighbour() -> None:
    torch.manual_seed(0)
    module = examine(NearMiss("bn_first").eval(), randn(2, 4, 6, 6))
    (remark,) = [r for r in remarks(module) if r.code == "no-partner"]
    assert "before %bn stands %x (an input)" in remark.text and remark.node == "bn"
    assert remark.where.source is not None and "test_rules.py" in remark.where.source
