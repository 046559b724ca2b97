"""The graph document: what it holds, how stages become deltas and graphs again, and that every node knows where it comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, convert_to_reference_fx, load, prepare_fx, save
from qcompiler.backends.torch.passes import LOWERING
from qcompiler.backends.torch.passes.lower import Lower
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.compile.pass_manager import Context, run_passes
from qcompiler.compile.settings import Settings
from qcompiler.debug import Document, Recorder, document_of
from qcompiler.debug.document import apply_delta, delta
from qcompiler.errors import ConfigError
from qcompiler.ir.types import Stage, source_of
from qcompiler.passes import OBSERVE
from tests.flow import flow, randn, randomized
from tests.zoo import few, inputs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cumsum(self.body(x), 1)
        return self.head(y.mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


X = randn(1, 3, 8, 8)


def recorded(model: nn.Module, x: Tensor = X) -> tuple[Recorder, fx.GraphModule]:
    recorder = Recorder()
    prepared = prepare_fx(model, None, (x,), debug=recorder)
    calibrate(prepared, [x])
    convert_fx(prepared, debug=recorder)
    return recorder, prepared


# ---- recording


def test_one_document_holds_prepare_and_convert() -> None:
    recorder, _ = recorded(net())
    document = recorder.document()
    assert document.title == "Net"
    names = [(s["phase"], s["name"]) for s in document.stages]
    assert names[0] == ("prepare", "input") and ("convert", "calibrate") in names and names[-1] == ("convert", "lower")
    assert names.index(("convert", "calibrate")) == names.index(("prepare", OBSERVE[-1].name)) + 1
    assert all(s["ms"] > 0 for s in document.stages if s["name"] not in ("input", "calibrate"))


def test_the_last_stage_is_the_lowered_graph() -> None:
    recorder = Recorder()
    prepared = prepare_fx(net(), None, (X,), debug=recorder)
    calibrate(prepared, [X])
    module = convert_fx(prepared, debug=recorder)
    assert recorder.document().nodes_at(-1) == document_of(module).nodes_at(0)


def test_a_second_convert_replaces_the_first_and_a_second_prepare_starts_anew() -> None:
    recorder, prepared = recorded(net())
    once = [s["name"] for s in recorder.document().stages]
    convert_to_reference_fx(prepared, debug=recorder)
    assert [s["name"] for s in recorder.document().stages] == once[: -len(LOWERING)]
    convert_fx(prepared, debug=recorder)
    assert [s["name"] for s in recorder.document().stages] == once
    prepare_fx(net(), None, (X,), debug=recorder)
    assert [s["phase"] for s in recorder.document().stages] == ["prepare"] * (once.index("calibrate"))


def test_calibration_is_a_stage_of_its_own() -> None:
    document = recorded(net())[0].document()
    stage = next(s for s in document.stages if s["name"] == "calibrate")
    assert {n["kind"] for n in stage["put"]} == {"observer"} and not stage["drop"]
    assert all(n["observer"]["low"] < n["observer"]["high"] for n in stage["put"])


def test_unchanged_passes_are_listed_and_empty() -> None:
    unchanged = [s for s in recorded(net())[0].document().stages if not s["changed"]]
    assert "separate_assignments" in [s["name"] for s in unchanged]
    assert not any(s["put"] or s["drop"] for s in unchanged)


def test_remarks_stand_at_their_pass() -> None:
    stages = recorded(net())[0].document().stages
    remarks = [(s["name"], r) for s in stages for r in s["remarks"]]
    assert remarks and all(r["pass"] in (name, "trace") for name, r in remarks)
    assert len({json.dumps(r) for _, r in remarks}) == len(remarks)


def test_fused_nodes_name_what_they_replace() -> None:
    fuse = next(s for s in recorded(net())[0].document().stages if s["name"] == "fuse")
    assert fuse["replaced"]["body_0"] == ["body_1", "body_2"]
    lower = recorded(net())[0].document().stages[-1]
    assert any(names for new, names in lower["replaced"].items() if new.startswith("body_"))


def test_nothing_recorded_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing was recorded"):
        document_of(Recorder())


# ---- deltas


def chain(*names: str) -> list[dict[str, Any]]:
    return [{"name": n, "after": names[i - 1] if i else None, "in": [], "kind": "other"} for i, n in enumerate(names)]


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "abc"), ("abc", "abc"), ("abc", "cba"), ("abcd", "bcda"), ("abc", "xabyc"), ("abc", "xyz"), ("abcde", "edxcba"), ("abc", "")],
)
def test_deltas_rebuild_the_order(before: str, after: str) -> None:
    change = delta(chain(*before), chain(*after))
    assert [n["name"] for n in apply_delta(chain(*before), change)] == list(after)


def test_a_moved_node_is_put_and_the_rest_stays() -> None:
    assert [n["name"] for n in delta(chain(*"abcd"), chain(*"bcda"))["put"]] == ["a"]


def test_a_changed_node_is_put() -> None:
    after = chain(*"abc")
    after[1]["reason"] = "because"
    assert [n["name"] for n in delta(chain(*"abc"), after)["put"]] == ["b"]


def test_every_stage_is_rebuilt_from_the_json() -> None:
    document = recorded(net())[0].document()
    again = Document.from_data(json.loads(document.to_json()))
    assert again.to_json() == document.to_json()
    for index in range(len(document.stages)):
        nodes = again.nodes_at(index)
        names = [n["name"] for n in nodes]
        assert len(set(names)) == len(names)
        for place, node in enumerate(nodes):
            assert set(node["in"]) <= set(names[:place]), (index, node["name"])


def test_separate_recordings_join_into_the_one_of_both() -> None:
    first, second, both = Recorder(), Recorder(), Recorder()
    prepared = prepare_fx(net(), None, (X,), debug=[first, both])
    calibrate(prepared, [X])
    convert_fx(prepared, debug=[second, both])
    joined, expected = document_of([first, second]), both.document()
    assert [s["name"] for s in joined.stages] == [s["name"] for s in expected.stages]
    for index in range(len(joined.stages)):
        assert joined.nodes_at(index) == expected.nodes_at(index)


@pytest.mark.parametrize("data", [None, {}, {"format": "qcompiler-graph"}, {"format": "other", "version": 1, "title": "", "stages": [{}]},
                                  {"format": "qcompiler-graph", "version": 2, "title": "", "stages": [{}]},
                                  {"format": "qcompiler-graph", "version": 1, "title": "", "stages": [{"put": [{"name": "a"}]}]},
                                  {"format": "qcompiler-graph", "version": 1, "title": "", "stages": [3]}])  # fmt: skip
def test_other_data_is_no_document(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"graph document"):
        Document.from_data(data)


# ---- what nodes hold


def test_numbers_of_a_lowered_graph() -> None:
    nodes = {n["name"]: n for n in document_of(flow(net(), (X,)).module).nodes_at(0)}
    conv = next(n for n in nodes.values() if n["op"].startswith("quantized.conv2d"))
    assert conv["kind"] == "int8" and conv["macs"] == 8 * 6 * 6 * 27 and conv["q"]["dtype"] == "uint8"
    weight = nodes["body_0_weight"]
    assert weight["params"] == 8 * 27 and len(weight["q"]["scale"]) == 8 and weight["q"]["axis"] == 0
    assert "params" not in nodes["body_0_weight_scale"]
    assert sum(n.get("params", 0) for n in nodes.values()) == 8 * 27 + 8 + 8 * 4 + 4
    assert next(n for n in nodes.values() if n["op"] == "cumsum")["kind"] == "float"
    step = next(n for n in nodes.values() if n["op"] == "at_least")  # the input, large enough for the window: no op, but one's colour
    assert step["kind"] == "int8" and step["step_of"] == conv["name"] and "step_of" not in conv
    assert {"input", "output", "attr", "pack", "int8", "float", "quantize", "dequantize"} == {n["kind"] for n in nodes.values()}


def test_a_loaded_module_tells_the_same_from_its_program(tmp_path: Any) -> None:
    module = flow(net(), (X,)).module
    save(module, tmp_path / "net.qc")
    lowered, loaded = document_of(module).nodes_at(0), document_of(load(tmp_path / "net.qc")).nodes_at(0)

    def told(nodes: list[dict[str, Any]]) -> list[Any]:
        calls = [n for n in nodes if n["kind"] in ("int8", "float", "quantize", "dequantize")]
        return [(n["kind"], n.get("path", ""), n.get("line"), n.get("macs"), n.get("q", {}).get("scale")) for n in calls]

    assert told(loaded) == told(lowered)
    packs = [[(n["path"], len(n["in"])) for n in nodes if n["kind"] == "pack"] for nodes in (lowered, loaded)]
    assert sorted(packs[0]) == sorted(packs[1])
    assert sum(n.get("params", 0) for n in loaded) == sum(n.get("params", 0) for n in lowered)


def test_numerics_and_overlays_are_added_to_a_copy() -> None:
    document = document_of(flow(net(), (X,)).module)
    more = document.with_numerics({"x": {"sqnr": 1 / 3, "max_abs": float("inf")}}).with_overlay("time", {"x": 2})
    assert more.to_data()["numerics"] == {"x": {"sqnr": 0.333333, "max_abs": None}}
    assert more.to_data()["overlays"] == {"time": {"x": 2.0}}
    assert "numerics" not in document.to_data()
    measured = type("Measured", (), {"to_numerics": lambda self: {"x": {"sqnr": 2.0}}})()
    assert document.with_numerics(measured).numerics == {"x": {"sqnr": 2.0}}
    with pytest.raises(ConfigError, match="no node nope"):
        document.with_overlay("time", {"nope": 1.0})


@pytest.mark.parametrize("source", [3, "no/such/dump", [], nn.Linear(1, 1)])
def test_what_holds_no_graph_is_refused(source: Any) -> None:
    with pytest.raises(ConfigError) as error:
        document_of(source)
    assert error.value.hint


# ---- provenance


def unplaced(graph: fx.Graph) -> list[str]:
    """Nodes without a file and line, a module, or an origin."""
    sources = [(node, source_of(node)) for node in graph.nodes]
    return [f"{n.name} {s}" for n, s in sources if not (s.file and s.line and s.origin and (s.module_path or s.module_type))]


class Watcher:
    """Instrument: the unplaced nodes after each pass."""

    def __init__(self) -> None:
        self.missing: dict[str, list[str]] = {}

    def before(self, step: Any, gm: fx.GraphModule, context: Context) -> None:
        self.missing.setdefault(f"before {step.name}", unplaced(gm.graph))

    def after(self, step: Any, gm: fx.GraphModule, context: Context, record: Any) -> None:
        self.missing[step.name] = unplaced(gm.graph)


ZOO = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "googlenet", "shufflenet_v2_x0_5", "densenet121", "vit_b_16")


@pytest.mark.parametrize("name", [*ZOO[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in ZOO[2:])])
def test_every_node_at_every_stage_knows_where_it_comes_from(name: str) -> None:
    watcher, (x,) = Watcher(), inputs(n=1)
    prepared = prepare_fx(few(name), None, (x,), debug=watcher)
    calibrate(prepared, [x])
    module = convert_fx(prepared, debug=watcher)
    assert len(watcher.missing) >= 24 and not any(watcher.missing.values()), {k: v[:3] for k, v in watcher.missing.items() if v}
    comments = [c.comment for c in module.program.statements]
    assert all(c.rpartition(":")[2].isdigit() for c in comments), [c for c in comments if not c.rpartition(":")[2].isdigit()][:3]


def generated() -> nn.Module:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))


@pytest.mark.parametrize("model", [net(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())], ids=["user class", "torch's container"])
def test_models_of_any_kind_have_places(model: nn.Module) -> None:
    watcher = Watcher()
    prepared = prepare_fx(model.eval(), None, (X,), debug=watcher)
    calibrate(prepared, [X])
    code = convert_fx(prepared, debug=watcher).code
    assert not any(watcher.missing.values()), watcher.missing
    lines = [line.strip() for line in code.partition("def forward")[2].splitlines()]
    statements = [i for i, line in enumerate(lines) if " = " in line and "packs_for(" not in line]
    assert statements and all(".py:" in lines[i] or (lines[i - 1].startswith("#") and ".py:" in lines[i - 1]) for i in statements), code


def test_a_pass_of_the_users_need_not_copy_sources() -> None:
    class Double:
        name, stage = "double", Stage.FUSED

        def run(self, gm: fx.GraphModule, context: Context) -> bool:
            node = next(n for n in gm.graph.nodes if n.op == "call_function")
            with gm.graph.inserting_after(node):
                new = gm.graph.call_function(torch.clone, (node,))
            node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
            return True

    watcher = Watcher()
    prepared = prepare_fx(net(), None, (X,), passes=[Double()], debug=watcher)
    assert not watcher.missing["double"]
    clone = next(n for n in prepared.graph.nodes if n.target is torch.clone)
    assert source_of(clone).module_path == "body.0" and source_of(clone).origin


def test_generated_code_has_a_place_that_does_not_count_up() -> None:
    first, second = (document_of(flow(generated().eval(), (X,)).module).to_json() for _ in range(2))
    assert first == second and "eval_with_key" in first


def test_lowering_alone_keeps_sources() -> None:
    reference = flow(net(), (X,)).reference
    context = Context(Settings(target=TorchTarget("x86", "avx2")))
    run_passes(reference, (Lower(),), Stage.QUANTIZED, context)
    assert not unplaced(reference.graph)
