"""Every float op left and every near miss of a fusion has a remark; every node knows where it comes from. Over models of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import explain, get_default_qconfig_mapping, load, prepare_fx, remarks, save
from qcompiler.ops.obstacles import CODES
from tests import zoo
from tests.examine import examine
from tests.flow import randn
from tests.test_passes import MODELS
from tests.test_rules import NEAR, NearMiss

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
ZOO = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "mnasnet0_5", "convnext_tiny")
SLOW = ("vit_b_16", "swin_t", "densenet121", "efficientnet_b0", "inception_v3", "regnet_y_400mf")


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    examine(zoo.few(name), *zoo.inputs(1, 64, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_of_the_zoo(name: str) -> None:
    size = {"vit_b_16": 224, "inception_v3": 299}.get(name, 64)
    examine(zoo.few(name), *zoo.inputs(1, size, 1))


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


class Obstacles(nn.Module):
    """One op for each of many reasons to stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.off, self.conv = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("inf", torch.tensor([float("inf"), 0.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        return (
            torch.erf(y),  # no-int8-form
            self.off(y),  # qconfig-none
            nn.functional.linear(y, y * 2),  # computed-weight
            nn.functional.linear(y, self.conv.weight, y.mean(0)),  # computed-bias
            y + self.inf,  # holds-inf
            torch.add(x, x),  # float-input
            y + x.long(),  # not-float32
            self.conv(nn.functional.layer_norm(y + y, (4,))),  # float-users
            self.conv((y * y).sqrt()),  # steep-users
            torch.cat([y, y], 1),  # float-readers
            torch.sigmoid(y),  # float-readers
            self.conv(result := torch.tanh(y)),
            result,  # result
        )


def test_codes_of_what_stays_float() -> None:
    torch.manual_seed(0)
    prepared = prepare_fx(Obstacles().eval(), get_default_qconfig_mapping().set_module_name("off", None), (randn(4, 4),))
    rows = {row.code for row in explain(prepared).rows if row.reason}
    wanted = {"no-int8-form", "qconfig-none", "computed-weight", "computed-bias", "holds-inf", "float-input", "not-float32", "float-users",
              "steep-users", "float-readers", "result"}  # fmt: skip
    assert wanted <= rows <= set(CODES)
    noted = [r for r in remarks(prepared) if r.text.startswith("stays float: ")]
    assert noted and {r.code for r in noted} <= set(CODES)


def test_the_page_lists_the_codes() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "debugging-dumps.md").read_text(encoding="utf-8")
    table = text.partition("| code | the op stays float because |\n|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [f"| `{code}` | {why} |" for code, why in CODES.items()]
