"""The nodes that a user means by the names of modules and nodes that are to stay float."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from qcompiler.errors import ConfigError
from qcompiler.inputs.near_names import near_names
from qcompiler.ir.types import Source

SPECIAL = re.compile(r"[*?\[\]\\^$|(){}+]")  # what makes a name a pattern: no path of a module has it


def named_nodes(names: Iterable[str], nodes: Mapping[str, Source], modules: Iterable[str]) -> dict[str, frozenset[str]]:
    """The nodes that each name means, none for what was fused into others; names that mean nothing are left out.

    `nodes`: where each node comes from.
    """
    paths = list(modules)
    found = {name: _meant(name, nodes, paths) for name in names}
    return {name: meant for name, meant in found.items() if meant is not None}


def check_known(names: Iterable[str], meant: Iterable[str], known: Sequence[str], what: str = "keep_float") -> None:
    """Raises one ConfigError for all names that mean nothing, each with what was probably meant, of what is `known`; `what` gave them."""
    unknown = [name for name in names if name not in set(meant)]
    if unknown:
        raise _unknown(unknown, known, what)


def _meant(name: str, nodes: Mapping[str, Source], modules: Sequence[str]) -> frozenset[str] | None:
    """The nodes that one name means; None where neither a module nor a node has it.

    The path of a module means all in it. A pattern is compared with the paths of modules, as a glob and as the regular expressions of a
    QConfigMapping are: at their beginning. What names no module may be the name of a node, or of a traced one that was fused into it.
    """
    paths = [path for path in modules if path and _fits(name, path)] if SPECIAL.search(name) else [path for path in modules if path == name]
    name = name.removeprefix("%")  # no module is called so: a node alone can be meant
    if paths:
        return frozenset(node for node, source in nodes.items() if any(_is_in(source.module_path, path) for path in paths))
    return frozenset(node for node, source in nodes.items() if name == node or name in source.origin) or None


def _fits(pattern: str, path: str) -> bool:
    if fnmatchcase(path, pattern):
        return True
    try:
        return re.match(pattern, path) is not None
    except re.error:
        return False


def _is_in(path: str, module: str) -> bool:
    return not module or path == module or path.startswith(f"{module}.")


def _unknown(names: Sequence[str], known: Sequence[str], what: str) -> ConfigError:
    def suggested(name: str) -> str:
        close = near_names(name, known)
        return f" (did you mean {', '.join(close)}?)" if close else ""

    listed = ", ".join(f"{name!r:.80}{suggested(name)}" for name in names)
    hint = "names of modules (model.named_modules()), patterns of these, or names of nodes (explain(prepared))"
    return ConfigError(f"{what} names nothing in this model: {listed}", code="keep-float", hint=hint)
