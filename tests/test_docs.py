"""The Python of the pages runs: each page's blocks one after the other, in one namespace, as a reader would type them."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/quantized-tensors.md", "docs/static.md", "docs/eager.md", "docs/dynamic.md", "docs/qat.md")
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
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)")


def blocks(page: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every fenced block of Python."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text.count("\n", 0, found.start(1)) + 1, found.group(1)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch.load of quantized tensors warns of its own doing
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]))
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [target for target, _ in LINK.findall(text) if not ((ROOT / page).parent / target).exists()]
    assert not missing


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
