"""What is traced as something simpler, so that what is inside runs in int8. `DECOMPOSE` maps a module class to a function of
(module, *its arguments), a function of torch or a method of Tensor to a function of the same arguments.

One that cannot take a call returns NotImplemented before it computes anything: the call then stays what it is.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.ops.attention import attention_forward, multihead_attention

MaxResult, MinResult = namedtuple("max", "values indices"), namedtuple("min", "values indices")


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> object:
    return NotImplemented if dim is None or dtype is not None else torch.softmax(-input, dim)


def glu(input: Tensor, dim: int = -1) -> object:
    """The first half times the sigmoid of the second."""
    left, right = input.chunk(2, dim)
    return left * torch.sigmoid(right)


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> object:
    """beta * input + alpha * mat1 @ mat2, as transformers' Conv1D has it: a linear where mat2 and a vector input are constants."""
    if (beta, alpha) == (1, 1) and _is_constant(input) and input.dim() == 1 and _is_constant(mat2):
        return F.linear(mat1, mat2.t(), input)
    return _scaled(torch.matmul(mat1, mat2), alpha) + _scaled(input, beta)


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> object:
    return _scaled(torch.matmul(batch1, batch2), alpha) + _scaled(input, beta)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> object:
    return input + _scaled(tensor1 * tensor2, value)


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> object:
    return input + _scaled(tensor1 / tensor2, value)


def lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> object:
    return input + (end - input) * weight


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _is_constant(x: object) -> bool:
    """A tensor that does not depend on the inputs: the tracer leaves it as it is."""
    return isinstance(x, Tensor) and type(x) in (Tensor, nn.Parameter)


Pair = Callable[[Tensor, Tensor], Tensor]
Along = Callable[[Tensor, int, bool], Tensor]


def _extreme(pair: Pair, along: Along, best: Along, result: Callable[[Tensor, Tensor], object]) -> Callable[..., object]:
    """max(x, other) of two tensors, or (values, indices) of max(x, dim)."""

    def decomposed(input: Tensor, dim: int | Tensor | None = None, keepdim: bool = False, *, other: Tensor | None = None) -> object:
        if other is not None:
            return pair(input, other)
        if isinstance(dim, Tensor):
            return pair(input, dim)
        return NotImplemented if dim is None else result(along(input, dim, keepdim), best(input, dim, keepdim))

    return decomposed


def movedim(input: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> object:
    rank = input.dim()
    sources, places = ([d % rank for d in ([s] if isinstance(s, int) else s)] for s in (source, destination))
    order = [d for d in range(rank) if d not in sources]
    for place, dim in sorted(zip(places, sources, strict=True)):
        order.insert(place, dim)
    return input.permute(order)


def t(input: Tensor) -> Tensor:
    return input if input.dim() < 2 else input.transpose(0, 1)


def tile(input: Tensor, *dims: Any) -> object:
    sizes = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    return input.repeat((1,) * (input.dim() - len(sizes)) + tuple(sizes))


def hstack(tensors: tuple[Tensor, ...] | list[Tensor]) -> object:
    return torch.cat(tensors, 0 if tensors[0].dim() == 1 else 1) if tensors[0].dim() else NotImplemented


def vstack(tensors: tuple[Tensor, ...] | list[Tensor]) -> object:
    return torch.stack(tensors, 0) if tensors[0].dim() == 1 else torch.cat(tensors, 0) if tensors[0].dim() else NotImplemented


def cat(tensors: Sequence[Tensor], dim: int = 0) -> object:
    """Without the constants of shape (0,) that torch ignores, which caches start from."""
    rest = [x for x in tensors if not (_is_constant(x) and tuple(x.shape) == (0,) and not isinstance(x, nn.Parameter))]
    return torch.cat(rest, dim) if 0 < len(rest) < len(tensors) and max(x.dim() for x in rest) > 1 else NotImplemented


def batch_statistics_free(input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
                          weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
                          momentum: float = 0.1, eps: float = 1e-5) -> object:  # fmt: skip
    """F.instance_norm by running statistics is a batch_norm by them."""
    if use_input_stats or running_mean is None or running_var is None:
        return NotImplemented
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


DECOMPOSE: dict[Any, Any] = {
    nn.MultiheadAttention: multihead_attention,
    nn.GLU: lambda module, input: glu(input, module.dim),
    nn.LogSoftmax: lambda module, input: F.log_softmax(input, module.dim),
    nn.Fold: lambda module, input: F.fold(input, module.output_size, module.kernel_size, module.dilation, module.padding, module.stride),
    nn.Softmin: lambda module, input: softmin(input, module.dim),
    F.instance_norm: batch_statistics_free,
    F.multi_head_attention_forward: attention_forward,
    F.softmin: softmin,
    F.glu: glu,
    torch.max: _extreme(torch.maximum, torch.amax, torch.argmax, MaxResult),
    torch.min: _extreme(torch.minimum, torch.amin, torch.argmin, MinResult),
    torch.addmm: addmm,
    torch.baddbmm: baddbmm,
    torch.addcmul: addcmul,
    torch.addcdiv: addcdiv,
    torch.lerp: lerp,
    torch.cat: cat,
    torch.movedim: movedim,
    torch.moveaxis: movedim,
    torch.t: t,
    torch.tile: tile,
    torch.hstack: hstack,
    torch.vstack: vstack,
    torch.row_stack: vstack,
    torch.fliplr: lambda input: input.flip(1),
    torch.flipud: lambda input: input.flip(0),
    torch.Tensor.view_as: lambda input, other: input.view(other.shape),
    torch.Tensor.reshape_as: lambda input, other: input.reshape(other.shape),
    torch.Tensor.expand_as: lambda input, other: input.expand(other.shape),
}


def _method(function: object) -> object:
    """The method of Tensor that a function of torch is under the same name, where there is one."""
    name = getattr(function, "__name__", "")
    return getattr(torch.Tensor, name, None) if getattr(torch, name, None) is function else None


DECOMPOSE.update({method: replacement for function, replacement in list(DECOMPOSE.items()) if (method := _method(function)) is not None})
