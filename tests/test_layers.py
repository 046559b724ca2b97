"""Imports run one way, and nothing leans on torch.ao: checked on the syntax tree of every file of the package."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parent.parent

# docs/design.md, "Rooms": a file may import from its own room and from rooms of the rows above.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "raw"),
    ("ambient", "fake_tensors", "vision", "files", "inputs", "ir", "timing"),
    ("ops", "observers"),
    ("stages", "fake_quantize", "trace", "executable"),
    ("config",),
    ("target", "qat"),
    ("compile",),
    ("patterns", "prepared", "frontend"),
    ("passes", "backends"),
    ("artifact", "nn", "choices", "export"),
    ("debug",),
    ("viz", "workflow"),
    ("tune",),
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
    parts = list(path.relative_to(ROOT).with_suffix("").parts) if path.is_relative_to(ROOT) else [path.stem]
    if parts[0] in ("passes", "patterns"):
        parts.insert(0, "qcompiler")
    return ".".join(parts)


def layer(module: str) -> str:
    """`qcompiler.backends.torch.passes.lower` -> `backends`; the package itself is `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@dataclass(frozen=True)
class Source:
    """What the tests read of one file. `imports`: (line, dotted name, whether for type checkers alone) of every import;
    `from a import b` gives a.b. `reads`: (line, dotted text) of every attribute."""

    path: Path
    imports: tuple[tuple[int, str, bool], ...]
    reads: tuple[tuple[int, str], ...]


@cache
def source(path: Path) -> Source:
    """One walk for all tests: syntax trees are a million objects, which nobody keeps."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for_types = {id(node) for guard in ast.walk(tree) if _is_for_types(guard) for node in ast.walk(guard)}
    here = module_name(path).split(".")[:-1]
    imports: list[tuple[int, str, bool]] = []
    reads: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(node.lineno, alias.name, id(node) in for_types) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            imports += [(node.lineno, f"{stem}.{alias.name}", id(node) in for_types) for alias in node.names]
        elif isinstance(node, ast.Attribute) and (text := _dotted(node)):
            reads.append((node.lineno, text))
    return Source(path, tuple(imports), tuple(reads))


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _dotted(node: ast.expr) -> str:
    """`torch.ao.nn`; empty for what is no chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    above = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{above}.{node.attr}" if above and isinstance(node, ast.Attribute) else ""


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def test_imports_run_one_way() -> None:
    breaches = []
    for path in package_files():
        own = layer(module_name(path))
        assert own in LEVEL, f"{own} has no place in the layers: add it to docs/design.md and to LAYERS"
        for line, name, _ in source(path).imports:
            other = layer(name) if under(name, "qcompiler") else own
            other = other if other in LEVEL else "__init__"  # `from qcompiler import quantize`: a public name, which lives on top
            if own != other and LEVEL[other] >= LEVEL[own]:
                breaches.append(f"{id_of(path)}:{line} imports {name}: {own} does not stand above {other}")
    assert not breaches, "\n".join(breaches)


def test_a_pass_imports_no_other_pass() -> None:
    passes = [path for path in package_files() if path.parent.name == "passes" and path.name != "__init__.py"]
    assert len(passes) > 20
    assert not [f"{id_of(path)}:{line} imports {name}" for path in passes for line, name, _ in source(path).imports
                if under(name, "qcompiler.passes")]  # fmt: skip


def test_nothing_imports_torch_ao() -> None:
    breaches = []
    for path in package_files():
        found = source(path)
        breaches += [f"{id_of(path)}:{line} imports {name}" for line, name, _ in found.imports if any(under(name, b) for b in BANNED)]
        breaches += [f"{id_of(path)}:{line} reads {text}" for line, text in found.reads if text in BANNED]
    assert not breaches, "\n".join(breaches)


def test_the_top_level_folders_are_imported_by_their_installed_names() -> None:
    others = [path for folder in ("tests", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert not [f"{id_of(path)}:{line}: import qcompiler.{name}" for path in (*package_files(), *others)
                for line, name, _ in source(path).imports if name.split(".")[0] in ("passes", "patterns")]  # fmt: skip


def test_no_file_imports_itself_through_others() -> None:
    """Inside a room there are no circles either, nor by imports for type checkers: what is below says what it asks of those above."""
    files = {module_name(path): path for path in package_files()}
    graph = nx.DiGraph()
    for name, path in files.items():
        for _, imported, _ in source(path).imports:
            target = next((t for t in (imported, imported.rpartition(".")[0]) if t in files), None)
            if target is not None:
                graph.add_edge(name, target)
    circles = [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1]
    assert not circles


def test_a_breach_is_found(tmp_path: Path) -> None:
    """What the tests above look for is seen in each form that it can be written in."""
    text = (
        "import torch.ao\nfrom torch import quantization\nfrom qcompiler.api import quantize\nimport torch\nx = torch.nn.quantized.Linear\n"
    )
    (tmp_path / "file.py").write_text(text + "if TYPE_CHECKING:\n    from qcompiler.debug import compare\n")
    found = source(tmp_path / "file.py")
    assert [(name, for_types) for _, name, for_types in found.imports] == [
        ("torch.ao", False), ("torch.quantization", False), ("qcompiler.api.quantize", False), ("torch", False),
        ("qcompiler.debug.compare", True)]  # fmt: skip
    assert (5, "torch.nn.quantized") in found.reads


def test_the_largest_room_says_where_things_are() -> None:
    """Each file of `trace` is named once in the table at the room's door."""
    room = ROOT / "qcompiler" / "trace"
    rows = re.findall(r"^\| [^|]+ \| ([a-z_, ]+) \|$", (room / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    listed = sorted(name for row in rows[1:] for name in row.split(", "))
    assert listed == sorted(path.stem for path in room.glob("*.py") if path.stem != "__init__")
