"""One op at once: runs a row of the op table on quantized tensors, by the kernel table's first entry that takes them.

The same choice of kernels as in a compiled model, made from the tensors themselves. What no entry takes, and what a kernel
would get wrong in 16 bits, is computed in float: dequantize - op - quantize.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.torch.kernels.conv import saturation
from qcompiler.backends.torch.kernels.depthwise import safe_weight
from qcompiler.backends.torch.kernels.table import Refused, select
from qcompiler.backends.torch.site import Emit, Operand, Site, Weight, host_isa
from qcompiler.ir.types import VALUE, QParams, Value
from qcompiler.ops.quantized_tensors import channel_axis, qparams_of_tensor
from qcompiler.ops.spec import Op, Role
from qcompiler.ops.table import OPS

SEVEN_BITS = 127  # activations up to this code never overflow 16 bits


def run_op(
    name: str, args: Sequence[object], attributes: Mapping[str, object], scale: float, zero_point: int, dtype: torch.dtype = torch.quint8
) -> Tensor:
    """The row `name` on `args` (in the order of its params), as a tensor of `dtype` with the given qparams.

    Activations are per-tensor quantized tensors, weights qint8 ones, other parameters float tensors. The kernels are those
    of the current engine; they take and make quint8, other types are computed in float.
    """
    row = OPS.rows[name]
    activations = [a for a in args if isinstance(a, Tensor) and a.is_quantized and a.dtype is not torch.qint8]
    if dtype is torch.quint8 and len(activations) == _count(row, args) and all(a.dtype is torch.quint8 for a in activations):
        call = _Call(row, args, attributes, scale, zero_point)
        with _untraced():
            result = call.emit(args)
        if result is not None:
            return call.run(result)
    real = row.fn(*(a.dequantize() if isinstance(a, Tensor) and a.is_quantized else a for a in args), **attributes)
    return torch.quantize_per_tensor(real, scale, zero_point, dtype)


@contextmanager
def _untraced() -> Iterator[None]:
    """torch.jit.trace does not see what runs inside: choosing a kernel reads values of tensors."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _count(row: Op, args: Sequence[object]) -> int:
    """Number of tensors among the arguments that the row takes as activations."""
    return sum(p.role is Role.ACTIVATION and isinstance(a, Tensor) for p, a in zip(row.params, args, strict=False))


def _overflows(site: Site, args: Sequence[Any]) -> bool:
    """Whether 16-bit sums may overflow with these very activations and weights."""
    x, weight = args[0], args[1]
    if x.numel() == 0 or int(x.int_repr().max()) <= SEVEN_BITS:
        return False
    pairs = saturation(site.op.family, tuple(weight.shape), site.attributes, site.engine, site.isa) == "pairs"
    return not (pairs and safe_weight(weight.int_repr()))


class _Call:
    """The site of one call, and the graph into which its kernel is emitted."""

    def __init__(self, row: Op, args: Sequence[object], attributes: Mapping[str, object], scale: float, zero_point: int) -> None:
        self.root, self.graph = nn.Module(), fx.Graph()
        self.graph.owning_module = self.root  # type: ignore[assignment]
        self.values: dict[fx.Node, Any] = {}
        wired = tuple(self._argument(a) for a in args)
        output = QParams(scale, zero_point, 0, 255, torch.uint8)
        node = fx.Graph().call_function(row.fn)
        self.site = Site(row, node, wired, attributes, output, torch.backends.quantized.engine, host_isa())

    def _constant(self, value: Tensor) -> fx.Node:
        return Emit(self.graph, self.root).constant("constant", value)

    def _argument(self, value: object) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not value.is_quantized:
            return self._constant(value)
        if value.dtype is torch.qint8:
            return self._weight(value)
        node = self.graph.placeholder(f"x{len(self.values)}")
        node.meta[VALUE] = Value.of(value)
        self.values[node] = value
        return Operand(node, QParams(value.q_scale(), value.q_zero_point(), 0, 255, torch.uint8))

    def _weight(self, value: Tensor) -> Weight:
        nodes = [self._constant(t) for t in (value.int_repr(), *qparams_of_tensor(value))]
        return Weight(nodes[0], nodes[1], nodes[2], channel_axis(value), tuple(value.shape))

    def emit(self, args: Sequence[object]) -> fx.Node | None:
        """The result of the chosen kernel; None where float arithmetic is wanted."""
        kernel = select(self.site)
        if isinstance(kernel, Refused) or (kernel.saturates(self.site) and _overflows(self.site, args)):
            return None
        return kernel.emit(self.site, Emit(self.graph, self.root))

    def run(self, result: fx.Node) -> Tensor:
        """Evaluates the emitted calls up to `result`."""
        for node in self.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = getattr(self.root, str(node.target))
            elif node.op == "call_function":
                args, kwargs = (fx.node.map_arg(a, self.values.__getitem__) for a in (node.args, node.kwargs))
                self.values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self.values[result]  # type: ignore[no-any-return]
