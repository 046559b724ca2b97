"""What the package must not grow in: long files, long functions, long lists of arguments, uses of Any.

    python -m tests.counts            the counts beside their limits
    python -m tests.counts --list     and what is counted
    python -m tests.counts --write    makes the counts the limits: for a change that lowers them

Arguments are not counted where others set the signature (`set_by_others`): names that users are promised, which are torch's own, with
their methods; modules that stand for one of torch.nn's, and take its arguments; functions of the op table, which are torch's; functions
that programs call, whose arguments a file holds and torch.jit reads; options of the command line; and methods that override torch's.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

from qcompiler.backends.torch.program import registry
from qcompiler.cli import app
from qcompiler.ops.decompositions import DECOMPOSE
from qcompiler.ops.table import OPS
from qcompiler.qat.ops import training_table
from tests.test_contract_names import NAMES, found

ROOT = Path(__file__).resolve().parent.parent
LIMITS = ROOT / "tests" / "counts.toml"
FOLDERS = ("qcompiler", "passes", "patterns")
FILE_LINES, FUNCTION_LINES, ARGUMENTS = 300, 40, 6
NN = (
    "qcompiler.nn.qat",
    "qcompiler.nn.qat.dynamic",
    "qcompiler.nn.intrinsic.qat",
    "qcompiler.nn.quantizable",
    "qcompiler.nn.quantized.dynamic",
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Counts:
    """Each place by its name; `any_uses`: the annotations that say Any."""

    files: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    any_uses: list[str] = field(default_factory=list)

    def numbers(self) -> dict[str, int]:
        return {part.name: len(getattr(self, part.name)) for part in fields(self)}


def sources() -> Iterator[Path]:
    """The package's files, each once: links lead to folders that are read themselves."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any((ROOT.joinpath(*path.relative_to(ROOT).parts[:n])).is_symlink() for n in (1, 2)):
                yield path


def counts() -> Counts:
    """The counts of the tree as it is."""
    made = Counts()
    for path in sources():
        text = path.read_text(encoding="utf-8")
        place = str(path.relative_to(ROOT))
        made.files += [place] if len(text.splitlines()) > FILE_LINES else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name) and node.id == "Any":
                made.any_uses.append(f"{place}:{node.lineno}")
            elif isinstance(node, Function):
                _count_function(made, node, place, path)
    return made


def _count_function(made: Counts, node: Function, place: str, path: Path) -> None:
    name = f"{place}:{node.lineno} {node.name}"
    assert node.end_lineno is not None
    if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
        made.functions.append(name)
    args = node.args
    number = len(args.posonlyargs) + len(args.args) + len(args.kwonlyargs) + (args.vararg is not None) + (args.kwarg is not None)
    if number > ARGUMENTS and (path.resolve(), _first_line(node)) not in set_by_others():
        made.arguments.append(name)


def _first_line(node: Function) -> int:
    """As code objects count: with decorators."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


@cache
def set_by_others() -> frozenset[tuple[Path, int]]:
    """File and line of each function whose signature is not ours to choose."""
    places: set[tuple[Path, int]] = set()
    for value in _contracts():
        for function in _functions(value):
            code = inspect.unwrap(function).__code__
            places.add((Path(code.co_filename).resolve(), code.co_firstlineno))
    return frozenset(places | set(_promised()))


def _promised() -> Iterator[tuple[Path, int]]:
    """The functions under promised names where these stand, though other objects may go by the names in the end."""
    for module in dict.fromkeys(module for module, _ in NAMES):
        path = Path(str(sys.modules[module].__file__)).resolve()
        names = {name for where, name in NAMES if where == module}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Function) and node.name in names:
                yield path, _first_line(node)


def _contracts() -> Iterator[object]:
    yield from (found(module, name) for module, name in NAMES)
    yield from (cls for name in NN for cls in vars(importlib.import_module(name)).values() if hasattr(cls, "_FLOAT_MODULE"))
    yield from (row.fn for row in (*OPS.rows.values(), *training_table(OPS).rows.values()))
    yield from registry.table().values()
    yield from DECOMPOSE.values()  # written in the place of torch's own
    yield from (command.callback for command in app.registered_commands)


def _functions(value: object) -> Iterator[object]:
    """The function itself; of a class, its own methods and those of its bases here, and of torch's what a class here overrides."""
    if inspect.isclass(value):
        for cls in value.__mro__:
            if cls.__module__.startswith("qcompiler."):
                yield from (member for member in map(_plain, vars(cls).values()) if inspect.isfunction(member))
    elif inspect.isfunction(_plain(value)):
        yield _plain(value)


def _plain(member: object) -> object:
    return getattr(member, "__func__", member)


def limits() -> dict[str, int]:
    return {name: int(value) for name, value in tomllib.loads(LIMITS.read_text(encoding="utf-8")).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    made, known = counts(), limits() if LIMITS.exists() else {}
    for name, number in made.numbers().items():
        print(f"{name}: {number} (limit {known.get(name)})")
        print(*(f"    {place}" for place in getattr(made, name) if options.list and name != "any_uses"), sep="\n")
    if options.write:
        LIMITS.write_text("".join(f"{name} = {number}\n" for name, number in made.numbers().items()), encoding="utf-8")


if __name__ == "__main__":
    main()
