"""A headless Chromium for the tests of the page: the one that is installed; none is ever downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

REQUIRED = "QCOMPILER_REQUIRE_BROWSER"
ABSENT = "no Chromium (or playwright) found"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
)


def path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("QCOMPILER_BROWSER") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; skips the test where there is none, unless QCOMPILER_REQUIRE_BROWSER says that there must be one."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None  # type: ignore[assignment]
    executable = path()
    if sync_playwright is None or executable is None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{ABSENT}, and {REQUIRED} is set: install Debian's chromium and `pip install playwright`")
        pytest.skip(ABSENT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS.split())
        yield browser
        browser.close()
