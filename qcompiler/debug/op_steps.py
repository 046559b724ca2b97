"""Which nodes are ops, and which are but steps of one: a lowering makes several calls of an op, a plan several layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.debug.document import Node

COMPUTE = ("int8", "float")
STEP_OF = "step_of"


def is_op(node: Node) -> bool:
    """Whether a node stands for an op, and so is counted: its steps are drawn in its colour, but they are no further ops."""
    return node["kind"] in COMPUTE and STEP_OF not in node


def mark_steps(nodes: Sequence[Node]) -> None:
    """What was made from the same call as an op is a step of it: it gets the op's kind, and `step_of`, the op's node.

    What was made from the calls of several ops, such as a region, is a step of none. Layers of a plan have names of their own,
    `conv_q.phase.0`: they belong to the op of the value that such a name begins with.
    """
    named = {node["name"]: node for node in nodes}
    ops = {name: node for node in nodes if is_op(node) for name in _made_from(node)}
    for node in nodes:
        if node["kind"] == "other":
            value = node["name"].partition(".")[0]
            ways = (_made_from(node), (value,), _made_from(named.get(value, node)))
            op = next(filter(None, (_one(ops, names) for names in ways)), None)
            if op is not None:
                node |= {"kind": op["kind"], STEP_OF: op["name"]}


def _made_from(node: Node) -> Sequence[str]:
    return (*node.get("computes", ()), *(node.get("origin") or [node["name"]]))


def _one(ops: Mapping[str, Node], names: Sequence[str]) -> Node | None:
    """The op that all of these were made for."""
    first = ops.get(names[0])
    return first if first is not None and all(ops.get(name) is first for name in names) else None
