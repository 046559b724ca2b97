"""Which sizes of traced values are the same whatever the inputs are: those that weights and literals set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from qcompiler.ir.types import value_of

# Ops and modules whose result has the shape of their first argument.
_KEEPS_SHAPE = frozenset((
    "relu", "relu_", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "leaky_relu", "elu", "softmax", "log_softmax",
    "dropout", "contiguous", "clone", "detach", "to", "float", "type_as", "clamp", "abs", "neg", "exp", "batch_norm", "layer_norm",
    "group_norm", "instance_norm", "normalize", "masked_fill", "cumsum", "flip", "roll", "mish", "softplus",
))  # fmt: skip
_KEEPING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Softmax,
    nn.Dropout, nn.Dropout2d, nn.Identity, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU,
)  # fmt: skip
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BROADCASTS = frozenset(("add", "sub", "mul", "truediv", "div", "iadd", "isub", "imul", "itruediv"))
_REDUCTIONS = frozenset(("sum", "mean", "amax", "amin", "any", "all", "count_nonzero"))
_COMPARISONS = frozenset(("gt", "greater", "ge", "lt", "le", "ne", "eq", "bool", "long", "int", "logical_not"))
_DEPTH = 200  # ops between a value and what fixes its size that are looked through
CUTS = frozenset(("unbind", "split", "chunk"))


def name_of(target: object) -> str:
    """How an op is called, whether function or method."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def argument(node: fx.Node, position: int, *names: str, default: object = None) -> Any:
    """An argument of a call, given by position or under one of these names."""
    if position < len(node.args):
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def cut_dim(node: fx.Node) -> object:
    """The dimension that `unbind`, `split` or `chunk` cuts."""
    return argument(node, 1 if name_of(node.target) == "unbind" else 2, "dim", default=0)


@dataclass
class FixedSizes:
    """`module_of` finds a leaf module by its path."""

    module_of: Callable[[str], nn.Module]
    _known: dict[tuple[fx.Node, int], bool] = field(default_factory=dict)
    _depth: int = 0

    def holds(self, node: Any, dim: Any) -> bool:
        """Whether a dimension of a value has one size whatever the inputs are. False where that is not known."""
        shape = value_of(node).shape if isinstance(node, fx.Node) else None
        if shape is None or type(dim) is not int or not -len(shape) <= dim < len(shape):
            return False
        key = (node, dim % len(shape))
        if key not in self._known and self._depth < _DEPTH:
            self._depth += 1
            self._known[key] = self._decide(*key, len(shape))
            self._depth -= 1
        return self._known.get(key, False)

    def _decide(self, node: fx.Node, dim: int, rank: int) -> bool:
        if node.op == "call_module":
            return self._by_module(node, self.module_of(str(node.target)), dim, rank)
        if node.op not in ("call_function", "call_method"):
            return node.op == "get_attr"
        name = name_of(node.target)
        if name in ("linear", "conv1d", "conv2d", "conv3d"):
            weight = argument(node, 1, "weight")
            channels = rank - 1 - (int(name[4]) if name != "linear" else 0)
            return dim == channels and isinstance(weight, fx.Node) and self.holds(weight, 0)
        if name in ("view", "reshape", "unflatten"):
            return self._by_literal(node, name, dim)
        if name in ("permute", "transpose", "swapaxes", "movedim"):
            return self._by_move(node, name, dim)
        if name == "one_hot":
            return dim == rank - 1 and type(argument(node, 1, "num_classes", default=-1)) is int and argument(node, 1, "num_classes") != -1
        if name in _REDUCTIONS:
            return self._by_reduction(node, dim)
        if name == "getitem":
            return self._by_index(node, dim, rank)
        if name in BROADCASTS or name in _COMPARISONS:  # one operand's size, fixed and above 1, is the result's
            same = [a for a in node.args if isinstance(a, fx.Node) and len(value_of(a).shape or ()) == rank]
            alone = len(same) == 1 and len(node.all_input_nodes) == 1
            return any(((value_of(a).shape or ())[dim] > 1 or alone) and self.holds(a, dim) for a in same)
        return name in _KEEPS_SHAPE and self.holds(argument(node, 0, "input"), dim)

    def _by_module(self, node: fx.Node, module: nn.Module, dim: int, rank: int) -> bool:
        if isinstance(module, (nn.Linear, nn.Embedding)) and dim == rank - 1:
            return True
        if isinstance(module, _CONVOLUTIONS) and dim == rank - 1 - len(module.kernel_size):
            return True
        return isinstance(module, _KEEPING_MODULES) and self.holds(argument(node, 0, "input"), dim)

    def _by_move(self, node: fx.Node, name: str, dim: int) -> bool:
        """Through a permutation: one of a tensor without memory says which dimension comes to lie here."""
        if node.kwargs or len(node.all_input_nodes) != 1:
            return False
        rank = len(value_of(node).shape or ())
        marks = torch.empty(tuple(range(rank)), device="meta")  # the size of each dimension is its number
        moved = getattr(marks, name)(*node.args[1:])
        return self.holds(node.args[0], moved.shape[dim])

    def _by_index(self, node: fx.Node, dim: int, rank: int) -> bool:
        """Of a piece of a cut value; of a tensor behind one integer, or behind what a tensor picks of its first dimensions."""
        owner, index = node.args
        assert isinstance(owner, fx.Node)
        if value_of(owner).shape is not None and isinstance(index, fx.Node) and (picked := value_of(index).shape) is not None:
            by_mask = value_of(index).dtype in (torch.bool, torch.uint8)
            made, taken = (1, len(picked)) if by_mask else (len(picked), 1)
            return dim >= made and self.holds(owner, dim - made + taken)
        if value_of(owner).shape is not None:
            return type(index) is int and self.holds(owner, dim + 1)
        if name_of(owner.target) not in CUTS or type(along := cut_dim(owner)) is not int:
            return False
        cut = argument(owner, 0, "input", "tensor")
        if name_of(owner.target) != "unbind":
            return self.holds(cut, dim)  # a fixed size is cut into fixed ones
        return self.holds(cut, dim + (dim >= along % (rank + 1)))

    def _by_literal(self, node: fx.Node, name: str, dim: int) -> bool:
        """A size that stands in a view's arguments: a number, or one that is fixed."""
        if name == "unflatten":
            start, sizes = argument(node, 1, "dim"), argument(node, 2, "sizes", "unflattened_size")
        else:
            start, sizes = 0, argument(node, 1, "shape", "size")
            sizes = sizes if isinstance(sizes, (list, tuple)) else node.args[1:]
        if not isinstance(sizes, (list, tuple)) or type(start) is not int:
            return False
        start = start if start >= 0 else start + len(value_of(node).shape or ()) - len(sizes) + 1
        size = sizes[dim - start] if 0 <= dim - start < len(sizes) else -1
        if isinstance(size, fx.Node):
            return size.target == "size" and len(size.args) == 2 and self.holds(*size.args)
        return type(size) is int and size >= 0

    def _by_reduction(self, node: fx.Node, dim: int) -> bool:
        """A dimension that is not reduced."""
        tensor, dims, keeps = argument(node, 0, "input"), argument(node, 1, "dim", "axis"), argument(node, 2, "keepdim", default=False)
        if not isinstance(tensor, fx.Node) or keeps is not False or dims is None:
            return False
        rank = len(value_of(tensor).shape or ())
        dims = dims if isinstance(dims, (list, tuple)) else (dims,)
        if not all(type(d) is int for d in dims):
            return False
        left = [d for d in range(rank) if d not in {one % rank for one in dims}]
        return dim < len(left) and self.holds(tensor, left[dim])
