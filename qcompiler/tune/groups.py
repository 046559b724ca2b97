"""Values that share steps have one range: under which names it stands in corrections."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from qcompiler.config.corrections import Corrections
from qcompiler.ir.types import quant_of


def named_ranges(
    gm: fx.GraphModule, found: Mapping[int, tuple[float, float]], so_far: Corrections
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Ranges of groups by names of their values: by all that have one in the corrections so far, so that no two are unlike, else one."""
    members: dict[int, list[str]] = {}
    for node in gm.graph.nodes:
        group = quant_of(node).group
        if group is not None:
            members.setdefault(group, []).append(node.name)
    named = {group: [name for name in members[group] if name in so_far.ranges] or members[group][:1] for group in found}
    return {name: found[group] for group, names in named.items() for name in names}
