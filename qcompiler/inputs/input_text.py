"""How messages speak of inputs: what was given, what was wanted, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from qcompiler.errors import InputError


def described(value: object) -> str:
    """`torch.float32[2, 3, 8, 8]` for a tensor, else the type's name."""
    if isinstance(value, torch.Tensor) and not value.is_nested:
        return f"{value.dtype}{list(value.shape)}"
    return "a nested tensor" if isinstance(value, torch.Tensor) else type(value).__name__


def signature(inputs: Iterable[tuple[str, str]]) -> str:
    """`(x: torch.float32[2, 3, 8, 8], mask)`, of names and what is known of them, which may be empty."""
    return f"({', '.join(f'{name}: {text}' if text else name for name, text in inputs)})"


def how_to_give(value: object, dtype: torch.dtype | None = torch.float32) -> str | None:
    """What makes a tensor of `dtype` (None: of any) of a value that is none; None where nobody can tell."""
    if isinstance(value, np.ndarray):
        short = value.dtype in (np.float64, np.float16) and dtype is torch.float32
        return "give tensors: torch.from_numpy(array)" + (".float()" if short else "")
    if type(value).__module__.startswith("PIL."):
        return "give tensors, with the preprocessing of the model: torchvision.transforms.functional.to_tensor(image), normalized"
    if isinstance(value, list) and all(isinstance(x, (int, float)) for x in tree_leaves(value)):
        return "give tensors: torch.tensor(...), not lists"
    if isinstance(value, torch.Tensor) and dtype is not None and value.dtype is not dtype:
        return "give float32: x.float()" if dtype is torch.float32 else f"give {str(dtype).removeprefix('torch.')}: x.to({dtype})"
    return None


def how_to_mend(values: object, error: BaseException) -> str | None:
    """`how_to_give` for the first value that torch may have refused: an integer tensor only where the error is about types."""
    about_types = " type" in first_sentence(error)
    if "scalar types: Long" in str(error):  # of indices: torch's embeddings take int64 and int32
        return next((how_to_give(v, torch.int64) for v in tree_leaves(values) if _is_small_integer(v)), None)
    doubtful = (v for v in tree_leaves(values) if not isinstance(v, torch.Tensor) or v.is_floating_point() or about_types)
    return next((hint for v in doubtful if (hint := how_to_give(v)) is not None), None)


def _is_small_integer(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.int16, torch.int8, torch.uint8, torch.bool, torch.float32)


def refuse_arrays(arguments: object, what: str) -> None:
    """Raises InputError for a NumPy array among the arguments of a call: no forward of a model takes one."""
    array = next((leaf for leaf in tree_leaves(arguments) if isinstance(leaf, np.ndarray)), None)
    if array is not None:
        text = f"{what}: a NumPy array of {array.dtype}{list(array.shape)}, expected tensors"
        raise InputError(text, code="array-input", hint=how_to_give(array))


REFUSED = (RuntimeError, TypeError, ValueError, IndexError)  # NotImplementedError is a RuntimeError


def refuses_inputs(error: BaseException) -> bool:
    """Whether torch raises such an error for arguments that do not fit: it is no class of the user's own, and not about memory."""
    about_memory = isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error)
    return isinstance(error, REFUSED) and not about_memory and type(error).__module__.partition(".")[0] in ("builtins", "torch")


def first_sentence(error: BaseException) -> str:
    """Of torch's message: without what failed inside torch before it, and the overloads, backends and ways to report that may follow."""
    lines = str(error).strip().rpartition("DefaultCPUAllocator: ")[2].split("\n")
    return lines[0].split(", but expected one of")[0].split(". ")[0].strip() if lines else ""
