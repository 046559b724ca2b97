"""The pictures of the page in docs/images, from the page that the demo writes: `python -m tests.page_pictures demo-out/graph.html`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tests.browser import chromium

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
FUSE = "t=dark&d=3&r=changes&a=before"  # state.js names these
WORST = "t=light&d=3&c=sqnr&l=worst"
SIZE = {"width": 1440, "height": 900}


def shown(browser: Any, page_file: Path, state: str, size: dict[str, int] = SIZE) -> Any:
    page = browser.new_context(viewport=size).new_page()
    page.goto(f"{page_file.resolve().as_uri()}#{state}")
    page.wait_for_selector("body.ready")
    return page


def take(page: Any, file: Path) -> None:
    page.wait_for_timeout(1500)  # the way to what was clicked is animated
    page.screenshot(path=file)
    print(file)


def take_fuse(browser: Any, page_file: Path, folder: Path) -> None:
    """The stage "fuse" against the one before it."""
    page = shown(browser, page_file, FUSE)
    stages = page.evaluate("() => window.qcompilerPage.model.stages.map((stage) => stage.name)")
    page = shown(browser, page_file, f"{FUSE}&s={stages.index('fuse')}")
    page.evaluate("() => { window.qcompilerPage.jumpNode('_blocks_7__bn1'); }")
    page.locator("[data-right=changes]").click()
    take(page, folder / "page-fuse.png")


def take_sqnr(browser: Any, page_file: Path, folder: Path) -> None:
    """The last stage by SQNR, with the worst value selected."""
    page = shown(browser, page_file, WORST)
    page.locator("#worst .worst-row").first.click()
    take(page, folder / "page-sqnr.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="the graph.html of `make demo`")
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args()
    with chromium() as browser:
        take_fuse(browser, options.page, options.out)
        take_sqnr(browser, options.page, options.out)


if __name__ == "__main__":
    main()
