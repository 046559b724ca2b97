"""Which classes the results of a loaded program have: none is imported, or looked up in a module, by a name from the file."""

from __future__ import annotations

import warnings

from qcompiler.ambient import caller_level
from qcompiler.backends import Stored
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import Program
from qcompiler.errors import ConfigError
from qcompiler.files.faults import StandInWarning
from qcompiler.ops import trees
from qcompiler.ops.records import form_of, registered


def result_classes(program: Program, stored: Stored) -> dict[str, type]:
    """The class behind each name: of `modules=`, else one that is registered in this process; without, results are plain records.

    Raises ConfigError for a class that does not fit, and for objects that nobody knows how to put together.
    """
    forms = {c.op.removeprefix(registry.RECORD): str(c.args[0]) for c in program.calls if c.op.startswith(registry.RECORD)}
    found: dict[str, type] = {}
    for name, form in forms.items():
        kind = stored.modules.get(name) or registered(name)
        if kind is None and form == "tree":
            raise ConfigError(f"its results hold a {name}, a class that is not registered here", code="load-modules",
                              hint="import and register it first (torch.utils._pytree.register_pytree_node)")  # fmt: skip
        if kind is not None and not _fits(kind, form):
            raise ConfigError(f"{name} is not what the results were made of (a {form})", code="load-modules")
        if kind is not None:
            found[name] = kind
    if unknown := [name for name, form in forms.items() if name not in found and form != "named"]:
        text = (f"{stored.path}: results are plain records with the same fields in place of {', '.join(unknown)}; import the class, and "
                "register it with torch.utils._pytree or give it as modules={name: class}, to have it")  # fmt: skip
        warnings.warn(text, StandInWarning, stacklevel=caller_level())
    return found


def _fits(kind: object, form: str) -> bool:
    if not isinstance(kind, type):
        return False
    return trees.node_of(kind) is not None if form == "tree" else form_of(kind) == form
