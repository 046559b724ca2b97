"""Every promised name is there, says what it does, stands in the API reference and is used by a test or an example."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from qcompiler.ops.spec import Output
from qcompiler.ops.table import OPS

ROOT = Path(__file__).resolve().parent.parent
PROMISED = tomllib.loads((ROOT / "tests" / "contract_names.toml").read_text(encoding="utf-8"))
NAMES = [(module, name) for module, names in PROMISED["names"].items() for name in names]
OUTPUTS = {"own": (Output.OWN, Output.JOIN), "fixed": (Output.FIXED,), "same": (Output.SAME,), "tables": (Output.FLOAT,)}


def found(module: str, name: str) -> Any:
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value


@cache
def source(*folders: str) -> str:
    """The text of every file of Python in these folders, but for this one."""
    files = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")) if p != Path(__file__)]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def is_used(name: str, *folders: str) -> bool:
    """Whether the name stands in a test or an example, or there in f"ConvBn{dims}d"."""
    spelled = re.sub(r"[123](?=d$)", r"([123]|{\\w+})", name)
    return re.search(rf"(?<!\w){spelled}(?!\w)", source("tests", "examples", *folders)) is not None


@cache
def reference() -> dict[str, str]:
    """The API reference by module."""
    sections = re.split(r"^## ", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    return {section.partition("\n")[0]: section for section in sections}


@pytest.mark.parametrize("module, name", NAMES)
def test_a_promised_name(module: str, name: str) -> None:
    value = found(module, name)
    if "." not in name and not inspect.ismodule(value):
        assert name in importlib.import_module(module).__all__
    assert says_what_it_does(value), f"{module}.{name} has no docstring of its own"
    leaf, page = name.rpartition(".")[2], reference()
    described = f"{module}.{name}" in page or re.search(rf"`{leaf}\b|^### {leaf}$", page.get(module, ""), re.M)
    assert described, f"{module}.{name} is not in docs/api.md"
    assert is_used(leaf), f"no test or example uses {leaf}"


def says_what_it_does(value: Any) -> bool:
    """A docstring that is its own: nn.Module's is no description. A ready-made object is described by its class."""
    if inspect.isclass(value):
        return bool((value.__dict__.get("__doc__") or "").strip())
    doc = value.__doc__ if inspect.ismodule(value) or inspect.isroutine(value) else type(value).__doc__
    return bool((doc or "").strip()) and doc != nn.Module.__doc__


FROM_FLOAT = [
    (module, name)
    for module, name in NAMES
    if re.fullmatch(r"qcompiler\.nn\.(intrinsic\.)?(quantized|qat)(\.dynamic)?", module) and name[0].isupper() and "." not in name
    and name not in ("FloatFunctional", "FXFloatFunctional")
]  # fmt: skip


@pytest.mark.parametrize("module, name", FROM_FLOAT)
def test_a_module_can_be_made_of_its_float_form(module: str, name: str) -> None:
    assert callable(found(module, name).from_float)


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in PROMISED["ops"].items() for name in names if kind in OUTPUTS])
def test_a_promised_op(kind: str, name: str) -> None:
    assert OPS.rows[name].output in OUTPUTS[kind]
    assert f"| `{name}` |" in (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    modules = [f.cls.__name__ for f in OPS.rows[name].modules if not isinstance(f.cls, str)]
    assert any(is_used(word, "qcompiler/backends") for word in (name, *modules))  # the cases that test_kernels runs


@pytest.mark.parametrize("spelling, row", PROMISED["ops"]["spelled"].items())
def test_a_promised_spelling(spelling: str, row: str) -> None:
    lines = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8").splitlines()
    assert any(f"`{spelling}`" in line for line in lines if line.startswith(f"| `{row}` |"))
