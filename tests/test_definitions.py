"""A script that compiles where it stands, with no guard: a reproducer takes what the script defines and runs nothing else of it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.debug.definitions import definitions, globals_of
from qcompiler.debug.reproduce import script
from qcompiler.errors import ConfigError
from tests.children import WAITING

SCRIPT = """
import pathlib, sys
from dataclasses import dataclass
import torch, qcompiler
from torch import nn
from qcompiler.ir.types import Stage

with open(sys.argv[0] + ".runs", "a") as runs:
    runs.write("x")
LIMIT = 3
NAMES = []
NAMES.append("fails")
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()

def name_of():
    return NAMES[0]

@dataclass(frozen=True)
class Fails:
    name: str = name_of()
    stage: Stage = Stage.FUSED
    required: bool = True

    def run(self, gm, context):
        model = len(gm.graph.nodes) + LIMIT
        raise KeyError(f"found {model - LIMIT}")

try:
    qcompiler.quantize(model, [torch.randn(1, 3, 8, 8)], progress=False, passes=(Fails(),), debug="dumps")
except qcompiler.errors.PassError as error:
    print(error.reproducer)
"""


@pytest.mark.slow  # three processes that import torch
def test_a_script_without_a_guard_does_not_run_again(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text(SCRIPT)
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": WAITING, "env": settings}
    first = subprocess.run([sys.executable, str(file)], check=True, **run)  # type: ignore[call-overload]
    path = first.stdout.strip()
    again = subprocess.run([sys.executable, path], **run)  # type: ignore[call-overload]
    assert again.returncode == 1 and "PassError" in again.stderr and "KeyError: 'found " in again.stderr
    assert (tmp_path / "user.py.runs").read_text() == "x"  # the script itself ran once
    reduced = subprocess.run([sys.executable, path, "--reduce"], check=True, **run)  # type: ignore[call-overload]
    assert "passes" in reduced.stdout and (tmp_path / "user.py.runs").read_text() == "x"


KEPT = {
    "a class and what its methods read": ("A = 1\nB = 2\nclass C:\n    def f(self):\n        B = A\n        return B\n", {"C"}, [1, 3]),
    "a base, a decorator, a default": (
        "import d, e, f\nZ = 1\nclass B(e.E): pass\n@d.d\nclass C(B):\n    x: int = f.f\n",
        {"C"},
        [1, 3, 4],
    ),
    "local variables are not needed": ("x = run()\ndef f(x):\n    y = x\n    return y\n", {"f"}, [2]),
    "calls of what is needed": ("T = {}\nT.update(a=1)\nprint(T)\nT['b'] = 2\nT2 = 3\ndef f(): return T\n", {"f"}, [1, 2, 4, 6]),
    "attributes of modules": ("import torch\ntorch.manual_seed(0)\ntorch.x.y = 1\ndef f(): return torch\n", {"f"}, [1, 3, 4]),
    "either of two": ("try:\n    import a as m\nexcept ImportError:\n    m = None\nrun()\ndef f(): return m\n", {"f"}, [1, 6]),
    "all names": ("from torch import *\nimport os\nclass C(Module): pass\n", {"C"}, [1, 3]),
    "twice": ("x = 1\nx = x + 1\nx += 1\ndef f(): return x\n", {"f"}, [1, 2, 3, 4]),
    "a comprehension's own": ("i = run()\nL = [i for i in range(3)]\n", {"L"}, [2]),
    "unpacked, walrus, annotated": ("a, *b = run()\n(c := 3)\nd: int = 2\ne = run()\n", {"b", "c", "d"}, [1, 2, 3]),
    "a loop that binds": ("for k in (1, 2):\n    v = k\nwhile run():\n    pass\n", {"v"}, [1]),
    "global declared": ("n = 0\ndef f():\n    global n\n    n += 1\nf()\n", {"f"}, [1, 2]),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept(case: str) -> None:
    source, names, lines = KEPT[case]
    tree, missing = definitions(source, names)
    assert [min([s.lineno, *(d.lineno for d in getattr(s, "decorator_list", []))]) for s in tree.body] == lines
    assert not missing


def test_a_name_that_the_script_lacks_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "changed.py"
    file.write_text("class A: pass\n")
    with pytest.raises(ConfigError, match=r"changed.py defines no B at its top level"):
        script(str(file), "A", "B")


def test_globals_of_code() -> None:
    assert globals_of("def f(a):\n    return a + g(b for b in c)\n") == {"g", "c"}
    assert isinstance(definitions("", ())[0], ast.Module)
