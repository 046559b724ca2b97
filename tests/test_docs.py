"""The Python of the pages runs: each page's blocks one after the other, in one namespace, as a reader would type them."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qcompiler.backends.torch.kernels.table import TABLE
from tests.children import WAITING
from tests.test_native_export import build

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/quantized-tensors.md",
    "docs/quantized.md",
    "docs/static.md",
    "docs/eager.md",
    "docs/dynamic.md",
    "docs/qat.md",
    "docs/native.md",
    "docs/accuracy.md",
    "docs/onnx.md",
    "docs/torch-export.md",
    "docs/saved-files.md",
    "docs/deployment.md",
)
ALL = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])
MODELS = """
from torch import nn

class MyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 7, stride=8), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.pool(self.relu(self.bn(self.conv(x)))).flatten(1))

class MyTextModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0])
"""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")


def blocks(page: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every fenced block of Python."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text.count("\n", 0, found.start(1)) + 1, found.group(1)


@pytest.fixture
def kernel_table() -> Iterator[None]:
    """Takes out what a page registers."""
    known = dict(TABLE)
    yield
    for op in [op for op in TABLE if op not in known]:
        del TABLE[op]


@pytest.mark.usefixtures("kernel_table")
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch.load of quantized tensors warns of its own doing
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any("export_onnx" in code for _, code in blocks(page)):
        pytest.importorskip("onnx_ir")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    if page == "README.md":  # it begins with a model of the reader's
        exec(MODELS, names)
    runner, parser = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), doctest.DocTestParser()
    report: list[str] = []
    for line, code in blocks(page):
        if code.startswith(">>>"):
            test = parser.get_doctest(code, names, page, page, line - 1)
            runner.run(test, out=report.append, clear_globs=False)
            names = test.globs
        else:
            exec(compile("\n" * (line - 1) + code, page, "exec"), names)
    assert not report, "".join(report)
    if page == "docs/deployment.md" and shutil.which("g++"):  # its C++, against the header that its Python wrote
        (text,) = re.findall(r"^```\n(#include.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
        Path("main.cc").write_text(text)
        build(Path("small_c"), "model", "-shared", "-fPIC", "-Wl,-soname,program", main="")
        linked = ["small_c/program", "-Wl,-rpath,$ORIGIN/small_c", "-o", "run"]
        subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", "-Ismall_c", "main.cc", *linked], check=True, timeout=WAITING)
        subprocess.run([tmp_path / "run"], check=True, timeout=WAITING, cwd="small_c", env={})


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end in, as GitHub makes it of the heading's text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in re.findall(r"^#+ +(.+?) *$", text, re.M)}


@pytest.mark.parametrize("page", ALL)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target, anchor in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        found = (ROOT / page).parent / target if target else ROOT / page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


@pytest.mark.parametrize("page", ALL)
def test_lines_fit(page: str) -> None:
    """140 characters, but for tables and for the signatures of the API, which are made from the code."""
    if page != "docs/api.md":
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        assert not [number for number, line in enumerate(lines, 1) if len(line) > 140 and not line.startswith("|")]


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=WAITING, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
