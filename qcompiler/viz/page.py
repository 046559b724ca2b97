"""The interactive page: one HTML file that opens from disk and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from qcompiler.errors import ConfigError
from qcompiler.viz import colors

FORMAT, VERSION = "qcompiler-graph", 1
# In the order in which they stand in the page; they share one scope.
SCRIPTS = (
    *("dom", "model", "tree", "columns", "layout", "colour", "search", "state", "list", "draw", "minimap", "canvas", "plots"),
    *("details", "panels", "grips", "export", "controls", "app"),
)


class HasData(Protocol):
    """A graph document, see qcompiler/debug/document.py."""

    def to_data(self) -> dict[str, object]: ...


def render(document: HasData | Mapping[str, object]) -> str:
    """The page of a graph document as one HTML text; the same document gives the same bytes."""
    data = document if isinstance(document, Mapping) else document.to_data()
    _check(data)
    parts = {
        "TITLE": html.escape(str(data.get("title", "graph"))),
        "STYLE": _style(),
        "SCRIPT": _script(),
        "WORKER": _worker(),
        "DOCUMENT": pack(data),
        "CSP": _policy(),
    }
    # One pass over the template: no inserted text is looked at again.
    return re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], _asset("page.html"))


def pack(data: Mapping[str, object]) -> str:
    """The document as zlib in base64: small, and free of every sign that means something in HTML."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")


def _check(data: Mapping[str, Any]) -> None:
    found = (data.get("format"), data.get("version"))
    if found != (FORMAT, VERSION):
        raise ConfigError(
            f"the page shows documents of format {FORMAT}, version {VERSION}; this one is {found[0]}, version {found[1]}",
            code="document-version",
            hint="make the document and the page with the same qcompiler",
        )
    if not data.get("stages"):
        raise ConfigError("the document holds no stage", code="not-a-document", hint="make it from a traced or compiled model")


@cache
def _asset(name: str) -> str:
    return files("qcompiler.viz").joinpath("static", name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    return colors.style() + _asset("style.css")


@cache
def _script() -> str:
    return '"use strict";\n(() => {\n' + colors.script() + "\n".join(_asset(f"{name}.js") for name in SCRIPTS) + "})();\n"


@cache
def _worker() -> str:
    """dagre with its licence, then our part; a data block, from which the page makes the worker."""
    code = re.sub(r"\n//# sourceMappingURL=\S+", "", _asset("vendor/dagre.min.js"))
    return f"/*\ndagre 3.1.3\n{_asset('vendor/dagre.LICENSE.txt')}*/\n{code}\n{_asset('worker.js')}"


@cache
def _policy() -> str:
    """Nothing from outside, and no script or style but these two; blob: is the layout worker, data: the picture that is exported."""
    script, style = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (_script(), _style()))
    return f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; worker-src blob:; img-src data: blob:"
