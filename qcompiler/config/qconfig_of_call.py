"""Which rule of a QConfigMapping holds for a call of a graph."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from qcompiler.config.qconfig_mapping import QConfigMapping, Rule, type_name
from qcompiler.ir.types import source_of
from qcompiler.ops.spec import Op, Spelling


def rule_of_call(mapping: QConfigMapping, node: fx.Node, row: Op | None, types: Mapping[str, type | str], index: int = 0) -> Rule:
    """The rule that wins: rules for modules see the class of the node's module, those for functions the row's functions.

    `types`: the class of each module by its path, or the class's name. `index`: how many calls of the row came before in the module.
    """
    path = source_of(node).module_path
    calls_module = calls_a_module(node, row, types)
    spelled = [s.target if isinstance(s, Spelling) else s for s in (row.spellings if row is not None and not calls_module else ())]
    return mapping.matches(path, types.get(path), [s for s in spelled if not isinstance(s, str)], index)[0]


def calls_a_module(node: fx.Node, row: Op | None, types: Mapping[str, type | str]) -> bool:
    """Whether the node is a module of the user's that the row describes, and not a function that the module calls."""
    kind = types.get(source_of(node).module_path)
    return kind is not None and row is not None and bool({kind, type_name(kind)} & {form.cls for form in row.modules})
