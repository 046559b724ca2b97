"""The interactive page: what it is made of, and what a headless Chromium sees of it."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from qcompiler.debug.op_steps import is_op
from qcompiler.errors import ConfigError
from qcompiler.tune.report import rendered
from qcompiler.tune.score import Score
from qcompiler.tune.table import Row, table_of
from qcompiler.viz.page import render
from tests import documents
from tests.browser import chromium
from tests.children import WAITING

STATIC = Path(__file__).resolve().parent.parent / "qcompiler" / "viz" / "static"
DAGRE = "54a503e346f93ca0bb10abe7999587e037262935687aca45eb4e4b0f64bbb578"  # @dagrejs/dagre 3.1.3, dist/dagre.min.js
APP = "window.qcompilerPage"
MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "small": documents.small,
    "resnet-2000": lambda: documents.resnet(2000),
    "resnet-2000-passes": lambda: documents.resnet(2000, passes=True),
    "densenet-201": documents.densenet,
    "flat-2000": lambda: documents.flat(2000),
    "wide": documents.wide,
    "hostile": documents.hostile,
}

# --- without a browser ---


def test_dagre_is_the_pinned_file_with_its_licence() -> None:
    assert hashlib.sha256((STATIC / "vendor" / "dagre.min.js").read_bytes()).hexdigest() == DAGRE
    licence = (STATIC / "vendor" / "dagre.LICENSE.txt").read_text(encoding="utf-8")
    assert "Permission is hereby granted" in licence
    assert licence in render(documents.small())


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_same_document_gives_the_same_bytes(name: str) -> None:
    assert render(MADE[name]()) == render(json.loads(json.dumps(MADE[name]())))


@pytest.mark.parametrize("name", ["resnet-2000", "densenet-201", "flat-2000"])
def test_the_graph_alone_is_small(name: str) -> None:
    document = MADE[name]()
    assert len(render(document)) <= 300_000 + 500 * len(document["stages"][0]["put"])


def test_ten_passes_over_two_thousand_nodes_are_at_most_three_megabytes() -> None:
    assert len(render(documents.resnet(2000, passes=True))) <= 3_000_000


@pytest.mark.parametrize("name", ["small", "hostile"])
def test_the_document_is_data_and_comes_back_whole(name: str) -> None:
    document = MADE[name]()
    packed = re.findall(r'<script type="text/plain" id="document">([\w+/=]+)</script>', render(document))
    assert len(packed) == 1
    assert json.loads(zlib.decompress(b64decode(packed[0]))) == document


def test_no_data_stands_in_the_markup() -> None:
    """Whatever the labels, the page differs in the packed document and the escaped title alone."""
    strip = lambda text: re.sub(r'id="document">[^<]*|<title>[^<]*|<h1 id="title">[^<]*', "", text)  # noqa: E731
    assert strip(render(documents.hostile())) == strip(render(documents.small()))


def test_no_script_writes_markup() -> None:
    for file in STATIC.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), file.name
        assert "</script" not in text and "<!--" not in text, file.name


@pytest.mark.parametrize(
    ("change", "said"), [({"format": "x"}, "this one is x"), ({"version": 2}, "version 2"), ({"stages": []}, "no stage")]
)
def test_a_document_of_another_kind_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        render({**documents.small((1, 1, 1, 1)), **change})


# --- in the browser ---


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


class Viewer:
    """A page opened from disk; whatever it asks of the network, and every error, is noted."""

    def __init__(self, browser: Any, folder: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAITING * 1000)  # milliseconds
        self.folder = folder
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("dialog", lambda d: (self.errors.append(f"dialog {d.message}"), d.dismiss()))

    def open(self, document: dict[str, Any], state: str = "") -> Viewer:
        self.file = self.folder / "page.html"
        self.file.write_text(render(document), encoding="utf-8")
        self.page.goto(self.file.as_uri() + state)
        self.page.wait_for_selector("body.ready")
        return self

    def run(self, script: str, argument: Any = None) -> Any:
        """Evaluates a body of statements in which `app` is the page's application; waits until what it asked for is drawn."""
        called = f"const app = {APP}; const result = await (async () => {{ {script} }})();"
        body = f"async (argument) => {{ {called} await app.drawn; return result ?? null; }}"
        return self.page.evaluate(body, argument)

    def texts(self, selector: str) -> list[str]:
        return list(self.page.locator(selector).all_text_contents())

    def box(self, name: str) -> Any:
        return self.page.locator(f'.box[data-id="n:{name}"]')


@pytest.fixture
def viewer(browser: Any, tmp_path: Path) -> Iterator[Viewer]:
    made = Viewer(browser, tmp_path)
    yield made
    made.context.close()
    assert not made.errors
    outside = [url for url in made.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert not outside
    assert len([url for url in made.requests if url.startswith("file:")]) == 1  # the page itself


@pytest.mark.parametrize("name", sorted(MADE))
def test_opens_with_few_boxes(viewer: Viewer, name: str) -> None:
    viewer.open(MADE[name]())
    shown = viewer.run("return app.canvas.seen.filter((b) => !b.open).length")
    assert 1 <= viewer.page.locator(".box:not(.open)").count() <= shown <= 60
    assert viewer.page.locator("#title").text_content()


@pytest.mark.parametrize("name", sorted(MADE))
@pytest.mark.parametrize("fold", [True, False])
def test_boxes_lie_apart_and_inside_their_containers(viewer: Viewer, name: str, fold: bool) -> None:
    viewer.open(MADE[name]())
    problems = viewer.run(
        """
        await app.setOption("fold", argument);
        await app.setDepth(app.state.depth + 1);
        const found = [];
        for (const box of app.canvas.seen.filter((b) => b.open)) {
          const [w, h] = box.size;
          if (box.kids.length > 150) found.push("too many in " + box.id);
          box.kids.forEach((a, i) => {
            if (a.x < box.x || a.y < box.y || a.x + a.size[0] > box.x + w || a.y + a.size[1] > box.y + h) found.push("outside " + a.id);
            for (const b of box.kids.slice(i + 1)) {
              const apart = a.x + a.size[0] <= b.x || b.x + b.size[0] <= a.x || a.y + a.size[1] <= b.y || b.y + b.size[1] <= a.y;
              if (!apart) found.push("overlap " + a.id + " " + b.id);
            }
          });
        }
        return found;
        """,
        fold,
    )
    assert problems == []


def test_a_graph_of_no_or_one_node_is_shown(viewer: Viewer) -> None:
    one = {"name": "x", "op": "placeholder", "kind": "input", "in": []}
    viewer.open(documents.document("few", [("none", [], {}, []), ("one", [one], {}, [])]))
    assert viewer.box("x").count() == 1
    viewer.run("await app.setStage(0)")
    assert viewer.page.locator(".box").count() == 0
    assert viewer.run("return app.tree.root.size.every(Number.isFinite)")


def test_every_stage_is_rebuilt_from_the_differences(viewer: Viewer) -> None:
    nodes = documents.resnet_nodes((2, 2, 2, 2))
    folded, _ = documents.fused(nodes)
    shuffled = folded[:3] + folded[20:30] + folded[3:20] + folded[30:]
    kept = [nodes, folded, documents.observed(folded), shuffled, nodes[5:40], nodes[::-1], []]
    stages: list[documents.Stage] = [(f"s{i}", list_, {}, []) for i, list_ in enumerate(kept[:-1])]
    viewer.open(documents.document("t", stages))
    for i, expected in enumerate(kept[:-1]):
        assert viewer.run("return app.model.graphs[argument].nodes.map((n) => n.name)", i) == [n["name"] for n in expected]


def test_a_click_opens_and_closes_a_box(viewer: Viewer) -> None:
    viewer.open(documents.small())
    viewer.run("await app.setDepth(1)")
    before = viewer.page.locator(".box").count()
    knob = viewer.page.locator('.box[data-id="m:layer1"] .knob')
    knob.click()
    viewer.run("")
    assert viewer.page.locator('.box.open[data-id="m:layer1"]').count() == 1
    assert viewer.page.locator(".box").count() > before
    viewer.page.locator('.box[data-id="m:layer1"] > .knob').click()
    viewer.run("")
    assert viewer.page.locator(".box").count() == before


def test_opening_a_box_lays_out_itself_and_its_ancestors_only(viewer: Viewer) -> None:
    viewer.open(documents.small())
    asked = viewer.run(
        """
        await app.setDepth(1);
        let asked = 0;
        const layOut = app.layouter.layOut;
        app.layouter.layOut = (input) => { asked++; return layOut.call(app.layouter, input); };
        app.layouter.known.clear();
        await app.refresh();
        const all = asked;
        asked = 0;
        await app.toggle(app.tree.byId.get("m:layer3"));
        return [all, asked];
        """
    )
    assert asked == [1, 2]


def test_a_closed_box_sums_what_it_holds(viewer: Viewer) -> None:
    document = documents.small()
    viewer.open(document)
    nodes = viewer.run("return app.model.graphs[app.model.last].nodes")
    inside = [n for n in nodes if n.get("path", "").startswith("layer2.") and n["kind"] != "attr"]
    viewer.run('await app.jump("m:layer2")')
    text = " ".join(viewer.texts("#details dd"))
    worst = min(document["numerics"][n["name"]]["sqnr"] for n in inside)
    assert f"{sum(n.get('params', 0) for n in inside):,}" in text
    assert f"{worst:.4g} dB" in text
    assert str(len(inside)) in text


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ("op:max_pool2d", lambda n, _: n["op"] == "max_pool2d"),
        ("layer3.1", lambda n, _: "layer3.1" in n["name"] + n.get("path", "")),
        ("dtype:quint8 path:layer2", lambda n, _: n["dtype"] == "quint8" and "layer2" in n.get("path", "")),
        ("kind:float -op:relu", lambda n, _: n["kind"] == "float" and "relu" not in n["op"]),
        ("sqnr<20", lambda n, num: num.get("sqnr", 99) < 20),
        ("sat>0.01", lambda n, num: num.get("saturation", 0) > 0.01),
        ("macs>=1e8 params<40000", lambda n, _: n.get("macs", 0) >= 1e8 and n.get("params", 1e9) < 40000),
        ("energy=5", lambda n, num: num.get("energy") == 5),
        ("file:model.py nosuchword", lambda n, _: False),
    ],
)
def test_search_finds_what_the_query_says(viewer: Viewer, query: str, holds: Callable[[Any, Any], bool]) -> None:
    document = documents.small()
    viewer.open(document)
    numbers = {name: {**num, "energy": document["overlays"]["energy"].get(name)} for name, num in document["numerics"].items()}
    for name, value in document["overlays"]["energy"].items():
        numbers.setdefault(name, {"energy": value})
    nodes = viewer.run("return app.model.graphs[app.model.last].nodes")
    expected = [n["name"] for n in nodes if holds(n, numbers.get(n["name"], {}))]
    viewer.page.fill("#query", query)
    assert viewer.run("return app.panels.results.items.map((n) => n.name)") == expected
    assert (viewer.page.locator("#result-count").text_content() or "").startswith(f"{len(expected)} node")


def test_enter_in_the_search_goes_to_the_first_result(viewer: Viewer) -> None:
    viewer.open(documents.resnet(2000))
    assert viewer.box("layer3_20_conv2").count() == 0
    viewer.page.keyboard.press("/")
    viewer.page.keyboard.type("name:layer3_20_conv2")
    viewer.page.keyboard.press("Enter")
    viewer.run("")
    assert viewer.box("layer3_20_conv2").count() == 1
    assert "selected" in (viewer.box("layer3_20_conv2").get_attribute("class") or "")
    shown = viewer.box("layer3_20_conv2").bounding_box()
    assert shown and 0 < shown["x"] < 1440 and 0 < shown["y"] < 900


def test_stepping_through_passes_shows_what_each_did(viewer: Viewer) -> None:
    document = documents.small()
    viewer.open(document)
    viewer.run("await app.setStage(0)")
    viewer.page.locator("#canvas svg").first.focus()
    viewer.page.keyboard.press("]")  # canonicalize changed nothing and is passed over
    viewer.run("")
    assert "fuse" in (viewer.page.locator("#pass-name").text_content() or "")
    fuse = document["stages"][2]
    assert f"−{len(fuse['drop'])}" in "".join(viewer.texts("#pass-counts .tag"))
    assert f"↻{len(fuse['replaced'])}" in "".join(viewer.texts("#pass-counts .tag"))
    viewer.run('await app.jumpNode("layer1_0_conv1_fused")')
    fused, ghost = viewer.box("layer1_0_conv1_fused"), viewer.box("layer1_0_bn1")
    assert "replaced" in fused.get_attribute("class") and fused.locator(".badge text").text_content() == "↻"
    assert "removed ghost" in ghost.get_attribute("class") and ghost.locator(".badge text").text_content() == "−"
    assert viewer.page.locator("#diff .diff-row.removed").count() and viewer.page.locator("#diff .diff-row.added").count()
    viewer.page.keyboard.press("[")
    viewer.run("")
    assert "input" in (viewer.page.locator("#pass-name").text_content() or "")


def test_the_slider_reaches_unchanged_passes_when_they_are_shown(viewer: Viewer) -> None:
    viewer.open(documents.small())
    assert viewer.page.locator("#ticks .tick").count() < 11
    viewer.page.locator("#hide-same").uncheck()
    assert viewer.page.locator("#ticks .tick").count() == 11
    viewer.page.locator("#slider").fill("1")
    viewer.run("")
    assert "canonicalize" in (viewer.page.locator("#pass-name").text_content() or "")
    assert "no difference" in (viewer.page.locator("#changes-head").text_content() or "")


def test_any_two_passes_can_be_compared(viewer: Viewer) -> None:
    document = documents.small()
    viewer.open(document)
    viewer.page.select_option("#against", "0")
    viewer.run("")
    status = viewer.run("return [...app.difference.status]")
    first, last = ({n["name"] for n in viewer.run("return app.model.graphs[argument].nodes", i)} for i in (0, 10))
    kinds = dict(status)
    assert {n for n, kind in kinds.items() if kind == "removed"} == first - last
    assert {n for n, kind in kinds.items() if kind in ("added", "replaced")} == last - first
    assert kinds["layer1_0_conv1_fused"] == "replaced"  # through all passes in between
    lines = viewer.run("return app.panels.diff.items.filter(([sign]) => sign === '-').length")
    assert lines == sum(kind in ("removed", "changed") for kind in kinds.values())


@pytest.mark.parametrize("colour", ["kind", "dtype", "module", "sqnr", "own", "saturation", "ms", "o:energy"])
def test_colours_have_a_legend(viewer: Viewer, colour: str) -> None:
    viewer.open(documents.small())
    viewer.page.select_option("#colour", colour)
    viewer.run("")
    numeric = colour not in ("kind", "dtype", "module")
    assert viewer.page.locator("#legend .ramp").count() == numeric
    assert bool(viewer.page.locator("#legend .swatch").count()) != numeric
    fills = set(viewer.run("return [...document.querySelectorAll('.box .stripe')].map((r) => r.getAttribute('fill'))"))
    assert len(fills) > 1


def test_a_fixed_scale_makes_two_files_comparable(viewer: Viewer) -> None:
    viewer.open(documents.small(), "#c=sqnr")
    colour = "return app.painter.colour(30)"
    free = viewer.run(colour)
    viewer.page.locator("#legend input[type=checkbox]").check()
    viewer.run("")
    viewer.page.locator("#legend input[type=number]").first.fill("-100")
    viewer.page.locator("#legend input[type=number]").first.blur()
    viewer.run("")
    assert viewer.run("return app.state.domain")[0] == -100
    assert viewer.run(colour) != free


def test_a_click_on_a_node_tells_all_about_it(viewer: Viewer) -> None:
    document = documents.small()
    viewer.open(document)
    name = next(n for n in document["numerics"] if "act" in document["numerics"][n] and "conv" in n)
    viewer.run("await app.jumpNode(argument)", name)
    viewer.run("await app.select(null)")
    viewer.box(name).click()
    text = viewer.page.locator("#details").inner_text()
    number = document["numerics"][name]
    for word in (name, "quint8", "0.0184", "114", f"{number['sqnr']:.4g} dB", "model.py:", "INPUTS", "USERS", "PROVENANCE", "energy"):
        assert word in text, word
    assert viewer.page.locator("#details .plot").count() == 2
    assert viewer.page.locator("#details .plot").first.locator(".bin").count() == 64
    assert viewer.page.locator("#details .plot").first.locator(".clip").count() == 2
    assert viewer.page.locator("#details .plot").first.locator(".grid").count() == 1


def test_channel_scales_are_drawn_and_hidden_constants_are_reached(viewer: Viewer) -> None:
    viewer.open(documents.small())
    viewer.run('await app.jumpNode("layer1.0.conv1.weight")')
    assert viewer.page.locator("#constants").is_checked()
    assert viewer.page.locator("#details .spark").count() == 1
    assert "scale of 64 channels" in viewer.page.locator("#details").inner_text()


def test_why_float_and_the_links_of_a_node(viewer: Viewer) -> None:
    viewer.open(documents.small())
    viewer.run('await app.jumpNode("flatten")')
    assert "Why float: no int8 kernel" in viewer.page.locator("#details").inner_text()
    viewer.page.locator("#details .links .link", has_text="avgpool").first.click()
    viewer.run("")
    assert viewer.run("return app.state.selected") == "n:avgpool"
    assert "no-kernel" in viewer.page.locator("#details").inner_text()


def test_the_worst_nodes_stand_first(viewer: Viewer) -> None:
    document = documents.small()
    viewer.open(document)
    viewer.page.locator("#tab-worst").click()
    names = viewer.run("return app.panels.worst.items.map((r) => r.name)")
    numbers = document["numerics"]
    assert names == sorted(names, key=lambda n: numbers[n]["sqnr"]) and len(names) > 50
    viewer.page.locator("#worst .row").first.click()
    viewer.run("")
    assert viewer.run("return app.state.selected") == f"n:{names[0]}"
    viewer.page.locator("#worst-head button", has_text="sat.").click()
    by_saturation = viewer.run("return app.panels.worst.items.map((r) => r.saturation)")
    assert by_saturation == sorted(by_saturation, reverse=True)


def test_remarks_are_listed_and_lead_to_their_node(viewer: Viewer) -> None:
    viewer.open(documents.small())
    viewer.page.locator("#tab-remarks").click()
    viewer.page.locator("#remarks .row").nth(1).wait_for()  # the list is drawn when the browser comes to it
    assert viewer.page.locator("#remarks .row").count() == 2
    viewer.page.locator("#remarks .row").nth(1).click()
    viewer.run("")
    assert viewer.run("return app.state.selected") == "n:avgpool"


def test_remarks_of_one_text_are_one_row_that_goes_to_each_of_their_places(viewer: Viewer) -> None:
    document = documents.small()
    names = [node["name"] for node in document["stages"][0]["put"]][2:5]
    document["stages"][0]["remarks"] = [{"pass": "fuse", "code": "kept", "text": "not fused", "node": name} for name in names]
    viewer.open(document)
    viewer.page.locator("#tab-remarks").click()
    row = viewer.page.locator("#remarks .row", has_text="not fused")
    row.wait_for()
    assert row.count() == 1 and "×3" in (row.text_content() or "")
    for name in [*names, names[0]]:
        row.click()
        assert viewer.run("return app.state.selected") == f"n:{name}"


PLACES = """
    const boxes = app.canvas.seen.filter((box) => !box.open).map(({ x, y, size: [w, h], id }) => ({ x, y, w, h, id }));
    return { boxes, size: app.tree.root.size };
"""


def overlapping(boxes: list[dict[str, float]]) -> list[tuple[Any, Any]]:
    apart = lambda a, b: a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]  # noqa: E731
    return [(a["id"], b["id"]) for i, a in enumerate(boxes) for b in boxes[:i] if not apart(a, b)]


@pytest.mark.parametrize("name", ["resnet-2000", "densenet-201", "flat-2000", "hostile"])
def test_a_tall_graph_stands_in_columns_and_no_box_lies_on_another(viewer: Viewer, name: str) -> None:
    viewer.open(MADE[name]())
    cut = viewer.run(PLACES)
    whole = viewer.run("await app.setColumns(false);" + PLACES)
    assert {box["id"] for box in cut["boxes"]} == {box["id"] for box in whole["boxes"]}
    assert not overlapping(cut["boxes"])
    width, height = whole["size"]
    if height > 3 * max(width, 900):
        assert cut["size"][1] < 0.7 * height and cut["size"][0] > 1.5 * width
    inside = viewer.run("""
        const [w, h] = app.tree.root.size;
        return app.canvas.routes.every(({ extent: [a, b, c, d] }) => a >= -30 && b >= -30 && c <= w + 30 && d <= h + 30);
    """)
    assert inside


def test_edges_in_columns_end_at_their_boxes(viewer: Viewer) -> None:
    viewer.open(documents.resnet(2000))
    assert viewer.run("""
        const off = [];
        for (const box of app.canvas.seen.filter((b) => b.open)) for (const line of box.lines) {
            const { d } = app.canvas.route(box, line), at = d.match(/-?[0-9.]+/g).map(Number);
            const to = box.kids[line.edge.to], from = box.kids[line.edge.from];
            const end = d.match(/V(-?[0-9.]+)$/) ? Number(d.match(/V(-?[0-9.]+)$/)[1]) : at.at(-1);
            if (to && Math.abs(end - to.y) > 4) off.push([to.id, end, to.y]);
            if (from && Math.abs(at[1] - from.y - from.size[1]) > 4) off.push([from.id, at[1]]);
        }
        return off;
    """) == []  # fmt: skip


def test_ops_are_counted_as_everywhere(viewer: Viewer) -> None:
    """Neither roundings nor steps of ops, nor what is packed, are ops."""
    document = json.loads(json.dumps(documents.small()))
    kinds = ("float", "quantize", "int8", "dequantize", "int8", "pack", "other")
    nodes = [node for node in document["stages"][0]["put"] if node["kind"] not in ("input", "output", "attr")]
    for number, node in enumerate(nodes):
        node["kind"] = kinds[number % len(kinds)]
        if number % len(kinds) == 4:
            node["step_of"] = nodes[number - 2]["name"]
    document["stages"] = document["stages"][:1]
    viewer.open(document)
    expected = sum(map(is_op, document["stages"][0]["put"]))
    assert viewer.run("return app.tree.root.sums.ops") == expected > 0
    assert viewer.page.locator("#details dd, #details td").all_text_contents()[0] == str(expected)


def test_a_narrow_page_has_one_column(browser: Any, tmp_path: Path) -> None:
    narrow = Viewer(browser, tmp_path, viewport={"width": 420, "height": 800})
    narrow.open(documents.resnet(2000))
    assert narrow.run("return app.layouter.columns") is False
    for title in ("Net", "A model whose name is long"):
        reach = """
            document.querySelector("header h1").textContent = arguments[0];
            const shown = [...document.querySelectorAll("header *, footer *")].filter((one) => one.checkVisibility());
            return Math.max(document.documentElement.scrollWidth, ...shown.map((one) => one.getBoundingClientRect().right));
        """
        assert narrow.run(reach.replace("arguments[0]", json.dumps(title))) <= 420
    assert narrow.page.locator("#legend > button").first.is_hidden()
    narrow.page.locator("#legend > b").click()
    assert narrow.page.locator("#legend > button").first.is_visible()
    assert not narrow.errors
    narrow.context.close()


def test_the_report_of_a_search_is_as_wide_as_the_window(browser: Any, tmp_path: Path) -> None:
    """Its table scrolls for itself on a narrow screen, and is in sight as a whole at 800 pixels."""
    score = Score(27.2, 0.7, 0.938)
    rows = [
        Row("reconstruct", score, 33.84, 1.0, 5_050_000, 11.2, "given up: it takes about 30 s, and 4 s are left for it", chosen=True)
    ] * 3
    tuned = SimpleNamespace(
        table=tuple(rows), notes=lambda: ["a note"], rich=lambda: table_of(rows, "reconstruct: the most accurate one", 4)
    )
    (tmp_path / "report.html").write_text(rendered(tuned), encoding="utf-8")
    widths = "() => [document.documentElement.scrollWidth, document.querySelector('table').scrollWidth]"
    for width, fits in ((420, False), (800, True), (1440, True)):
        page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
        page.goto((tmp_path / "report.html").as_uri())
        whole, table = page.evaluate(widths)
        assert whole <= width and (table <= width) == fits
        page.context.close()


def test_a_search_dims_what_it_does_not_find(viewer: Viewer) -> None:
    viewer.open(documents.small())
    viewer.page.locator("#query").fill("op:conv2d")
    opacity = """
        const boxes = [...app.canvas.kept].filter(([key]) => key.node);
        return Object.fromEntries(boxes.map(([key, { element }]) => [key.node.op, +getComputedStyle(element).opacity]));
    """
    seen = viewer.run(opacity)
    assert {value for op, value in seen.items() if "conv2d" in op} == {1}
    assert all(value < 0.5 for op, value in seen.items() if "conv2d" not in op) and len(seen) > 2
    viewer.page.locator("#query").fill("")
    assert set(viewer.run(opacity).values()) == {1}


@pytest.mark.parametrize(
    ("query", "said"),
    [("sqnr<", "sqnr< is not finished: it wants a number"), ("op:", "op: is not finished: it wants a text"), ("sqnr<x", "x is no number"),
     ("wibble<3", "no node has a number called wibble"), ("opp:conv", "no opp: there is name, op,")],
)  # fmt: skip
def test_a_filter_that_cannot_filter_says_so(viewer: Viewer, query: str, said: str) -> None:
    document = documents.resnet(60)
    document["numerics"] = {document["stages"][0]["put"][3]["name"]: {"sqnr": 30.0}}
    viewer.open(document)
    viewer.page.locator("#query").fill(query)
    assert said in (viewer.page.locator("#result-count").text_content() or "")
    viewer.page.locator("#query").fill("sqnr<40 -op:relu")
    assert (viewer.page.locator("#result-count").text_content() or "").startswith("1 node")


def test_the_overview_shows_where_one_is_and_goes_there(viewer: Viewer) -> None:
    viewer.open(documents.resnet(2000))
    viewer.run("app.canvas.fit(); await new Promise(requestAnimationFrame)")
    assert viewer.page.locator("#minimap").is_hidden()  # all is in sight
    viewer.run("app.canvas.zoom(8); await new Promise((r) => setTimeout(r, 100))")
    assert viewer.page.locator("#minimap").is_visible()
    before = viewer.run("return { ...app.canvas.view }")
    viewer.page.locator("#minimap").click(position={"x": 12, "y": 12})
    after = viewer.run("await new Promise((r) => setTimeout(r, 100)); return { ...app.canvas.view }")
    assert after["k"] == before["k"] and after["x"] > before["x"] and after["y"] > before["y"]  # to the upper left corner


def test_a_step_goes_to_what_changed(viewer: Viewer) -> None:
    viewer.open(documents.resnet(2000, passes=True))
    seen = viewer.run("""
        app.canvas.view = { x: -1e5, y: -1e5, k: 1 };
        const found = [];
        for (let i = 1; i < app.model.stages.length; i++) {
            app.canvas.view = { x: -1e5, y: -1e5, k: 1 };
            await app.setStage(i, true);
            const changed = app.canvas.seen.filter((b) => b.node ? app.tree.status.has(b.node.name) : false);
            if (changed.length) found.push(changed.some((b) => app.canvas.sees(b)) || app.canvas.view.x > -9e4);
        }
        return found;
    """)
    assert seen and all(seen)


def test_panels_can_be_made_wider_and_the_address_keeps_that(viewer: Viewer) -> None:
    viewer.open(documents.small())
    width = lambda: viewer.run("return document.getElementById('left').offsetWidth")  # noqa: E731
    narrow = width()
    grip = viewer.page.locator(".grip.left")
    grip.focus()
    grip.press("ArrowRight")
    assert width() == narrow + 24
    assert "lw=" in viewer.run("await new Promise((r) => setTimeout(r, 400)); return location.hash")
    viewer.page.locator(".grip.left").dblclick()
    assert width() == narrow


def test_exports(viewer: Viewer, tmp_path: Path) -> None:
    document = documents.small()
    viewer.open(document)
    made = {}
    for kind in ("svg", "png", "json"):
        viewer.page.locator("#export summary").click()
        with viewer.page.expect_download() as waiting:
            viewer.page.locator(f'[data-export="{kind}"]').click()
        made[kind] = tmp_path / f"out.{kind}"
        waiting.value.save_as(made[kind])
        assert waiting.value.suggested_filename == f"ResNet50-10.{kind}"
    root = ElementTree.parse(made["svg"]).getroot()
    assert {t.text for t in root.iter("{http://www.w3.org/2000/svg}text")} >= {"placeholder", "layer1"}
    assert made["png"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and made["png"].stat().st_size > 10_000
    assert json.loads(made["json"].read_text(encoding="utf-8")) == document


def test_the_ir_line_can_be_copied(browser: Any, tmp_path: Path) -> None:
    viewer = Viewer(browser, tmp_path, permissions=["clipboard-read", "clipboard-write"]).open(documents.small())
    viewer.run('await app.jumpNode("flatten")')
    viewer.page.locator("#details button", has_text="Copy IR line").click()
    assert "%flatten" in viewer.page.evaluate("() => navigator.clipboard.readText()")
    viewer.context.close()


def test_the_tree_answers_the_keys(viewer: Viewer) -> None:
    viewer.open(documents.small())
    viewer.run("await app.setDepth(1)")
    tree, press = viewer.page.locator("#tree"), viewer.page.keyboard.press
    tree.focus()
    index = viewer.run('return app.panels.tree.items.findIndex((b) => b.id === "m:layer1")')
    for _ in range(index):
        press("ArrowDown")
    row = viewer.page.locator("#tree .row.active")
    assert row.get_attribute("aria-expanded") == "false" and row.get_attribute("aria-level") == "1"
    press("ArrowRight")
    viewer.run("")
    assert row.get_attribute("aria-expanded") == "true"
    press("ArrowRight")
    press("Enter")
    viewer.run("")
    assert viewer.run("return app.state.selected") == "m:layer1.0"
    press("ArrowLeft")
    press("ArrowLeft")
    viewer.run("")
    assert row.get_attribute("aria-expanded") == "false"
    assert tree.get_attribute("aria-activedescendant") == row.get_attribute("id")


def test_the_graph_answers_the_keys(viewer: Viewer) -> None:
    viewer.open(documents.small())
    viewer.run("await app.setDepth(1)")
    viewer.page.locator("svg.canvas").focus()
    chosen = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        viewer.page.keyboard.press(key)
        chosen.append(viewer.run("return app.state.selected"))
    assert chosen == ["n:x", "n:conv1_fused", "n:maxpool", "m:layer1", "n:maxpool"]
    viewer.page.keyboard.press("ArrowDown")
    viewer.page.keyboard.press("Enter")
    viewer.run("")
    assert viewer.page.locator('.box.open[data-id="m:layer1"]').count() == 1
    viewer.page.keyboard.press("?")
    assert viewer.page.locator("#help").is_visible()
    viewer.page.keyboard.press("Escape")
    assert not viewer.page.locator("#help").is_visible()
    viewer.page.keyboard.press("Escape")
    assert viewer.run("return app.state.selected") == ""


def test_the_breadcrumb_leads_up(viewer: Viewer) -> None:
    viewer.open(documents.small())
    viewer.run('await app.jumpNode("layer1_0_conv2_fused")')
    viewer.page.locator("#crumbs button", has_text="layer1").first.click()
    viewer.run("")
    assert viewer.run("return app.state.selected") == "m:layer1"


def test_the_address_keeps_what_is_seen(viewer: Viewer) -> None:
    from playwright.sync_api import expect  # absent where the browser is: then `viewer` has skipped

    document = documents.small()
    viewer.open(document)
    viewer.run(
        """
        await app.setStage(7, true);
        await app.jumpNode("layer2_1_conv1_fused");
        await app.setColour("sqnr");
        await app.setTheme();
        app.search("op:conv2d");
        """
    )
    keep = """
        const { stage, against, selected, colour, query, theme } = app.state;
        return [stage, against, selected, colour, query, theme, app.canvas.seen.map((b) => b.id)];
    """
    state = viewer.run(keep)
    expect(viewer.page).to_have_url(re.compile("op%3Aconv2d"), timeout=WAITING * 1000)  # it follows after a while; the page forbids eval
    address = viewer.page.url
    viewer.page.goto("about:blank")
    viewer.requests.clear()
    viewer.page.goto(address)
    viewer.page.wait_for_selector("body.ready")
    assert viewer.run(keep) == state


@pytest.mark.parametrize("state", ["#s=99&c=nothing&a=x&n=%E0%A4%A&o=%25", "#v=NaN,1,2", "#d=-5", "#m=a,b&c=sqnr", "#l=nosuch&r=x"])
def test_a_damaged_address_opens_all_the_same(viewer: Viewer, state: str) -> None:
    viewer.open(documents.small((1, 1, 1, 1)), state)
    assert viewer.page.locator(".box").count() > 3


def test_only_what_is_near_the_view_is_drawn(viewer: Viewer) -> None:
    """A browser lays out all elements of an SVG, seen or not: two thousand boxes would be slow."""
    viewer.open(documents.resnet(2000))
    viewer.run("app.state.fold = false; app.rebuild(); await app.setDepth(4)")
    placed = viewer.run("return app.canvas.seen.length")
    names = "return [...document.querySelectorAll('.box')].map((b) => b.dataset.id)"
    first = viewer.run(names)
    assert placed > 1000 and len(first) < 400
    frame = "await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame);"
    viewer.run('app.canvas.show(app.tree.byId.get("n:fc"));' + frame)
    assert "n:fc" in viewer.run(names) and "n:fc" not in first
    viewer.run("app.canvas.fit();" + frame)
    assert len(viewer.run(names)) == placed - 1  # all but the root, which has no frame
    assert viewer.page.locator(".box text").count() == 0  # too far to read


def test_hostile_labels_execute_nothing(viewer: Viewer) -> None:
    document = documents.hostile()
    viewer.open(document)
    svg = viewer.run(
        """
        for (const stage of [0, 1]) {
          await app.setStage(stage, true);
          for (const node of app.model.graphs[stage].nodes) await app.jumpNode(node.name);
        }
        for (const colouring of app.colourings) await app.setColour(colouring.id);
        for (const tab of ["tree", "results", "worst", "remarks"]) app.showTab("left", tab);
        for (const node of app.tree.graph.nodes.slice(0, 20)) app.search(node.op);
        app.search("");
        await app.setDepth(9);
        window.qcompilerSvg = null;
        const create = URL.createObjectURL;
        let text;
        URL.createObjectURL = (blob) => { text = blob.text(); return create.call(URL, blob); };
        app.export("svg");
        URL.createObjectURL = create;
        return await text;
        """
    )
    assert viewer.page.evaluate("() => typeof window.pwned") == "undefined"
    assert viewer.page.locator("img, iframe, math").count() == 0
    assert viewer.page.locator("script").count() == 3
    names = {e.tag.split("}")[1] for e in ElementTree.fromstring(svg).iter()}
    assert names <= {"svg", "g", "rect", "path", "text", "title", "circle", "defs", "marker"}
    assert len(documents.HOSTILE) >= 50


def test_the_policy_forbids_foreign_scripts_and_the_network(browser: Any, tmp_path: Path) -> None:
    viewer = Viewer(browser, tmp_path).open(documents.small((1, 1, 1, 1)))
    tried = viewer.page.evaluate(
        """async () => {
          const script = document.createElement("script");
          script.textContent = "window.pwned = 1";
          document.body.append(script);
          const button = document.createElement("button");
          button.setAttribute("onclick", "window.pwned = 2");
          button.click();
          const fetched = await fetch("data:text/plain,x").then(() => "fetched", () => "refused");
          return [typeof window.pwned, fetched];
        }"""
    )
    assert tried == ["undefined", "refused"]
    viewer.context.close()


@pytest.mark.parametrize("broken", ["none", "silent", "failing"])
def test_without_a_layout_worker_boxes_stand_in_a_column(browser: Any, tmp_path: Path, broken: str) -> None:
    """No worker at all, one that never answers, one that fails: the graph is shown all the same."""
    viewer = Viewer(browser, tmp_path)
    scripts = {
        "none": "window.Worker = function () { throw new Error('forbidden'); };",
        "silent": "window.Worker = class { postMessage() {} terminate() {} };",
        "failing": "window.Worker = class { postMessage() { setTimeout(() => this.onerror()); } terminate() {} };",
    }
    quick = "const wait = window.setTimeout; window.setTimeout = (act, ms, ...rest) => wait(act, ms === 5000 ? 50 : ms, ...rest);"
    viewer.page.add_init_script(scripts[broken] + quick)
    viewer.open(documents.small())
    viewer.run('await app.jumpNode("layer1_0_conv2_fused")')
    assert viewer.box("layer1_0_conv2_fused").count() == 1
    column = viewer.run('return app.tree.byId.get("m:layer1.0").kids.map((k) => k.x + k.size[0] / 2)')
    assert len(set(column)) == 1 and len(column) > 4
    viewer.context.close()


def test_edges_too_long_to_draw_end_in_labels(viewer: Viewer) -> None:
    viewer.open(documents.flat(2000))
    viewer.run('await app.jumpNode("n1200")')
    stub = viewer.page.locator(".stub text", has_text="→ n1237")
    assert stub.count() == 1
    viewer.run("app.canvas.show(app.tree.byId.get('n:n1200'))")
    stub.dispatch_event("click")
    viewer.run("")
    assert viewer.run("return app.state.selected") == "n:n1237"


def test_alike_blocks_are_folded_and_can_be_unfolded(viewer: Viewer) -> None:
    viewer.open(documents.densenet())
    viewer.run('await app.jump("r:m:features.denseblock3.denselayer1")')
    assert "×48" in viewer.texts(".box text")
    viewer.page.locator("#fold").uncheck()
    viewer.run('await app.jump("m:features.denseblock3.denselayer1")')
    assert "×48" not in viewer.texts(".box text")


def test_a_sandboxed_frame_shows_it_as_well(browser: Any, tmp_path: Path) -> None:
    """As a notebook does: no origin, no address, no storage."""
    viewer = Viewer(browser, tmp_path)
    viewer.page.set_content('<iframe id="f" sandbox="allow-scripts" width="1000" height="700"></iframe>')
    viewer.page.evaluate("(html) => { document.getElementById('f').srcdoc = html; }", render(documents.small()))
    frame = viewer.page.frame_locator("#f")
    frame.locator("body.ready").wait_for()
    frame.locator("#next").wait_for()
    frame.locator("#previous").click()
    frame.locator(".box.changed, .marks .changed").first.wait_for()
    assert not viewer.errors
    viewer.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_button(browser: Any, tmp_path: Path, scheme: str) -> None:
    viewer = Viewer(browser, tmp_path, color_scheme=scheme).open(documents.small((1, 1, 1, 1)))
    light = "return getComputedStyle(document.body).backgroundColor === 'rgb(245, 246, 248)'"
    assert viewer.run(light) == (scheme == "light")
    viewer.page.locator("#theme").click()
    viewer.run("")
    assert viewer.run(light) != (scheme == "light")
    viewer.context.close()


def test_a_narrow_window_slides_the_panels_in(browser: Any, tmp_path: Path) -> None:
    viewer = Viewer(browser, tmp_path, viewport={"width": 700, "height": 900}).open(documents.small())
    assert viewer.run("return document.documentElement.scrollWidth") <= 700
    assert not viewer.page.locator("#tree").is_visible() and not viewer.page.locator("#details").is_visible()
    viewer.page.locator("#show-left").click()
    assert viewer.page.locator("#tree").is_visible()
    viewer.page.locator("#tree .row").nth(1).click()
    viewer.run("")
    viewer.page.keyboard.press("Escape")
    viewer.box("maxpool").click()
    assert viewer.page.locator("#details").is_visible()
    viewer.context.close()


def test_everything_that_can_be_used_has_a_name(viewer: Viewer) -> None:
    viewer.open(documents.small())
    nameless = viewer.run(
        """
        const named = (e) => e.getAttribute("aria-label") || e.textContent.trim() || e.closest("label") || e.labels?.length;
        const usable = document.querySelectorAll("button, select, input, [role=tree], [role=listbox], [role=tablist], .box");
        return [...usable].filter((e) => !named(e)).map((e) => e.outerHTML);
        """
    )
    assert nameless == []
    assert viewer.page.locator("#tree [role=treeitem][aria-level][aria-posinset][aria-setsize]").count() > 5


@pytest.mark.parametrize("name", ["resnet-10000", "flat-10000"])
def test_ten_thousand_nodes_open(viewer: Viewer, name: str) -> None:
    """Seconds are measured by tests/page_speed.py; here only that it opens and answers."""
    viewer.open(documents.resnet(10_000) if name.startswith("resnet") else documents.flat(10_000))
    assert 1 <= viewer.run("return app.canvas.seen.filter((b) => !b.open).length") <= 60
    last = viewer.run("return app.model.graphs[0].nodes.at(-2).name")
    viewer.run("await app.jumpNode(argument)", last)
    assert viewer.box(last).count() == 1
