"""`view_as_complex` wants the two parts of a number side by side: where int8 values lie as channels_last, their floats do not."""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.ir.types import SOURCE, VALUE, source_of, value_of
from qcompiler.ops.reference import lay_out


def lay_out_pairs(graph: fx.Graph) -> None:
    """Brings what is seen as complex numbers into order, which is free where it lies so. Other functions of floats take any layout."""
    for node in graph.nodes:
        if node.target is torch.view_as_complex and isinstance(x := node.args[0], fx.Node) and (shape := value_of(x).shape) is not None:
            with graph.inserting_before(node):
                laid = graph.call_function(lay_out, (x, list(range(len(shape)))))
            laid.meta[VALUE], laid.meta[SOURCE] = value_of(x), source_of(node)
            node.replace_input_with(x, laid)
