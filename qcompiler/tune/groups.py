"""Values that share steps have one range: under which names it stands in corrections."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.config.corrections import Corrections
from qcompiler.ir.types import quant_of
from qcompiler.workflow.twins import Twin


def named_ranges(twin: Twin, found: Mapping[int, tuple[float, float]], so_far: Corrections) -> dict[str, tuple[float, float]]:
    """Ranges of groups by names of their values: by all that have one in the corrections so far, so that no two are unlike, else one."""
    members = _members(twin)
    named = {group: [name for name in members[group] if name in so_far.ranges] or members[group][:1] for group in found}
    return {name: found[group] for group, names in named.items() for name in names}


def _members(twin: Twin) -> dict[int, list[str]]:
    """The values of each group by names that corrections may have. What is cut off from a result with scales of its own has its name there,
    and not the product that takes its place."""
    now = {group for node in twin.quantized.graph.nodes if (group := quant_of(node).group) is not None}
    members: dict[int, list[str]] = {group: [] for group in now}
    for node in twin.quantized.graph.nodes:
        group, given = quant_of(node).group, twin.groups.get(node.name)
        if group is not None and given is not None and (given == group or given not in now):
            members[group].append(node.name)
    for name, given in twin.groups.items():
        if given in members and name not in members[given]:
            members[given].append(name)
    return members
