"""The page for those who come from torch.quantization: what it sends them to is there, and no name of torch's is passed over."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
SUBMODULES = ("observer", "fake_quantize", "qconfig", "qconfig_mapping", "quantize", "fuse_modules", "stubs", "quantization_mappings",
              "fuser_method_mappings")  # fmt: skip
PACKAGES = ("intrinsic", "intrinsic.qat", "intrinsic.quantized", "qat", "quantized", "quantized.dynamic", "quantized.functional",
            "quantizable")  # fmt: skip
PAIRS = {
    "torch.quantization": "qcompiler.quantization",
    "torch.ao.quantization": "qcompiler.quantization",
    **{f"torch.ao.quantization.{name}": f"qcompiler.quantization.{name}" for name in SUBMODULES},
    **{f"torch.ao.nn.{name}": f"qcompiler.nn.{name}" for name in PACKAGES},
    "torch.ao.ns._numeric_suite": "qcompiler.quantization._numeric_suite",
    "torch.ao.ns._numeric_suite_fx": "qcompiler.quantization._numeric_suite_fx",
}


def resolved(name: str) -> Any:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(qcompiler(?:\.\w+)+)\.?`", PAGE))))
def test_a_name_that_the_page_gives_is_there(name: str) -> None:
    assert resolved(name) is not None


def own_names(module: ModuleType) -> list[str]:
    """What a module of torch gives out, without what it imports for itself."""
    listed = getattr(module, "__all__", None)
    if listed is not None and not module.__name__.endswith("_suite"):
        return list(listed)
    return [n for n, v in vars(module).items() if not n.startswith("_") and inspect.isroutine(v) | inspect.isclass(v)
            and v.__module__ == module.__name__]  # fmt: skip


@pytest.mark.parametrize("torchs, ours", PAIRS.items(), ids=PAIRS.keys())
def test_a_name_of_torchs_is_there_or_on_the_page(torchs: str, ours: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, found = importlib.import_module(torchs), importlib.import_module(ours)
    known = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
    missing = [n for n in own_names(theirs) if not hasattr(found, n) and n not in known]
    assert not [n for n in missing if not n.startswith("DEFAULT_")]  # "the other constants"


ROWS = [row.split(" | ") for row in PAGE.splitlines()]
NOT_SUPPLIED = [name for cells in ROWS if cells[1:2] == ["–"] for name in re.findall(r"`([\w.]+)`", cells[0])]


@pytest.mark.parametrize("name", NOT_SUPPLIED)
def test_what_the_page_says_is_missing_is_missing(name: str) -> None:
    leaf = name.rpartition(".")[2]
    found = [ours for ours in (*PAIRS.values(), "qcompiler.nn") if hasattr(importlib.import_module(ours), leaf)]
    assert not found, f"{name} is in {found}"
