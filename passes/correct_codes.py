"""Puts the user's integers in the place of rounded weights, and his biases in the place of the model's.

What the kernel's partial sums do not hold is refused: the proof is repeated on the codes that are given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.compile.pass_manager import Context
from qcompiler.config.qconfig_of_op import weight_codes
from qcompiler.errors import ConfigError
from qcompiler.ir.attributes import attribute, bias_path, set_attribute, set_parameter
from qcompiler.ir.names import user_path
from qcompiler.ir.types import QUANT, Stage, quant_of, value_of
from qcompiler.ir.verify import where
from qcompiler.ops.reference import dequantize_weight
from qcompiler.ops.spec import CONVOLUTIONS, Family, Op

TAKE_BIASES = (*CONVOLUTIONS, Family.LINEAR, Family.EPILOGUE)
HINT = "corrections fit the model, the settings and the back end that they were made with"


@dataclass(frozen=True)
class CorrectCodes:
    name: str = "correct_codes"
    stage: Stage = Stage.QUANTIZED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        given = context.settings.corrections
        unused = set(given.codes) | set(given.scales)
        for node in list(gm.graph.nodes):
            if node.target is dequantize_weight:
                unused.discard(_correct_weight(gm, node, context))
            elif node.name in given.biases:
                _correct_bias(gm, node, given.biases[node.name], context)
        _remark_unused(gm, sorted(unused), context)
        gm.graph.eliminate_dead_code()
        return True


def _remark_unused(gm: fx.GraphModule, names: list[str], context: Context) -> None:
    """Codes of weights that stay float, for one reason or another, have no place."""
    read = {user_path(gm, str(node.target)): node for node in gm.graph.nodes if node.op == "get_attr"}
    for name in names:
        node = read.get(name)
        if node is not None:
            context.remark("correct_codes", "correction-unused", f"{name} is not quantized: its corrected codes have no use", node)


def _correct_weight(gm: fx.GraphModule, node: fx.Node, context: Context) -> str:
    """The name of the weight, which has the user's codes from here on if there are any."""
    held, given = node.args[0], context.settings.corrections
    if not isinstance(held, fx.Node) or held.op != "get_attr":
        return _packed(gm, node, held, context)
    name = user_path(gm, str(held.target))
    codes = given.codes.get(name)
    if codes is not None:
        _check_codes(node, name, codes, attribute(gm, str(held.target)), context)
        set_attribute(gm, str(held.target), codes)
        _note(node, "codes", f"corrections gave the codes of {name}", context)
    elif name in given.scales:
        _note(node, "scales", f"corrections gave the scales of {name}", context)
    return name


def _packed(gm: fx.GraphModule, node: fx.Node, held: object, context: Context) -> str:
    name = user_path(gm, str(held.args[0].target)) if isinstance(held, fx.Node) and isinstance(held.args[0], fx.Node) else ""
    if name in context.settings.corrections.codes:
        raise ConfigError(f"the weight {name} has 4 bits: its codes cannot be corrected", code="correction", where=where(node))
    return name


def _note(weight: fx.Node, what: str, text: str, context: Context) -> None:
    for user in weight.users:
        user.meta[QUANT] = quant_of(user).with_(corrected=(*quant_of(user).corrected, what))
        context.remark("correct_codes", "corrected", text, user)


def _check_codes(node: fx.Node, name: str, codes: Tensor, held: Tensor, context: Context) -> None:
    if codes.dtype is not held.dtype or codes.shape != held.shape:
        _refuse(f"the codes of {name} in corrections are {codes.dtype}{list(codes.shape)}, not {held.dtype}{list(held.shape)}", node)
    for user in node.users:
        row = context.table.of(user)
        if row is not None and quant_of(user).qconfig is not None:
            _check_use(name, codes, row, user, context)


def _check_use(name: str, codes: Tensor, row: Op, user: fx.Node, context: Context) -> None:
    low, high = weight_codes(row, quant_of(user).qconfig) if codes.dtype is torch.int8 else (0, 255)
    if codes.numel() and not low <= int(codes.min()) <= int(codes.max()) <= high:
        _refuse(f"the codes of {name} in corrections are {int(codes.min())} to {int(codes.max())}, not within {low} to {high}", user)
    limit = context.target.weight_limit(row, user)
    if limit is not None and not bool(limit.holds(codes).all()):
        _refuse(f"the codes of {name} in corrections could overflow the 16-bit sums of the kernel", user)


def _refuse(text: str, node: fx.Node) -> None:
    raise ConfigError(text, code="correction", where=where(node), hint=HINT)


def _correct_bias(gm: fx.GraphModule, node: fx.Node, bias: Tensor, context: Context) -> None:
    row = context.table.of(node)
    params = [param.name for param in row.params] if row is not None else []
    if row is None or "bias" not in params or row.settled.family not in TAKE_BIASES:
        raise ConfigError(f"%{node.name} takes no bias, and corrections give one", code="correction", where=where(node), hint=HINT)
    if not (quant_of(node).int8 or quant_of(node).mode):
        context.remark("correct_codes", "correction-unused", f"%{node.name} stays float: its corrected bias has no use", node)
        return
    channels = _channels(row, node)
    if bias.shape != (channels,) or bias.dtype is not torch.float32:
        _refuse(f"the bias of %{node.name} in corrections is {bias.dtype}{list(bias.shape)}, not torch.float32[{channels}]", node)
    at = params.index("bias")
    given = [*node.args, *[None] * (at + 1 - len(node.args))]
    with gm.graph.inserting_before(node):
        given[at] = set_parameter(gm, node, bias_path(given[at], _weight_path(node, row)), bias)
    node.args = tuple(given)
    node.meta[QUANT] = quant_of(node).with_(corrected=(*quant_of(node).corrected, "bias"))
    context.remark("correct_codes", "corrected", "corrections gave its bias", node)


def _weight_path(node: fx.Node, row: Op) -> str:
    held = node.args[row.weight] if row.weight is not None else None
    while isinstance(held, fx.Node) and held.op != "get_attr":
        held = held.args[0]
    return str(held.target) if isinstance(held, fx.Node) else f"{node.name}.weight"


def _channels(row: Op, node: fx.Node) -> int:
    """How many channels the result has."""
    return (value_of(node).shape or ())[-1 if row.dims is None else -row.dims - 1]
