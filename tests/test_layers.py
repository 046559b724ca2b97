"""Imports run one way, and nothing leans on torch.ao: checked on the syntax tree of every file of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent

# docs/design.md, "Rooms": a file may import from its own room and from rooms of the rows above.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("ambient", "vision", "files", "inputs", "ir"),
    ("ops", "observers"),
    ("stages", "fake_quantize", "trace", "executable"),
    ("config",),
    ("target", "qat"),
    ("compile",),
    ("patterns", "prepared", "frontend"),
    ("passes", "backends"),
    ("artifact", "nn", "choices"),
    ("debug",),
    ("viz", "workflow"),
    ("api",),
    ("__init__", "quantization"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
BANNED = ("torch.ao", "torch.quantization", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat", "torch.nn.quantizable")


def package_files() -> list[Path]:
    found = [p for folder in ("qcompiler", "passes", "patterns") for p in sorted((ROOT / folder).rglob("*.py"))]
    links = (ROOT / "qcompiler" / "passes", ROOT / "qcompiler" / "patterns")
    return [p for p in found if not any(link in p.parents for link in links)]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("passes", "patterns"):
        parts.insert(0, "qcompiler")
    return ".".join(parts)


def layer(module: str) -> str:
    """`qcompiler.backends.torch.passes.lower` -> `backends`; the package itself is `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.fixture(scope="module", autouse=True)
def _forget_trees() -> Iterator[None]:
    """A million objects that the garbage collector would walk in all tests that follow."""
    yield
    tree.cache_clear()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; `from a import b` gives both a.b and, by that, a."""
    here = module_name(path).split(".")[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("path", package_files(), ids=id_of)
def test_imports_run_one_way(path: Path) -> None:
    own = layer(module_name(path))
    assert own in LEVEL, f"{own} has no place in the layers: add it to docs/design.md and to LAYERS"
    for line, name in imports(path):
        if not under(name, "qcompiler"):
            continue
        other = layer(name)
        if other not in LEVEL:  # `from qcompiler import quantize`: a public name, which lives on top
            other = "__init__"
        place = f"{id_of(path)}:{line} imports {name}"
        assert own == other or LEVEL[other] < LEVEL[own], f"{place}: {own} does not stand above {other}"


@pytest.mark.parametrize("path", package_files(), ids=id_of)
def test_a_pass_imports_no_other_pass(path: Path) -> None:
    if path.parent.name != "passes" or path.name == "__init__.py":
        return
    for line, name in imports(path):
        assert not under(name, "qcompiler.passes"), f"{id_of(path)}:{line} imports {name}"


@pytest.mark.parametrize("path", package_files(), ids=id_of)
def test_nothing_imports_torch_ao(path: Path) -> None:
    for line, name in imports(path):
        assert not any(under(name, banned) for banned in BANNED), f"{id_of(path)}:{line} imports {name}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in BANNED, f"{id_of(path)}:{node.lineno} reads {ast.unparse(node)}"


def python_files() -> list[Path]:
    return package_files() + [p for folder in ("tests", "examples") for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", python_files(), ids=id_of)
def test_the_top_level_folders_are_imported_by_their_installed_names(path: Path) -> None:
    for line, name in imports(path):
        assert name.split(".")[0] not in ("passes", "patterns"), f"{id_of(path)}:{line}: import qcompiler.{name}"


def test_no_file_imports_itself_through_others() -> None:
    """Inside a room there are no circles either; imports for type checkers alone do not count."""
    files = {module_name(path): path for path in package_files()}
    graph = nx.DiGraph()
    for name, path in files.items():
        for_types = {id(n) for guard in ast.walk(tree(path)) if _is_for_types(guard) for n in ast.walk(guard)}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
                found = ({f"{node.module}.{alias.name}", node.module} & files.keys() for alias in node.names)
                graph.add_edges_from((name, max(targets, key=len)) for targets in found if targets)
    circles = [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1]
    assert not circles


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
