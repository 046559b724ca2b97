"""A graph that was trained, as it is in eval mode: what convert starts from.

`training` is False everywhere; dropouts vanish; batch norm stands alone with fixed statistics or is folded into its convolution
(the algebra: `ops/batch_norm.py`); weights are what fake quantization makes of them now, with its qparams noted at their op, so
that they become the same integers. Values are those of the fake-quantized graph in eval mode.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.compile.pass_manager import Context
from qcompiler.errors import NumericsError
from qcompiler.ir.attributes import attribute, bias_path, drop_unused_modules, set_parameter
from qcompiler.ir.types import QUANT, SOURCE, VALUE, Stage, quant_of, source_of
from qcompiler.ir.verify import where
from qcompiler.ops.batch_norm import Layout, Norm, fold
from qcompiler.ops.spec import Op
from qcompiler.qat.of_model import of_model_alone, value_now
from qcompiler.qat.sites import HOLDER, FakeQuantWatch, round_like

LIVE = ("training", "momentum", "fake_quant")


@dataclass(frozen=True)
class SettleTraining:
    name: str = "settle_training"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        gm.eval()
        _settle_operands(gm, context)
        for node in list(gm.graph.nodes):
            if node.op == "get_attr" and isinstance(attribute(gm, str(node.target)), bool):
                _replace(node, False)
        for node in list(gm.graph.nodes):
            if node.target is operator.mul and node.args[0] is False and isinstance(node.args[1], float):  # a share of dropout
                _replace(node, 0.0)
        for node in list(gm.graph.nodes):
            row = context.table.of(node)
            if node.op == "call_module" and str(node.target).startswith(f"{HOLDER}."):
                _settle_weight(gm, node)
            elif node.target is round_like:
                node.replace_all_uses_with(node.args[0])
            elif row is not None and row.eval_form is not None:
                _fold(gm, node, row.eval_form)
            elif row is not None and row.name == "batch_norm":
                node.args = node.args[:5]
                node.kwargs = {k: v for k, v in node.kwargs.items() if k not in LIVE}
            elif row is not None and "training" in node.kwargs and row.identity(node.kwargs):
                _drop(node)
        gm.graph.eliminate_dead_code()
        drop_unused_modules(gm)
        return True


def _replace(node: fx.Node, value: Any) -> None:
    """A constant in place of a node, wherever it is an argument."""
    for user in list(node.users):
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda n: value if n is node else n)  # type: ignore[assignment]


def _drop(node: fx.Node) -> None:
    """Takes out what does nothing; where it was the source of a group, its input is. (With groups of both, it stays, in float.)"""
    source: Any = node.args[0]
    own, others = quant_of(node).group, quant_of(source).group
    if own is not None and others not in (None, own):
        node.meta[QUANT] = quant_of(node).with_(int8=False)
        return
    if own is not None:
        source.meta[QUANT] = quant_of(source).with_(group=own)
    node.replace_all_uses_with(source)


def _settle_operands(gm: fx.GraphModule, context: Context) -> None:
    """The qparams of parameters that ops take as operands, and of what is computed from them alone, for the values that they have now."""
    own = of_model_alone(gm.graph)
    for node in own:
        if node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), FakeQuantWatch):
            value_now(gm, node, context.table)


def _quantized(node: fx.Node, fake_quant: Any, weight: Tensor) -> tuple[Tensor, Any]:
    """The weight as the next forward in eval mode would have it, and its qparams."""
    try:
        fake_quant.apply(_switch_on)
        return fake_quant(weight), fake_quant.qparams()
    except NumericsError as error:
        raise NumericsError(f"weight: {error.message}", code=error.code, where=where(node)) from error


def _switch_on(module: object) -> None:
    if hasattr(module, "enable_fake_quant"):
        module.enable_fake_quant()


def _settle_weight(gm: fx.GraphModule, node: fx.Node) -> None:
    """w' = fake_quant(w), under the name of w, where its qparams are noted: an op may take several."""
    weight: Any = node.args[0]
    values, qparams = _quantized(node, gm.get_submodule(str(node.target)), attribute(gm, str(weight.target)).detach())
    with gm.graph.inserting_before(node):
        settled = set_parameter(gm, node, str(weight.target), values)
    settled.meta[QUANT] = quant_of(settled).with_(weight=qparams)
    node.replace_all_uses_with(settled)
    gm.graph.erase_node(node)


def _fold(gm: fx.GraphModule, node: fx.Node, plain: Op) -> None:
    """conv_bn(x, w, b, mean, var, gamma, beta) -> conv(x, fake_quant(w'), b') with w', b' folded as conv_bn does in eval mode."""
    args = [*node.args, *[None] * (8 - len(node.args))]
    tensors: list[Any] = [None if a is None else attribute(gm, str(a.target)).detach() for a in args[1:7]]  # type: ignore[union-attr]
    weight, bias, mean, var, gamma, beta = tensors
    _check(node, mean, var, node.kwargs.get("eps", 1e-5))
    groups = node.kwargs.get("groups", 1)
    norm = Norm(mean, var, gamma, beta, node.kwargs.get("eps", 1e-5))  # type: ignore[arg-type]
    weight, bias = fold(weight, bias, norm, Layout(int(plain.weight_axis == 1), groups))  # type: ignore[arg-type]
    held: Any = node.kwargs.get("fake_quant")
    qparams = None
    if held is not None:
        weight, qparams = _quantized(node, gm.get_submodule(str(held.target)), weight)
    path = str(args[1].target)  # type: ignore[union-attr]
    kwargs = {k: v for k, v in node.kwargs.items() if k not in (*LIVE, "eps")}
    with gm.graph.inserting_before(node):
        parameters = set_parameter(gm, node, path, weight), set_parameter(gm, node, bias_path(args[2], path), bias)
        conv = gm.graph.create_node("call_function", plain.fn, (args[0], *parameters), kwargs)
    conv.meta[VALUE], conv.meta[SOURCE], conv.meta[QUANT] = node.meta[VALUE], source_of(node), quant_of(node)
    parameters[0].meta[QUANT] = quant_of(parameters[0]).with_(weight=qparams)
    name = node.name
    node.replace_all_uses_with(conv)
    gm.graph.erase_node(node)
    conv.name = name


def _check(node: fx.Node, mean: Tensor | None, var: Tensor | None, eps: Any) -> None:
    assert mean is not None and var is not None
    if not bool((var.double() + eps > 0).all()) or not bool(torch.isfinite(mean).all() & torch.isfinite(var).all()):
        raise NumericsError("BatchNorm's running statistics are negative, zero without eps, or not finite", code="bad-batch-norm",
                            where=where(node), hint="did training diverge?")  # fmt: skip
