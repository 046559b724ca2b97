"""Each stage refuses what it does not allow, by the rule's code; no graph that the compiler makes is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler import ConfigError
from qcompiler.errors import PassError
from qcompiler.ir.types import Stage
from qcompiler.stages.rule import Rule
from qcompiler.stages.rules import RULES
from qcompiler.stages.verify import verify
from tests import breaches_of_calls, breaches_of_graphs, breaches_of_int8  # noqa: F401 (they fill the list)
from tests.planted_breaches import BREACHES, Breach, at
from tests.quantized_zoo import SMALL, VISION, WIDE, fused, observed, quantized, trained

IDS = [breach.name for breach in BREACHES]


@pytest.mark.parametrize("breach", BREACHES, ids=IDS)
def test_a_planted_breach_is_refused_by_its_code(breach: Breach) -> None:
    verify(breach.graph(), breach.stage)
    gm = breach.planted()
    with pytest.raises(ConfigError) as caught:
        verify(gm, breach.stage)
    assert (caught.value.code, breach.text in caught.value.message) == (breach.code, True), str(caught.value)
    with pytest.raises(PassError, match="invalid IR after pass x: ") as after:
        verify(gm, breach.stage, after="x")
    assert after.value.code == breach.code


def test_every_rule_has_a_breach_that_it_refuses() -> None:
    planted = {(breach.stage, breach.code) for breach in BREACHES}
    assert {(stage, rule.code) for rule in RULES for stage in rule.stages} - planted == set()
    assert len({breach.plant for breach in BREACHES}) >= 25 and {breach.stage for breach in BREACHES} == set(Stage)


MIXED_UP = {  # a graph of the one stage, looked at as one of the other
    (Stage.TRACED, Stage.FUSED): "ir-call",
    (Stage.TRACED, Stage.OBSERVED): "ir-",
    (Stage.TRACED, Stage.QUANTIZED): "ir-",
    (Stage.FUSED, Stage.OBSERVED): "ir-decision",
    (Stage.FUSED, Stage.QUANTIZED): "ir-decision",
    (Stage.OBSERVED, Stage.TRACED): "ir-",
    (Stage.OBSERVED, Stage.FUSED): "ir-",
    (Stage.OBSERVED, Stage.QUANTIZED): "ir-observer",
    (Stage.OBSERVED, Stage.LOWERED): "ir-observer",
    (Stage.QUANTIZED, Stage.TRACED): "ir-",
    (Stage.QUANTIZED, Stage.FUSED): "ir-",
    (Stage.QUANTIZED, Stage.OBSERVED): "ir-conversion",
    (Stage.QUANTIZED, Stage.LOWERED): "ir-conversion",
    (Stage.LOWERED, Stage.TRACED): "ir-",
    (Stage.LOWERED, Stage.FUSED): "ir-",
    (Stage.LOWERED, Stage.OBSERVED): "ir-target",
    (Stage.LOWERED, Stage.QUANTIZED): "ir-target",
}


@pytest.mark.parametrize(("own", "other"), MIXED_UP, ids=lambda stage: stage.value)
def test_a_graph_is_refused_at_another_stage(own: Stage, other: Stage) -> None:
    verify(at(own), own)
    with pytest.raises(ConfigError) as caught:
        verify(at(own), other)
    assert caught.value.code.startswith(MIXED_UP[own, other]), str(caught.value)


@pytest.mark.parametrize("name", [*SMALL, *VISION, *(pytest.param(name, marks=pytest.mark.slow) for name in WIDE)])
def test_no_graph_of_the_zoo_is_refused(name: str) -> None:
    for gm, stage in ((fused(name), Stage.FUSED), (observed(name), Stage.OBSERVED), (quantized(name), Stage.QUANTIZED)):
        verify(gm, stage)


@pytest.mark.parametrize("name", ["parts", "resizes"])
def test_no_trained_graph_is_refused(name: str) -> None:
    verify(trained(name), Stage.QUANTIZED)


def test_the_page_states_every_rule() -> None:
    page = (Path(__file__).parent.parent / "docs" / "quantized.md").read_text(encoding="utf-8")
    stated = [line for line in page.splitlines() if line.startswith("| `ir-")]
    assert stated == [f"| `{rule.code}` | {rule.says} | {stages_of(rule)} |" for rule in RULES]


def stages_of(rule: Rule) -> str:
    return "all" if len(rule.stages) == len(Stage) else ", ".join(stage.name for stage in Stage if stage in rule.stages)
