"""What stands in pyproject.toml, and the tree as a whole."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import qcompiler

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".html", ".yml", ".yaml", ".cfg", ""}


def folders_on_disk() -> set[str]:
    """Dotted names of all folders with Python files, as they are installed; what lies behind a link counts once."""
    found = set()
    for folder, package in (("qcompiler", "qcompiler"), ("passes", "qcompiler.passes"), ("patterns", "qcompiler.patterns")):
        for file in (ROOT / folder).rglob("*.py"):
            inner = file.parent.relative_to(ROOT / folder).parts
            if folder != "qcompiler" or inner[:1] not in (("passes",), ("patterns",)):
                found.add(".".join((package, *inner)))
    return found


def test_packages_are_the_folders_on_disk() -> None:
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == folders_on_disk()


def test_every_package_has_an_init_file() -> None:
    mapping = PYPROJECT["tool"]["setuptools"]["package-dir"]
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        folder = mapping.get(package, package.replace(".", "/"))
        assert (ROOT / folder / "__init__.py").is_file(), folder


def test_data_files_are_installed() -> None:
    """What a package reads beside its code (measurements, schemas, the page's scripts) is named in package-data."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    named = {path for package, globs in patterns.items() for glob in globs for path in (ROOT / package.replace(".", "/")).glob(glob)}
    inside = [path for path in tracked() if path.relative_to(ROOT).parts[0] in ("qcompiler", "passes", "patterns")]
    assert not [path for path in inside if path.suffix != ".py" and not path.is_symlink() and path not in named]


@pytest.mark.parametrize("name", ["passes", "patterns"])
def test_the_links_are_relative(name: str) -> None:
    link = ROOT / "qcompiler" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"
    assert importlib.import_module(f"qcompiler.{name}").__name__ == f"qcompiler.{name}"


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:  # not a checkout: an sdist
        pytest.skip("needs git")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def offences(pattern: str) -> list[str]:
    """The places in the tracked text files that match, each with what its first group holds."""
    found = []
    for path in tracked():
        if path.suffix in TEXT and path != Path(__file__) and path.is_file() and not path.is_symlink():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if not line.startswith("#!"):
                    found += [f"{path.relative_to(ROOT)}:{number}: {hit}" for hit in re.findall(pattern, line)]
    return found


def test_the_tree_names_no_path_of_one_machine() -> None:
    assert not offences(r"(?<![\w./~<>-])(/(?:home|root|work|Users|mnt|tmp|opt|usr)/[\w.-]+)")


def test_links_lead_to_known_hosts_only() -> None:
    """A new host is added here on purpose; a package registry or a private server is none."""
    known = {"github.com", "keepachangelog.com", "arxiv.org", "docs.pytorch.org", "www.w3.org", "json-schema.org"}
    assert not [o for o in offences(r"https?://([\w.-]+)") if o.rsplit(" ", 1)[1] not in known]


def test_the_entry_point_exists() -> None:
    module, _, name = PYPROJECT["project"]["scripts"]["qcompiler"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_changelog_knows_this_version() -> None:
    assert f"## {PYPROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_fit_the_declared_range() -> None:
    """The torch that is tested lies within what pyproject allows."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    torch_spec = next(d for d in PYPROJECT["project"]["dependencies"] if d.startswith("torch"))
    low, high = (tuple(map(int, v.split("."))) for v in re.findall(r"[\d.]+", torch_spec))
    assert low <= tuple(map(int, pins["torch"].split("."))) < (*high, 0)


def test_dir_shows_what_the_reference_describes() -> None:
    described = set(re.findall(r"^## qcompiler\.(\w+)", (ROOT / "docs" / "api.md").read_text(), re.M))
    assert set(dir(qcompiler)) == {*qcompiler.__all__, "__version__", "errors", *described}
    assert all(getattr(qcompiler, name) is not None for name in dir(qcompiler))
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        qcompiler.quantise  # noqa: B018


def test_an_import_takes_no_more_than_it_needs() -> None:
    """What takes long and not every process needs comes when it is asked for: a server that loads a module and runs it has none of it."""
    late = {"networkx", "torchvision", "typer", "onnx_ir", "torch._dynamo", "torch._inductor", "qcompiler.cli", "qcompiler.quantization"}
    code = f"import sys, qcompiler; print({late!r} & sys.modules.keys()); qcompiler.nn, qcompiler.quantization, qcompiler.viz"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
