"""Arguments that are one number, such as a scale: which values calibration saw. Ranges behind them are those of these values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from qcompiler.observers.watch import Watch

ENOUGH = 2  # values that are kept: more than one is all that is asked


@dataclass
class Numbers:
    """By name of an argument, up to two different values."""

    seen: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def note(self, given: Mapping[str, object]) -> None:
        """The arguments of one call."""
        for name, value in given.items():
            known = self.seen.get(name, ())
            number = _number(value) if len(known) < ENOUGH else None
            if number is not None and number not in known:
                self.seen[name] = (*known, number)

    def remarks(self, gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
        """The arguments of a prepared graph that had one value and that observed values depend on, with a sentence for each."""
        for node in gm.graph.nodes:
            values = self.seen.get(str(node.target), ()) if node.op == "placeholder" else ()
            if len(values) == 1 and _is_observed(gm, node):
                text = (f"calibration saw {node.target} at {values[0]:g} alone: the ranges behind it are those of this value, and others "
                        "may be cut off; calibrate with the values that calls will give")  # fmt: skip
                yield node, text


def _number(value: object) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and value.dim() < ENOUGH and value.is_floating_point() and not value.is_meta else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_observed(gm: fx.GraphModule, start: fx.Node) -> bool:
    """Whether an observer looks at something that is computed from a node with more than sizes: a value that it scales or shifts."""
    found, left = {start}, [start]
    while left:
        node = left.pop()
        module: nn.Module | None = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Watch) and node.args[0] is not start:
            return True
        for user in node.users:
            if user not in found:
                found.add(user)
                left.append(user)
    return False
