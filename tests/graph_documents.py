"""Graph documents for the tests of drawings: of a small model, of any shape, and with names that try to break out."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler import calibrate, convert_fx, prepare_fx
from qcompiler.debug import Document, Recorder
from tests.flow import randn, randomized

X = randn(1, 3, 8, 8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Net(nn.Module):
    """Residual blocks, a block that is called twice, a float op, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(Block(), Block())
        self.again = Block()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.blocks(self.again(self.stem(x))))
        return self.head(torch.cumsum(y, 1).mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


@functools.cache
def compiled() -> tuple[Document, Any, Any]:
    """The document of all passes, the prepared module and the compiled one."""
    recorder = Recorder()
    prepared = prepare_fx(net(), None, (X,), debug=recorder)
    calibrate(prepared, [X])
    module = convert_fx(prepared, debug=recorder)
    return recorder.document(), prepared, module


def of_edges(names: list[str], edges: list[tuple[str, str]], **fields: Any) -> Document:
    """A document of float ops with these names and edges."""
    nodes = [{"name": n, "after": after, "in": [a for a, b in edges if b == n], "op": "relu", "kind": "float", **fields}
             for n, after in zip(names, [None, *names])]  # fmt: skip
    return Document.of_nodes("graph", "graph", nodes)


HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "</svg>", "</title>", "</style>",
    "]]>", "<![CDATA[", "<!--", "-->", "<!DOCTYPE x [<!ENTITY a 'b'>]>", "&lt;script&gt;", "&#60;b&#62;", "&amp;", "&undefined;",
    '"', "'", "''' + alert(1) + '''", '" onmouseover="alert(1)', '"];', '"]; n0 [label="', "\\", "\\\\", '\\"', "\\N \\G \\E",
    "\\u003cb\\u003e", "a\nb", "a\r\nb", "a\tb", "\x00", "\x1b[31mred\x1b[0m", "\x1b]8;;file:x\x07link\x1b]8;;\x07", "\x9b31m",
    "\u202etxt.exe",
    "\u2066\u2069",
    "\u200b\ufeff", "\u2028\u2029", "\ud800", "\uffff", "%%", "%%{init: {}}%%", "end", "subgraph x", "click n0 call alert()",
    "--> n0", "#quot;", "`**bold**`", "[bold red]x[/]", "{{7*7}}", "javascript:alert(1)", "../../etc", "é 漢字 😀", "x" * 3000,
)  # fmt: skip


class HostileNet(nn.Module):
    """A chain of linears, each under a hostile name that a module may have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for text in HOSTILE:
            if "." not in text and "\ud800" not in text:
                self.add_module(text, nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def hostile() -> Document:
    """A document with each hostile text as name, op, module path, class, arguments, file, reason and title."""
    nodes: list[dict[str, Any]] = []
    for i, text in enumerate(HOSTILE):
        path = f"{text}.inner" if i % 2 else text
        before = [nodes[-1]["name"]] if nodes else []
        nodes.append({"name": text, "after": before[0] if before else None, "in": before, "op": text, "kind": ("int8", "float")[i % 2],
                      "attrs": text, "path": path, "cls": text, "shape": [1, 2], "dtype": text, "file": text, "line": 1, "origin": [text],
                      "reason": text, "text": text, "macs": 5})  # fmt: skip
    return Document.of_nodes("".join(HOSTILE), HOSTILE[0], nodes)
