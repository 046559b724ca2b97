"""docs/api.md: every public name, by the module it is imported from, with its signature and docstring."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

WIDTH = 110
SUBMODULES = (  # of qcompiler.quantization, as torch has them
    "observer", "fake_quantize", "qconfig", "qconfig_mapping", "quantize", "quantize_fx", "fuse_modules", "fuser_method_mappings",
    "quantization_mappings", "stubs", "backend_config", "numeric_suite", "numeric_suite_fx",
)  # fmt: skip
# A name is described where it comes first; later modules that have it too refer there. "*": what is below it, too.
MODULES = (
    "qcompiler", "qcompiler.quantization", *(f"qcompiler.quantization.{name}" for name in SUBMODULES), "qcompiler.nn*",
    "qcompiler.debug", "qcompiler.viz", "qcompiler.observers", "qcompiler.fake_quantize", "qcompiler.qat", "qcompiler.tune",
    "qcompiler.ops.example", "qcompiler.ops.spec",
    "qcompiler.ops.table", "qcompiler.stages.quantized", "qcompiler.stages.arguments", "qcompiler.stages.sizes",
    "qcompiler.stages.size_dims", "qcompiler.stages.size_expressions", "qcompiler.stages.verify", "qcompiler.compile.matching",
    "qcompiler.compile.rewrite", "qcompiler.compile.settings", "qcompiler.compile.journal", "qcompiler.compile.pass_manager",
    "qcompiler.compile.pass_lists", "qcompiler.target", "qcompiler.executable", "qcompiler.executable.steps", "qcompiler.backends",
    "qcompiler.backends.torch.site", "qcompiler.backends.torch.kernels.table",
)  # fmt: skip
HEAD = """# API reference

Made from the docstrings by `python docs/generate.py`; a test compares. A name that several modules have is described at the first.
"""


def text() -> str:
    """The page."""
    described: dict[int, str] = {}
    modules = [module for name in MODULES if importlib.util.find_spec(name.rstrip("*")) for module in _modules(name)]
    contents = "\n".join(f"- [{m.__name__}](#{m.__name__.replace('.', '')})" for m in modules)
    sections = [_section(module, described) for module in modules]
    return re.sub(r"\n{3,}", "\n\n", "\n".join([HEAD, contents, "", *sections])).rstrip() + "\n"


def _modules(name: str) -> Iterator[ModuleType]:
    """The module, and with a star the packages below it and the modules that these give out."""
    base = importlib.import_module(name.rstrip("*"))
    yield base
    for info in pkgutil.iter_modules(base.__path__, f"{base.__name__}.") if name.endswith("*") else ():
        if info.ispkg:
            yield from _modules(f"{info.name}*")
        elif info.name.rpartition(".")[2] in getattr(base, "__all__", ()):
            yield importlib.import_module(info.name)


def public(module: ModuleType) -> dict[str, Any]:
    """What a module gives out: its `__all__`, or else what is written in it and has no underscore."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", None) == module.__name__]
    return {name: getattr(module, name) for name in sorted(names, key=lambda n: (n.lower(), n))}


def _section(module: ModuleType, described: dict[int, str]) -> str:
    known: dict[str, list[str]] = {}
    entries, values = [], []
    names = public(module)
    for name, value in names.items():
        if inspect.ismodule(value) or (_is_value(value) and id(value) not in described):
            values.append((name, value))
        elif getattr(value, "__name__", name) != name and names.get(value.__name__) is value:
            entries.append(f"### {name}\n\nAnother name of `{value.__name__}`.\n")
            continue
        elif id(value) in described:
            known.setdefault(described[id(value)], []).append(name)
            continue
        else:
            entries.append(_entry(name, value))
        described[id(value)] = module.__name__
    parts = [f"## {module.__name__}\n", _markdown(inspect.getdoc(module) or "")]
    parts += [f"From `{place}`: {', '.join(f'`{n}`' for n in names)}.\n" for place, names in known.items()]
    return "\n".join([*parts, *entries, _table(values)])


def _is_value(value: Any) -> bool:
    return not (inspect.isclass(value) or inspect.isroutine(value))


def _table(values: list[tuple[str, Any]]) -> str:
    if not values:
        return ""
    rows = "".join(f"| `{name}` | {_cell(value)} |\n" for name, value in values)
    return f"| name | what it is |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    """A value as one cell: a module's summary, or how the value reads; of collections and what has no stable form, the type."""
    if inspect.ismodule(value):
        return _escape((inspect.getdoc(value) or "").partition("\n")[0])
    shown = repr(value)
    stable = len(shown) <= 1000 and not re.search(r" at 0x|<", shown)
    return f"`{shown}`" if stable else _escape(f"a {type(value).__name__}")


def _entry(name: str, value: Any) -> str:
    lines = [f"### {name}\n", f"```python\n{signature(name, value)}\n```\n", _markdown(_doc(value))]
    if inspect.isclass(value):
        lines += [f"- `{' '.join(signature(n, m).split())}`: {_summary(m)}" for n, m in _methods(value)] + [""]
    return "\n".join(lines)


def _doc(value: Any) -> str:
    own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    return inspect.cleandoc(own or "")


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods that the class or a base of this package defines, but for forward, which the class's text covers."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("qcompiler"):
            found |= {n: v for n, v in vars(base).items() if not n.startswith("_") and n != "forward"}
    for name, value in sorted(found.items()):
        inner = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if inspect.isfunction(inner) and (getattr(cls, name).__doc__ or "").strip():
            yield name, getattr(cls, name)
        elif isinstance(value, property) and value.__doc__:
            yield name, value


def _summary(method: Any) -> str:
    return _escape(inspect.cleandoc(method.__doc__).partition("\n\n")[0].replace("\n", " "))


def signature(name: str, value: Any) -> str:
    """The call as it is written, on one line or with a parameter a line; a property is its name."""
    if isinstance(value, property):
        return name
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return f"{name}(...)"
    parameters = [_readable(p) for p in found.parameters.values()]
    line = f"{name}{found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)}"
    if found.return_annotation is not inspect.Signature.empty and not inspect.isclass(value):
        line += f" -> {_type(found.return_annotation)}"
    return "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


class _Literal(str):
    """Text that a signature shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _readable(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without the annotation; a default that is a class by its name, and what has no stable repr as three dots."""
    default = parameter.default
    if default is inspect.Parameter.empty:
        return parameter.replace(annotation=inspect.Parameter.empty)
    if inspect.isclass(default) or inspect.isroutine(default):
        default = _Literal(default.__name__)
    elif re.search(r" at 0x|<|\n", repr(default)):
        default = _Literal("...")
    return parameter.replace(annotation=inspect.Parameter.empty, default=default)


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _markdown(doc: str) -> str:
    """A docstring as Markdown: indented blocks are code, signs that mean something to Markdown are escaped elsewhere."""
    lines = []
    for line in doc.splitlines():
        code = line.startswith("    ") and line.strip()
        lines.append(line if code else _escape(line))
    return "\n".join(lines) + "\n" if doc else ""


def _escape(line: str) -> str:
    """Outside of backticks: no tags, emphasis or table cells by chance."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(p if p.startswith("`") else re.sub(r"([<*|]|\b_\b|(?<!\w)_|_(?!\w))", r"\\\1", p) for p in parts)
