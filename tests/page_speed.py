"""How fast the page is: `python -m tests.page_speed`. Prints figures beside their targets; measures, asserts nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from qcompiler.viz.page import render
from tests import documents
from tests.browser import chromium

EXPAND = """async () => {
  const page = window.qcompilerPage, times = [], boxes = [...new Set(page.tree.byId.values())].filter((b) => !b.node);
  const pick = boxes.filter((_, i) => i % Math.ceil(boxes.length / 40) === 0);
  for (const box of pick) {
    await page.jump(box.id);
    if (page.isOpen(box)) await page.toggle(box);
    const start = performance.now();
    await page.toggle(box);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b);
}"""
MOVE = """async () => {
  const { canvas } = window.qcompilerPage, svg = canvas.svg, at = { clientX: svg.clientWidth / 2 + 300, clientY: svg.clientHeight / 2 };
  const times = [];
  let last = await new Promise(requestAnimationFrame);
  for (let i = 0; i < 120; i++) {
    if (i % 2) svg.dispatchEvent(new WheelEvent("wheel", { ...at, deltaY: i % 40 < 20 ? -12 : 12, cancelable: true, bubbles: true }));
    else { canvas.view.x += i % 40 < 20 ? 9 : -9; canvas.later(); }
    const now = await new Promise(requestAnimationFrame);
    times.push(now - last);
    last = now;
  }
  return times.sort((a, b) => a - b);
}"""
VISIBLE = """() => {
  const { view, svg, seen } = window.qcompilerPage.canvas;
  return seen.filter((b) => !b.open && b.x * view.k + view.x < svg.clientWidth && (b.x + b.size[0]) * view.k + view.x > 0
    && b.y * view.k + view.y < svg.clientHeight && (b.y + b.size[1]) * view.k + view.y > 0).length;
}"""
OPENED = """() => {
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  return [paint ? paint.startTime : NaN, window.qcompilerReady];
}"""


def at(share: float, times: list[float]) -> float:
    return times[min(len(times) - 1, int(share * len(times)))]


def report(what: str, value: float, target: float, note: str = "") -> None:
    print(f"{what:44} {value:8.0f} ms   target {target:5.0f} ms   {'ok' if value <= target else 'MISSED'} {note}", flush=True)


def opened(browser: Any, folder: Path, name: str, document: dict[str, Any], target: float) -> Any:
    file = folder / f"{name}.html"
    file.write_text(render(document), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.add_init_script(
        "new MutationObserver((_, o) => { if (document.body?.classList.contains('ready')) { o.disconnect();"
        "requestAnimationFrame(() => { window.qcompilerReady = performance.now(); }); } })"
        ".observe(document, {subtree: true, attributes: true, childList: true});"
    )
    page.goto(file.as_uri())
    page.wait_for_selector("body.ready", timeout=60_000)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    paint, ready = page.evaluate(OPENED)
    report(f"{name}: graph drawn", ready, target, f"(first paint {paint:.0f} ms, {file.stat().st_size / 1024:.0f} KiB)")
    return page


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        folder = Path(temporary)
        for name, document in (("resnet-2000", documents.resnet(2000)), ("densenet-201", documents.densenet())):
            page = opened(browser, folder, name, document, 2000)
            times = page.evaluate(EXPAND)
            report(f"{name}: expand, p95 of {len(times)}", at(0.95, times), 500, f"(median {at(0.5, times):.0f}, worst {times[-1]:.0f})")
            page.evaluate("() => qcompilerPage.setDepth(9)")
            page.evaluate("() => qcompilerPage.drawn")
            page.evaluate("() => { qcompilerPage.canvas.fit(); }")
            times = page.evaluate(MOVE)
            report(f"{name}: frame, {page.evaluate(VISIBLE)} boxes in sight, p95", at(0.95, times), 50)
            page.close()
        page = opened(browser, folder, "wide-300", documents.wide(), 2000)
        page.evaluate("() => qcompilerPage.setDepth(9)")
        page.evaluate("() => qcompilerPage.drawn.then(() => qcompilerPage.canvas.fit())")
        times = page.evaluate(MOVE)
        report(f"wide-300: frame, {page.evaluate(VISIBLE)} boxes in sight, p95", at(0.95, times), 50)
        page.close()
        opened(browser, folder, "resnet-2000, 10 passes", documents.resnet(2000, passes=True), 2000).close()
        opened(browser, folder, "resnet-10000", documents.resnet(10_000), 5000).close()
        opened(browser, folder, "flat-10000", documents.flat(10_000), 5000).close()


if __name__ == "__main__":
    main()
