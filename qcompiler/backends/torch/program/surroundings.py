"""What is set around a call of a script or of an exported source whose float parts would compute something else there.

A compiled module sees to it itself (`qcompiler.ambient`). A source does so in its `__call__`; a script can only refuse: torch.jit has no
way to leave the autocast of its caller.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import Program

# What autocast computes in half precision on CPUs, by the last part of a name.
HALVED = frozenset((
    "linear", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "matmul",
    "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "einsum", "tensordot", "bilinear", "chain_matmul", "multi_dot", "inner",
    "kron", "scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell",
    "rnn_tanh_cell", "rnn_relu_cell", "vecdot", "prelu", "dot", "cdist", "__matmul__",
))  # fmt: skip

CALL = '''
def __call__(self, *args, **kwargs):
    """Computes the same under autocast; raises RuntimeError under another default dtype or device."""
    if torch.get_default_dtype() is not torch.float32 or torch.get_default_device().type != "cpu":
        raise RuntimeError("the float parts of this program compute with torch's default dtype float32 and default device cpu")
    if not torch.is_autocast_enabled("cpu"):
        return super().__call__(*args, **kwargs)
    halves = (torch.bfloat16, torch.float16)
    args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype in halves else x, (args, kwargs))
    with torch.autocast("cpu", enabled=False):
        return super().__call__(*args, **kwargs)
'''


def is_touched(program: Program) -> bool:
    """Whether a program has float parts that compute in half precision under autocast, or code of the user's."""
    return any(_is_touched(call.op) for call in program.statements)


@functools.cache
def _is_touched(op: str) -> bool:
    if op in (registry.LEAF, registry.SUBMODULE) or op.startswith(registry.EXTERNAL):
        return True
    if "::" in op:
        return op.startswith("aten::") and op.partition("::")[2].partition(".")[0] in HALVED
    if op.rpartition(".")[2] in HALVED:
        return True
    code = None if op.startswith((registry.METHOD, registry.RECORD)) else getattr(registry.resolve(op), "__code__", None)
    return op.startswith(("runtime.", "ops.")) and code is not None and _names_one(code, vars_of(op))


def vars_of(op: str) -> dict[str, object]:
    found: dict[str, object] = getattr(registry.resolve(op), "__globals__", {})
    return found


def _names_one(code: CodeType, around: dict[str, object], seen: frozenset[str] = frozenset()) -> bool:
    """Whether a function of ours calls one of these, itself or through others of its file."""
    if HALVED & set(code.co_names) and "quantized" not in code.co_names:
        return True
    inner = ((name, getattr(around.get(name), "__code__", None)) for name in code.co_names if name not in seen)
    return any(found is not None and _names_one(found, around, seen | {name}) for name, found in inner)


def refusal(program: Program, root: Callable[[str], str]) -> list[str]:
    """The line of a script that refuses calls under autocast: a product of no elements has the dtype that autocast gives it. Of an input,
    so that freezing the script does not compute it once. `root`: how the source names torch."""
    if not is_touched(program):
        return []
    torch_ = root("torch")
    plain = [i.name for i in program.inputs if i.dtype not in (None, "quint8") and not i.optional]
    empty = f"{plain[0]}.new_empty([0, 0], dtype={torch_}.float32)" if plain else f"{torch_}.empty([0, 0], dtype={torch_}.float32)"
    text = "this program has float parts, which would be computed in half precision here: call it outside torch.autocast"
    return [f'assert {torch_}.mm({empty}, {empty}).dtype == {torch_}.float32, "{text}"']
