"""Teaching the compiler: an op of your own, with a table or with its own kernel, a fusion rule and a pass.

    python examples/custom_op.py

Rows, rules and passes go into one call of prepare_fx, so two compiles in one program may differ. Kernels are registered for
the back end as a whole; only a table with a row of that name asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, fx, nn

import qcompiler
from qcompiler.backends.torch.kernels.table import ENGINES, Emit, Kernel, Operand, Site, register
from qcompiler.compile.pass_manager import Context
from qcompiler.compile.rewrite import Link, Match, Reject, Rule
from qcompiler.debug import compute_sqnr
from qcompiler.ir.attributes import attribute, set_parameter
from qcompiler.ir.types import Stage
from qcompiler.ops.example import Example
from qcompiler.ops.spec import Family, ModuleForm, Op, Output, Param, Spelling
from qcompiler.ops.table import OPS

# 1. An op: one row of the table. `elementwise` says that a table of 256 values computes it exactly in int8.


def snake(x: Tensor, rate: float = 1.0) -> Tensor:
    """x + sin(rate x)^2 / rate, an activation that torch does not have."""
    return x + torch.sin(rate * x) ** 2 / rate


class Snake(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return snake(x, self.rate)


SNAKE = Op(
    name="snake", fn=snake, signature="x rate=1.0", params=(Param("x"),), output=Output.OWN, elementwise=True,
    family=Family.ACTIVATION, example=Example(attributes={"rate": 0.5}),  # adding the row to a table tries the example
    modules=(ModuleForm(Snake, {}, lambda module: {"rate": module.rate}),),
)  # fmt: skip

# 2. An op with its own kernel: a function of quint8 tensors, and an entry that says when it fits. It needs no `elementwise`.

SINC = Op(name="sinc", fn=torch.sinc, signature="x", params=(Param("x"),), output=Output.OWN, spellings=(Spelling(torch.sinc, "input:x"),))


def sinc_int8(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.quantize_per_tensor(torch.sinc(x.dequantize()), scale, zero_point, torch.quint8)


def emit_sinc(site: Site, emit: Emit) -> fx.Node:
    return emit.call(sinc_int8, site.args[0], site.scale, site.zero_point)


def refuse_sinc(site: Site) -> str | None:
    return None if isinstance(site.args[0], Operand) else "its input is not quantized"


SINC_KERNEL = Kernel("sinc", ENGINES, emit_sinc, refuse_sinc)

# 3. A fusion rule: a convolution times a number, in either order, is a convolution with other weights.


def can_fold(match: Match, conv: fx.Node, product: fx.Node, factor: object) -> None:
    if not isinstance(factor, (int, float)):
        raise Reject("not-a-number", "the factor is computed at run time")
    if conv.kwargs.get("bounds") is not None:
        raise Reject("clamp-between", "a clamp stands between the two")


def fold_factor(match: Match, conv: fx.Node, product: fx.Node, factor: float) -> None:
    args = list(conv.args)
    with match.gm.graph.inserting_before(conv):
        for position, node in enumerate(args[1:], 1):
            if isinstance(node, fx.Node):
                args[position] = set_parameter(match.gm, conv, str(node.target), attribute(match.gm, str(node.target)) * factor)
    conv.args = tuple(args)
    match.replace(product, conv)


PATTERN = (Link("conv", ("conv2d",)), Link("product", ("mul",), ("conv", "factor")))
FOLD_FACTOR = Rule("fold_factor", PATTERN, fold_factor, check=can_fold)

# 4. A pass over the FUSED graph: SiLU becomes hardswish, which is close, and faster in int8.


@dataclass(frozen=True)
class CheaperSilu:
    name: str = "cheaper_silu"
    stage: Stage = Stage.FUSED
    required: bool = False  # the program is right without it, so a bisection may hold it back

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        found = [node for node in gm.graph.nodes if node.target is F.silu]
        for node in found:
            node.target = F.hardswish
            context.remark(self.name, "replaced", "silu became hardswish", node)
        return bool(found)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8, 8))
        self.snake = Snake(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.snake(self.first(x))
        x = F.silu(self.second(x) * 0.5)
        y: Tensor = self.last(torch.sinc(self.third(x)))
        return y


def main() -> None:
    torch.manual_seed(0)
    model, data = Network().eval(), [torch.randn(2, 3, 16, 16) for _ in range(8)]
    table = OPS.copy()
    for row in (SNAKE, SINC):
        table.add(row)
    register(SINC_KERNEL)

    prepared = qcompiler.prepare_fx(model, None, (data[0],), table=table, rules=(FOLD_FACTOR,), passes=(CheaperSilu(),))
    qcompiler.calibrate(prepared, data)
    small = qcompiler.convert_fx(prepared)

    console = Console()
    console.print(qcompiler.explain(small).table())
    console.print(*(f"{remark.pass_name}: {remark.text}" for remark in qcompiler.remarks(prepared)), sep="\n")
    console.print(small.code, highlight=False, markup=False)
    with torch.no_grad():
        console.print(f"SQNR {compute_sqnr(model(data[0]), small(data[0])):.1f} dB")


if __name__ == "__main__":
    main()
