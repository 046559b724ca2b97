"""Which kernels that write into an operand may have that operand itself, for nothing else needs its value any more.

Conservative: its producer makes memory of its own, and all its users are kernels named here, which keep no view of what they read
and come before. A twin of the producer (the same kernel on the same arguments) forbids it: TorchScript makes one call of two.
"""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.backends.torch import runtime

OPS = torch.ops.quantized
ADD = runtime.conv2d_add_onednn
FRESH = (OPS.conv2d.new, OPS.conv2d_relu.new, OPS.add.default, ADD)  # what they return shares no memory with anything alive
INTO = 10  # the position of ADD's argument `into`


def reuse_memory(graph: fx.Graph) -> int:
    """Lets sums be written over their operand where that is safe; returns how many."""
    sums = [node for node in graph.nodes if node.target is ADD and len(node.args) == INTO]
    free = [node for node in sums if _is_last(node, node.args[1])]
    for node in free:
        node.args = (*node.args, True)
    return len(free)


def _is_last(node: fx.Node, value: object) -> bool:
    """Whether a sum is the last to read its operand, which is then nobody's."""
    if not isinstance(value, fx.Node) or value.target not in FRESH or _has_twin(value):
        return False
    if sum(arg is value for arg in node.args) != 1:
        return False
    return all(user is node or (user.target in FRESH and user < node) for user in value.users)


def _has_twin(value: fx.Node) -> bool:
    others = (user for source in value.all_input_nodes[:1] for user in source.users if user is not value)
    return any(_same(user, value) for user in others)


def _same(a: object, b: object) -> bool:
    """Whether two arguments have the same value: packs are made once for each call, of the same parameters where a module is shared."""
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        calls = a.op == b.op == "call_function" and a.target == b.target
        return a is b or (a.op == b.op == "get_attr" and a.target == b.target) or (calls and _same((a.args, a.kwargs), (b.args, b.kwargs)))
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
