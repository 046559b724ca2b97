"""Results that come in pieces (`unbind`, `split`, `chunk`, iteration): may a call at other sizes give another number of them?

The user's code gets as many values as the example has, so the number is held by a guard where it may vary.
"""

from __future__ import annotations

import operator

from torch import fx

from qcompiler.ir.types import value_of
from qcompiler.trace.fixed_sizes import CUTS, FixedSizes, argument, cut_dim, name_of

SAME_OP = {"unsafe_split": "split", "unsafe_chunk": "chunk", "unsafe_split_with_sizes": "split_with_sizes"}  # but for gradients
# As many values as the call says, or as dimensions or tensors are given: each call checks those.
_COUNTED = frozenset((
    "hsplit", "vsplit", "dsplit", "split_with_sizes", "tensor_split", "broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d",
    "atleast_3d", "align_tensors", "nonzero", "where", "stride", "gradient", "_pack_padded_sequence", "_pad_packed_sequence", "unique",
    "unique_consecutive", "frexp", "aminmax", "std_mean", "var_mean", "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell",
    "multi_head_attention_forward", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool1d", "max_pool2d",
    "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "embedding_bag",
))  # fmt: skip


def count_varies(node: fx.Node, example: object, fixed: FixedSizes) -> bool:
    """Whether the call that made this tuple or list may make a longer or a shorter one."""
    if type(example) not in (tuple, list) or node.op == "get_attr":
        return False
    while node.target is operator.getitem and value_of(node.all_input_nodes[0]).shape is None:
        node = node.all_input_nodes[0]  # a tuple in a result
    if node.op == "placeholder":
        return True
    if node.op == "call_module":
        return not type(fixed.module_of(str(node.target))).__module__.startswith("torch.nn.")
    name = name_of(node.target)
    names = ("split_size", "split_size_or_sections", "chunks", "indices_or_sections", "indices", "sections", "tensor_indices_or_sections")
    how = argument(node, 1, *names)
    if name in _COUNTED:
        return name == "tensor_split" and isinstance(how, fx.Node)
    if name not in CUTS:
        return True
    if name != "unbind" and not isinstance(how, int):
        return not isinstance(how, (list, tuple))
    return not fixed.holds(argument(node, 0, "input", "tensor"), cut_dim(node))
