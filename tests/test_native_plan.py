"""The plan of a native module: its text, its stage in documents, pages and dumps, its times."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import qcompiler
from qcompiler import viz
from qcompiler.debug import Recorder, document_of
from qcompiler.errors import ConfigError
from tests.native_nets import NETS, Through, conv, converted, example, net, region_of, shaken

GOLDEN = Path(__file__).parent / "golden"


def recorded(name: str, **debug: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    make, shape = NETS[name]
    recorder, x = Recorder("net"), example(shape)
    prepared = qcompiler.prepare_fx(shaken(make()), None, (x,), backend="native", debug=recorder)
    qcompiler.calibrate(prepared, [x])
    return qcompiler.convert_fx(prepared, debug=recorder), recorder


def layers(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [node for node in nodes if "plan" in node]


@pytest.mark.parametrize("name", ["residual", "shuffle", "cat"])
def test_the_text_of_a_plan(name: str, request: pytest.FixtureRequest) -> None:
    module, _, _ = net(name)
    path, text = GOLDEN / f"native_{name}.plan", qcompiler.native_plan(module)
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", NETS)
def test_the_plan_is_the_last_stage_of_a_document(name: str) -> None:
    module, _, _ = net(name)
    document = document_of(module)
    nodes = document.nodes_at(-1)
    names = [node["name"] for node in nodes]
    region = region_of(module)
    assert document.stages[-1]["name"] == "plan" and len(set(names)) == len(names)
    made = [layer.out for layer in region.network.layers]
    assert [name for name in names if name in made] == made and {layer.out for layer in region.network.computing} <= {
        node["name"] for node in layers(nodes)
    }
    assert not [node for node in nodes if node["op"].endswith(("run_region", "native_region", "getitem"))]
    for index, node in enumerate(nodes):  # drawn forward
        assert all(source in names[:index] for source in node["in"]), node["name"]
    assert [node["in"] for node in nodes if node["kind"] == "output"] == [list(region.network.outputs)]
    for node in layers(nodes):
        plan = node["plan"]
        assert ("layer" in plan) == bool(plan.get("kernels")) and (("offset" in plan) == ("buffer" in plan) == ("bytes" in plan))
        assert plan.get("place") or "offset" in plan or not plan.get("kernels"), node
        assert plan.get("offset", 0) + plan.get("bytes", 0) <= region.table([torch.empty(s) for _, s in region.network.inputs]).struct.arena


def test_recordings_copies_files_and_dumps_have_it(tmp_path: Path) -> None:
    module, recorder = recorded("residual")
    stages = [stage["name"] for stage in recorder.document().stages]
    assert stages[-2:] == ["lower", "plan"] or stages[-1] == "plan"
    qcompiler.save(module, tmp_path / "net.qc")
    for other in (copy.deepcopy(module), qcompiler.load(tmp_path / "net.qc")):
        assert layers(document_of(other).nodes_at(-1)) == layers(document_of(module).nodes_at(-1))
    prepared = qcompiler.prepare_fx(shaken(NETS["residual"][0]()), None, (x := example((1, 3, 9, 9)),), backend="native")
    qcompiler.calibrate(prepared, [x])
    dumped = qcompiler.convert_fx(prepared, debug=tmp_path / "dumps")
    (folder,) = (tmp_path / "dumps").iterdir()
    assert (folder / "plan.txt").read_text() == qcompiler.native_plan(dumped)
    assert "plan" in [stage["name"] for stage in document_of(folder).stages]


def test_other_back_ends_have_none(tmp_path: Path) -> None:
    prepared = qcompiler.prepare_fx(shaken(NETS["linear"][0]()), None, (x := example((5, 20)),))
    qcompiler.calibrate(prepared, [x])
    module = qcompiler.convert_fx(prepared, debug=tmp_path)
    assert document_of(module).stages[-1]["name"] == "lowered"
    assert not list(tmp_path.rglob("plan.txt"))
    with pytest.raises(ConfigError, match="native"):
        qcompiler.native_times(module, x)


def test_regions_stand_between_what_runs_in_torch() -> None:
    module, _ = converted(Through(lambda m, x: m[1](m[0](x).logcumsumexp(2)), conv(3, 8), conv(8, 4, 1)), x := example((1, 3, 9, 9)))
    nodes = document_of(module).nodes_at(-1)
    ops = [node["op"] for node in nodes]
    assert ops.count("native.conv") == 2 and any("logcumsumexp" in op for op in ops)
    times = qcompiler.native_times(module, x, repeat=1)
    assert set(times) <= {node["name"] for node in layers(nodes)} and len(times) >= 4


@pytest.mark.parametrize("ending", ["html", "svg", "dot", "mmd", "json", "me.json"])
def test_it_is_drawn_with_times(ending: str, tmp_path: Path) -> None:
    module, _, x = net("squeeze and excite")
    times = qcompiler.native_times(module, x)
    assert {layer.out for layer in region_of(module).network.computing} == set(times) == set(qcompiler.native_times(module, x, threads=2))
    assert all(0 <= entry["ms"] < 1e4 for entry in times.values())
    first = viz.save(module, tmp_path / f"net.{ending}", numerics=times)[0].read_bytes()
    assert first == viz.save(module, tmp_path / f"other.{ending}", numerics=times, title="Through")[0].read_bytes()
