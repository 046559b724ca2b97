"""Which kernels that write into an operand may have that operand itself, for nothing else needs its value any more.

Conservative: its producer makes memory of its own, and all its users are kernels named here, which keep no view of what they read
and come before. A twin of the producer (a call that computes the same of the same inputs) forbids it: TorchScript makes one of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.runtime import functions as runtime

OPS = torch.ops.quantized
ADD = runtime.conv2d_add_onednn
FRESH = (OPS.conv2d.new, OPS.conv2d_relu.new, OPS.add.default, ADD)  # what they return shares no memory with anything alive
INTO = 10  # the position of ADD's argument `into`


def reuse_memory(graph: fx.Graph) -> int:
    """Lets sums be written over their operand where that is safe; returns how many."""
    sums = [node for node in graph.nodes if node.target is ADD and len(node.args) == INTO]
    numbers = _value_numbers(graph) if sums else {}
    times = Counter(numbers.values())
    free = [node for node in sums if _is_last(node, node.args[1]) and times[numbers[node.args[1]]] == 1]
    for node in free:
        node.args = (*node.args, True)
    return len(free)


def _is_last(node: fx.Node, value: object) -> bool:
    """Whether a sum is the last to read its operand, which is then nobody's."""
    if not isinstance(value, fx.Node) or value.target not in FRESH:
        return False
    if sum(arg is value for arg in node.args) != 1:
        return False
    return all(user is node or (user.target in FRESH and user < node) for user in value.users)


def _value_numbers(graph: fx.Graph) -> Mapping[Any, int]:
    """One number for all nodes that compute the same. Packs of one module are the same, though each of its calls has its own."""
    numbers: dict[fx.Node, int] = {}
    known: dict[str, int] = {}
    for node in graph.nodes:
        args = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")  # type: ignore[arg-type, return-value]
        target = node.target if isinstance(node.target, str) else id(node.target)
        own = node.name if node.op == "placeholder" else ""
        numbers[node] = known.setdefault(f"{node.op} {target} {own} {args!r}", len(known))
    return numbers
