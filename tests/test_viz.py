"""Drawings: what they show, that no name breaks any of them, and that the same graph gives the same bytes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import qcompiler
from qcompiler import viz
from qcompiler.cli import app
from qcompiler.cli.viz import Format
from qcompiler.debug import Document, Recorder, document_of
from qcompiler.errors import ConfigError, QCompilerError
from qcompiler.passes import OBSERVE
from qcompiler.viz import colors, layout, page
from qcompiler.viz.boxes import BOX, draw, sums_of
from qcompiler.viz.dot import to_dot
from qcompiler.viz.labels import count_text, plain
from qcompiler.viz.mermaid import to_mermaid
from qcompiler.viz.model_explorer import to_graph, to_node_data
from qcompiler.viz.svg import to_svg
from tests.children import WAITING
from tests.graph_documents import HOSTILE, HostileNet, X, compiled, hostile, net, of_edges

ROOT = Path(__file__).resolve().parent.parent
TEXTS = (".svg", ".dot", ".mmd", ".json", ".me.json")


def chain(count: int, path: Any = lambda i: "") -> Document:
    names = [f"n{i}" for i in range(count)]
    document = of_edges(names, list(pairwise(names)))
    for i, node in enumerate(document.stages[0]["put"]):
        node["path"] = path(i)
    return document


# ---- boxes


def test_constants_and_observers_are_left_out_and_edges_go_around_them() -> None:
    prepared = document_of(compiled()[1])
    drawing = draw(prepared)
    assert {i.kind for i in drawing.items} <= {"input", "output", "int8", "float", BOX}
    reached = {0}
    for a, b in drawing.edges:
        if a in reached:
            reached.add(b)
    assert reached == set(range(len(drawing.items)))


@pytest.mark.parametrize("stage", range(12))
@pytest.mark.parametrize("depth", [None, 1, 2, 3])
def test_edges_run_forward_at_any_depth(stage: int, depth: int | None) -> None:
    drawing = draw(compiled()[0], depth=depth, stage=stage)
    assert all(a < b for a, b in drawing.edges)
    names = [name for item in drawing.items for name in item.names]
    assert len(set(names)) == len(names)


def test_a_module_that_is_called_twice_is_two_boxes() -> None:
    titles = [item.title for item in draw(document_of(compiled()[1]), depth=1).items]
    assert titles.count("again") == 2 and titles.count("blocks") == 1


def test_depth_is_chosen_by_what_has_room() -> None:
    document = chain(100, lambda i: f"a{i // 25}.b{i // 5}")
    assert len(draw(document, limit=100).items) == 100 and draw(document, limit=100).depth is None
    assert [len(draw(document, limit=n).items) for n in (99, 20, 19, 4)] == [20, 20, 4, 4]


def test_a_flat_model_is_drawn_in_chunks() -> None:
    drawing = draw(chain(1000), limit=60)
    assert len(drawing.items) == 59 and drawing.items[0].title == "items 1–17"
    assert sum(len(item.nodes) for item in drawing.items) == 1000
    assert drawing.edges == tuple((i, i + 1) for i in range(58))


def test_boxes_add_up_to_the_whole() -> None:
    document = document_of(compiled()[2])
    for depth in (1, 2, 3):
        items = draw(document, depth=depth).items
        total = sums_of(document.nodes_at(-1), document)
        assert sum(i.sums.macs for i in items) == total.macs > 0
        assert sum(i.sums.ops for i in items) == total.ops > 0
        assert sum(i.sums.params for i in items) == total.params > 0


def test_a_box_shows_its_worst_node() -> None:
    document = chain(4, lambda i: "a.b").with_numerics({"n0": {"sqnr": 30.0}, "n2": {"sqnr": 7.25}, "n3": {"sqnr": float("inf")}})
    (box,) = draw(document, depth=1).items
    assert box.sums.sqnr == 7.25 and "worst 7.2 dB" in box.lines[-1]


# ---- layout

GRAPHS = {
    "empty": (0, []),
    "one": (1, []),
    "apart": (3, []),
    "chain": (4, [(0, 1), (1, 2), (2, 3)]),
    "skip": (4, [(0, 1), (1, 2), (2, 3), (0, 3)]),
    "diamond": (6, [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (2, 5), (3, 5), (4, 5)]),
    "dense": (12, [(a, b) for b in range(12) for a in range(b)]),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_boxes_do_not_overlap_and_edges_run_down(name: str) -> None:
    count, edges = GRAPHS[name]
    made = layout.place(count, edges)
    assert len(set(made.boxes)) == count
    for (ax, arank), (bx, brank) in ((a, b) for i, a in enumerate(made.boxes) for b in made.boxes[:i]):
        assert arank != brank or abs(ax - bx) >= 1.0
    for a, b in edges:
        ranks = [made.boxes[a][1], *(r for _, r in made.bends[a, b]), made.boxes[b][1]]
        assert ranks == list(range(ranks[0], ranks[-1] + 1)) and len(ranks) >= 2
    assert all(0 <= x <= made.width for x, _ in made.boxes)


def test_long_edges_keep_clear_of_boxes() -> None:
    count, edges = GRAPHS["dense"]
    made = layout.place(count, edges)
    for bends in made.bends.values():
        for x, rank in bends:
            assert all(abs(x - bx) > 0.5 for bx, brank in made.boxes if brank == rank)


def test_a_tree_is_drawn_without_crossings() -> None:
    edges = [(0, 2), (0, 1), (1, 6), (1, 5), (2, 4), (2, 3)]
    xs = [x for x, _ in layout.place(7, edges).boxes]
    assert (xs[1] < xs[2]) == (max(xs[5], xs[6]) < min(xs[3], xs[4]))


# ---- files


@pytest.mark.parametrize("ending", TEXTS)
def test_every_kind_of_source_is_saved(ending: str, tmp_path: Path) -> None:
    document, prepared, module = compiled()
    qcompiler.save(module, tmp_path / "net.qc")
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "graph.json").write_text(document.to_json())
    sources = [document, prepared, module, qcompiler.load(tmp_path / "net.qc"), tmp_path / "dump", str(tmp_path / "dump" / "graph.json"),
               [tmp_path / "dump"], qcompiler.convert_to_reference_fx(prepared), qcompiler.fuse_fx(net(), (X,))]  # fmt: skip
    for i, source in enumerate(sources):
        (file,) = viz.save(source, tmp_path / f"{i}{ending}")
        assert file == tmp_path / f"{i}{ending}" and file.stat().st_size > 500
    assert not list(tmp_path.glob(".*"))


def test_the_title_and_the_depth_are_the_callers(tmp_path: Path) -> None:
    viz.save(compiled()[2], tmp_path / "g.svg", title="mine & yours", depth=1)
    text = (tmp_path / "g.svg").read_text()
    assert "mine &amp; yours" in text and text.count("<g>") == len(draw(document_of(compiled()[2]), depth=1).items)


@pytest.mark.parametrize("name", ["g.pdf", "g", "svg", ".svg", "g.svg.gz"])
def test_another_ending_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no format") as error:
        viz.save(compiled()[0], tmp_path / name)
    assert error.value.hint is not None and ".mmd" in error.value.hint
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(QCompilerError, match="cannot write"):
        viz.save(compiled()[0], tmp_path / "missing" / "g.svg")
    (tmp_path / "g.svg").write_text("old")
    with pytest.raises(ConfigError):
        viz.save(compiled()[0], tmp_path / "g.svg", overlays={"o": {"nope": 1.0}})
    assert (tmp_path / "g.svg").read_text() == "old"


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """Two processes with other hash seeds, started in other folders, write the same files."""
    code = (
        "import sys, torch\n"
        "from qcompiler import viz\n"
        "from tests.graph_documents import compiled\n"
        "document, prepared, module = compiled()\n"
        "for ending in ('.svg', '.dot', '.mmd', '.json', '.me.json'):\n"
        "    viz.save(module, 'm' + ending)\n"
        "    viz.save(prepared, 'p' + ending, overlays={'o': {'x': 1.0}})\n"
        "viz.save(document, 'd.svg')\n"
    )
    made = []
    for seed in ("0", "1", "77"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, timeout=WAITING)
        made.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    assert len(made[0]) == 12 and made[0] == made[1] == made[2]
    assert not any(str(tmp_path).encode() in text or str(ROOT).encode() in text for text in made[0].values())


# ---- hostile names


def test_there_are_fifty_hostile_names() -> None:
    assert len(set(HOSTILE)) >= 50


@pytest.mark.parametrize("depth", [None, 1])
def test_svg_holds_hostile_names_as_text(depth: int | None) -> None:
    text = to_svg(draw(hostile(), depth=depth, limit=200), {HOSTILE[0]: {HOSTILE[1]: 1.0}})
    text.encode("utf-8")
    root = ET.fromstring(text)
    allowed = {"svg", "title", "style", "defs", "marker", "path", "text", "g", "rect"}
    assert {e.tag.removeprefix("{http://www.w3.org/2000/svg}") for e in root.iter()} == allowed
    assert not any(key.startswith("on") or "href" in key for e in root.iter() for key in e.attrib)
    assert len(root.findall(".//{*}g")) == len(HOSTILE)
    shown = [e.text for e in root.findall(".//{*}text[@class='name']")]
    assert len(shown) == len(HOSTILE)
    for name, text in zip(shown, HOSTILE):
        assert name and plain(text).startswith(name.removesuffix("…")) and len(name) >= min(len(plain(text)), 10)


@pytest.mark.parametrize("depth", [None, 1])
def test_dot_holds_hostile_names_as_labels(depth: int | None) -> None:
    pydot = pytest.importorskip("pydot")
    drawing = draw(hostile(), depth=depth, limit=200)
    text = to_dot(drawing)
    graphs = pydot.graph_from_dot_data(text)
    assert graphs is not None and len(graphs) == 1

    def nodes(graph: Any) -> list[Any]:
        own = [n for n in graph.get_nodes() if n.get_name() not in ("node", "edge", "graph")]
        return own + [n for inner in graph.get_subgraphs() for n in nodes(inner)]

    found = {n.get_name(): n.get("label") for n in nodes(graphs[0])}
    assert sorted(found) == sorted(f"n{i}" for i in range(len(HOSTILE)))
    for i, item in enumerate(drawing.items):
        first = re.split(r"(?<!\\)(?:\\\\)*\\n", found[f"n{i}"][1:-1])[0]
        assert first.replace("\\\\", "\\").replace('\\"', '"').startswith(plain(item.title, 120)[:20].rstrip("\\"))
    assert len(graphs[0].get_edges()) == len(HOSTILE) - 1


LABEL = r'"(?:[A-Za-z0-9 _.,:()+*/=×–·…-]|#\d+;|<br/>)*"'
MERMAID = (
    r"flowchart TB", rf"n\d+(?:\({LABEL}\)|\[\[{LABEL}\]\])", r"n\d+ --> n\d+", rf"subgraph m\d+\[{LABEL}\]", r"end",
    r"classDef \w+Kind stroke:#[0-9a-f]{6},stroke-width:2px", r"class n\d+(?:,n\d+)* \w+Kind",
)  # fmt: skip


def check_mermaid(text: str) -> dict[str, list[str]]:
    """The lines by the form they have; each must have one, and subgraphs must be closed."""
    found: dict[str, list[str]] = {form: [] for form in MERMAID}
    for line in text.splitlines():
        forms = [form for form in MERMAID if re.fullmatch(form, line.strip())]
        assert len(forms) == 1, line
        found[forms[0]].append(line)
    assert len(found[MERMAID[3]]) == len(found["end"])
    return found


@pytest.mark.parametrize("depth", [None, 1])
def test_mermaid_holds_hostile_names_as_labels(depth: int | None) -> None:
    drawing = draw(hostile(), depth=depth, limit=200)
    found = check_mermaid(to_mermaid(drawing))
    assert len(found[MERMAID[1]]) == len(HOSTILE) and len(found[MERMAID[2]]) == len(HOSTILE) - 1
    label = re.search(r'"(.*?)(?:<br/>|")', found[MERMAID[1]][0])
    assert label is not None
    assert re.sub(r"#(\d+);", lambda m: chr(int(m.group(1))), label.group(1)) == plain(drawing.items[0].title, 80)


def test_mermaid_of_a_large_model_is_collapsed(tmp_path: Path) -> None:
    viz.save(chain(3000, lambda i: f"a{i // 100}.b{i // 10}"), tmp_path / "g.mmd")
    found = check_mermaid((tmp_path / "g.mmd").read_text())
    assert len(found[MERMAID[1]]) == 30


def test_json_keeps_hostile_names(tmp_path: Path) -> None:
    viz.save(hostile(), tmp_path / "g.json")
    raw = (tmp_path / "g.json").read_bytes()
    assert raw.isascii() and [n["name"] for n in Document.from_data(json.loads(raw)).nodes_at(-1)] == list(HOSTILE)
    graph = json.loads(json.dumps(to_graph(hostile())))
    assert [n["id"] for n in graph["graphs"][0]["nodes"]] == list(HOSTILE)


@pytest.mark.parametrize("color", ["never", "always"])
@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_terminal_shows_hostile_names_as_text(width: int, color: str) -> None:
    file = io.StringIO()
    viz.print(hostile(), depth=2, color=color, file=file, width=width, numerics={text: {"sqnr": 3.0} for text in HOSTILE}, worst=60)
    text = file.getvalue()
    without_colors = re.sub(r"\x1b\[[0-9;]*m", "", text) if color == "always" else text
    assert all(c.isprintable() or c == "\n" for c in without_colors)
    assert ("\x1b[" in text) == (color == "always")
    text.encode("utf-8")


def test_a_model_with_hostile_names_is_drawn_from_recording_to_loading(tmp_path: Path) -> None:
    recorder, x = Recorder(), torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    prepared = qcompiler.prepare_fx(HostileNet().eval(), None, (x,), debug=recorder)
    qcompiler.calibrate(prepared, [x])
    module = qcompiler.convert_fx(prepared, debug=recorder)
    qcompiler.save(module, tmp_path / "h.qc")
    names = {name for name, _ in HostileNet().named_children()}
    for source in (recorder, module):
        document = document_of(source)
        nodes = [n for n in document.nodes_at(-1) if n["kind"] == "int8"]
        assert names == {n["path"] for n in nodes}
        assert {n["attrs"] for n in document.nodes_at(-1) if n["kind"] == "attr"} >= {f"{name}.weight" for name in names}
    for source in (recorder, module, qcompiler.load(tmp_path / "h.qc")):
        ET.fromstring(to_svg(draw(document_of(source))))
        check_mermaid(to_mermaid(draw(document_of(source))))
        Document.from_data(json.loads(document_of(source).to_json()))
        viz.print(source, file=io.StringIO(), width=80)


# ---- terminal


def shown(width: int = 100, color: str = "never", **options: Any) -> str:
    file = io.StringIO()
    viz.print(compiled()[2], color=color, file=file, width=width, **options)
    return file.getvalue()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_lines_fit_the_width(width: int) -> None:
    lines = shown(width, numerics={"x": {"sqnr": 3.0}}).splitlines()
    assert all(len(line) <= width for line in lines)
    assert ("params" in "".join(lines)) == (width >= 72) and ("class" in "".join(lines)) == (width >= 100)


def test_the_tree_is_as_deep_as_asked() -> None:
    one, two = shown(depth=1), shown(depth=2)
    assert "blocks" in one and len(two.splitlines()) > len(one.splitlines())
    assert re.search(r"^   0 ", two, re.M) and not re.search(r"^   0 ", one, re.M)
    assert re.search(r"cumsum", one) and "in int8" in one


def test_the_worst_nodes_follow_the_tree() -> None:
    names = [n["name"] for n in document_of(compiled()[2]).nodes_at(-1) if n["kind"] == "int8"]
    text = shown(numerics={name: {"sqnr": 40.0 - i} for i, name in enumerate(names)}, worst=3)
    table = text.partition("lowest SQNR")[2]
    rows = [line.split()[:3] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == [f"{41.0 - len(names) + i:.1f}" for i in range(3)]
    assert all(name.startswith(row[2].rstrip("…")) for name, row in zip(names[::-1], rows))


def test_no_color_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in shown(color="always")
    assert "\x1b[" not in shown(color="never") and "\x1b[" not in shown(color="auto")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3\d", shown(color="auto"))
    with pytest.raises(ConfigError, match="color="):
        shown(color="pink")


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (1280, "1.28 k"), (3.0e8, "300 M"), (4.1e9, "4.1 G"), (2e12, "2 T")])
def test_counts_are_short(value: float, text: str) -> None:
    assert count_text(value) == text


def test_a_graph_of_torch_fx_itself_is_shown() -> None:
    file = io.StringIO()
    viz.print(torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())), color="never", file=file, width=80)
    assert "2 ops" in file.getvalue() and "Linear, ReLU" in file.getvalue()


# ---- Model Explorer


def test_model_explorer_files(tmp_path: Path) -> None:
    document = compiled()[0]
    names = [n["name"] for n in document.nodes_at(-1)]
    files = viz.save(document, tmp_path / "g.me.json", numerics={names[5]: {"sqnr": 12.5}}, overlays={"time / ms": {names[3]: 2.0}})
    assert [f.name for f in files] == ["g.me.json", "g.sqnr.me-data.json", "g.time-ms.me-data.json"]
    collection = json.loads(files[0].read_text())
    assert set(collection) == {"label", "graphs"}
    ids = [g["id"] for g in collection["graphs"]]
    assert [i.partition(" ")[2] for i in ids] == ["lower", OBSERVE[-1].name, "input"]
    for graph in collection["graphs"]:
        known = {node["id"] for node in graph["nodes"]}
        for node in graph["nodes"]:
            assert {"id", "label", "namespace", "attrs", "incomingEdges"} <= set(node)
            assert all(set(a) == {"key", "value"} and isinstance(a["value"], str) for a in node["attrs"])
            assert all(edge["sourceNodeId"] in known for edge in node["incomingEdges"])
    (data,) = json.loads(files[2].read_text()).items()
    assert data[0] == ids[0] and data[1]["results"] == {names[3]: {"value": 2.0}} and len(data[1]["gradient"]) == 3
    assert to_node_data(document) == {}


# ---- notebook and page


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize("document", [compiled()[0], hostile()], ids=["net", "hostile"])
def test_a_notebook_gets_one_sandboxed_frame(document: Document) -> None:
    parser = Tags()
    parser.feed(viz.show(document)._repr_html_())
    ((tag, attributes),) = parser.seen
    assert tag == "iframe" and attributes["srcdoc"] == page.render(document)
    assert "allow-same-origin" not in str(attributes["sandbox"])


def test_a_figure_says_what_it_is() -> None:
    assert repr(viz.show(compiled()[2])).startswith("<Figure 'Net'")


def test_html_is_the_page(tmp_path: Path) -> None:
    viz.save(compiled()[0], tmp_path / "g.html")
    assert (tmp_path / "g.html").read_text(encoding="utf-8") == page.render(compiled()[0])


# ---- command line


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["viz", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_knows_every_format() -> None:
    assert {f".{f}" for f in Format} == {f.suffix for f in viz.FORMATS}


def test_the_command_draws_what_it_is_given(tmp_path: Path) -> None:
    qcompiler.save(compiled()[2], tmp_path / "net.qc")
    viz.save(compiled()[0], tmp_path / "graph.json")
    (tmp_path / "o.json").write_text('{"x": 3}')
    made = call(tmp_path / "net.qc", "-o", tmp_path / "a.svg", "--title", "mine", "--overlay", tmp_path / "o.json")
    assert made.exit_code == 0 and "a.svg" in made.output and "mine" in (tmp_path / "a.svg").read_text()
    assert call(tmp_path, "-o", tmp_path / "b", "--format", "mmd").exit_code == 0
    check_mermaid((tmp_path / "b.mmd").read_text())
    printed = call(tmp_path / "graph.json", "--depth", 1)
    assert printed.exit_code == 0 and "blocks" in printed.output and "int8" in printed.output


def test_the_command_takes_a_float_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    torch.save(X, tmp_path / "x.pt")
    done = call("tests.graph_documents:net", "--example", tmp_path / "x.pt", "-o", tmp_path / "g.json")
    assert done.exit_code == 0, done.output
    stages = Document.from_data(json.loads((tmp_path / "g.json").read_text())).stages
    assert stages[-1]["name"] == "lower"
    plain_run = call("tests.graph_documents:net", "--size", 8)
    assert plain_run.exit_code == 0 and "not calibrated" in plain_run.output


@pytest.mark.parametrize("arguments", [("nothing.qc",), ("tests",), ("graph_documents",), (".", "-o", "x.pdf")])
def test_mistakes_are_messages(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 1 and "error" in result.output and "Traceback" not in result.output


# ---- docs


def test_the_examples_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "visualization.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"model": net(), "x": X}
    for block in blocks:
        exec(compile(block, "visualization.md", "exec"), space)
    assert "int8" in capsys.readouterr().out and (tmp_path / "net.svg").is_file()


def test_a_recorder_is_a_source() -> None:
    recorder = Recorder("mine")
    qcompiler.prepare_fx(net(), None, (X,), debug=recorder)
    assert "mine" in repr(viz.show(recorder))


# ---- overlays


def test_an_overlay_tints_the_boxes_of_a_drawing() -> None:
    document = chain(4, lambda i: f"m{i // 2}").with_overlay("time", {"n0": 1.0, "n1": 3.0, "n2": 5.0})
    root = ET.fromstring(to_svg(draw(document, depth=1), document.overlays))
    tints = [e.get("fill") for e in root.findall(".//{*}rect[@fill-opacity]")]
    assert tints == [colors.SCALE[0], colors.SCALE[-1]]  # the largest of each module: 3 and 5
    assert "time: 3 to 5" in ET.tostring(root, "unicode")


def test_pictures_and_page_have_one_table_of_colours() -> None:
    static = Path(page.__file__).parent / "static"
    script = colors.script()
    for color, _ in colors.KINDS.values():
        assert color in script
    tables = {c for table in (colors.CATEGORIES, colors.SCALE) for c in table} | {c for c, _ in colors.KINDS.values()}
    written = {
        c.lower() for path in (*static.glob("*.js"), *static.glob("*.css")) for c in re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text())
    }
    assert not tables & written, "a colour of the table is spelled in the page's files"
    assert colors.color_at(0) == colors.SCALE[0]
    assert colors.color_at(1) == colors.SCALE[-1]


def test_no_other_file_has_colours_of_its_own() -> None:
    """What is no shadow stands in one table. The page's scripts, its style sheet and the report of a search read that."""
    written = [path for kind in ("py", "js", "css", "html") for path in sorted((ROOT / "qcompiler").rglob(f"*.{kind}"))]
    found = [f"{path.name}: {color}" for path in written for color in re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text(encoding="utf-8"))]
    assert {color.partition(":")[0] for color in found} == {"colors.py"}
