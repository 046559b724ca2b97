"""Whether the largest number of a row is an answer: of scores of classes it is; of an embedding, whose direction counts, it is not."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx

from qcompiler.executable.call_forms import forms_of
from qcompiler.ops.table import Table
from qcompiler.prepared.module import required_state
from qcompiler.tune.shares import results_of

NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "instance_norm"})
PASSED = frozenset({"flatten", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "getitem", "mean", "sum", "mul", "div"})
LENGTHS = frozenset({"norm", "vector_norm", "linalg_vector_norm", "sqrt", "rsqrt"})
AROUND = frozenset({"clamp", "add", "maximum", "reshape", "unsqueeze", "expand", "expand_as"})  # what keeps a length from 0, and spreads it


def are_classes(prepared: object) -> bool:
    """Of the first float result of a prepared model: no, where it is what a norm or a division by its own length gives, seen through
    averages over steps, factors and copies. True for a model with several forms of the call, and where nothing is known."""
    forms = forms_of(prepared)
    if len(forms) != 1 or not isinstance(forms[0], fx.GraphModule):
        return True
    table = required_state(forms[0]).settings.table
    result = next(results_of(forms[0].graph), None)
    return result is None or not _is_direction(result, table)


def _is_direction(node: fx.Node, table: Table) -> bool:
    while True:
        if node.op == "call_function" and node.target is F.normalize:
            return True
        row, values = table.of(node), node.all_input_nodes
        watched = node.op == "call_module" and len(values) == 1  # an observer
        name = row.name if row is not None else ""
        if name in NORMS:
            return True
        if name in ("mul", "div") and any(_is_length(value) for value in values[-2:]):
            return True
        if not values or not (watched or name in PASSED):
            return False
        node = values[0]


def _is_length(node: fx.Node) -> bool:
    while _called(node) in AROUND and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return _called(node) in LENGTHS


def _called(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
