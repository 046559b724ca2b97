"""Products, quotients, sums and differences with constants behind an op with a weight become part of the weight and the bias.

(W x + b) * s + t = (W s) x + (b s + t), by output channel. LayerScale, the affine blocks of PP-LCNet, statistics that channels are divided
by: as ops of their own each of them rounds once more, on steps that all channels share.

Where that is done is noted before anything is observed (NoteAffine): nothing looks at the values between, and the prepared module keeps the
weights and constants of the model, so that it computes what the model computes and takes its state_dict. Converting folds (FoldAffine). A
model that is trained keeps its constants, which are trained as well, and so does an op that stays float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.compile.pass_manager import Context
from qcompiler.compile.rewrite import Reject, merged_source
from qcompiler.config.qconfig_of_op import channel_axis
from qcompiler.ir.attributes import attribute, bias_path, set_parameter
from qcompiler.ir.names import user_path
from qcompiler.ir.readers import Readers
from qcompiler.ir.types import QUANT, SOURCE, Stage, quant_of, source_of
from qcompiler.observers.base import EPS
from qcompiler.ops.affine import Affine, affine_of, channel_dimension, source_of_folded
from qcompiler.ops.arguments import asks_size
from qcompiler.ops.batch_norm import along_channels, channels_of
from qcompiler.ops.spec import Op
from qcompiler.ops.stays_float import results_at

NAME = "fold_affine"
FEWEST = 255 * EPS  # the largest weight of a channel that is smaller finds fewer than half of its steps: observers have none below EPS


@dataclass(frozen=True)
class NoteAffine:
    name: str = "note_affine"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        quantized = () if context.trains else results_at(gm.graph, context.settings.custom.output_quantized_indexes)
        found = False
        for node in () if context.trains else gm.graph.nodes:
            row, quant = context.table.of(node), quant_of(node)
            plain = quant.int8 and not quant.float_output and node.kwargs.get("bounds") is None
            dimension = channel_dimension(row, node) if row is not None and row.weight is not None and plain else None
            if row is not None and dimension is not None:
                found |= _note(gm, _Base(node, row, dimension), quantized, context)
        return found


@dataclass(frozen=True)
class FoldAffine:
    name: str = NAME
    stage: Stage = Stage.OBSERVED
    required: bool = True  # what is noted was not observed

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        noted = [node for node in gm.graph.nodes if quant_of(node).folded]
        with Readers(gm):
            for node in noted:
                _fold(gm, node, context)
        if noted:
            gm.graph.eliminate_dead_code()
        return bool(noted)


@dataclass(frozen=True)
class _Base:
    """An op with a weight. `dimension`: that of the channels of its result."""

    node: fx.Node
    row: Op
    dimension: int

    @property
    def groups(self) -> int:
        groups = self.node.kwargs.get("groups", 1)
        assert isinstance(groups, int)
        return groups

    @property
    def bias(self) -> object:
        return self.node.args[2] if len(self.node.args) > 2 else None

    def parameters(self, gm: fx.GraphModule) -> tuple[Tensor, Tensor | None]:
        held = [attribute(gm, str(arg.target)).detach().double() for arg in (self.node.args[1], self.bias) if isinstance(arg, fx.Node)]
        return held[0], held[1] if len(held) > 1 else None

    def folded(self, weight: Tensor, bias: Tensor | None, affine: Affine) -> tuple[Tensor, Tensor]:
        axis = int(self.row.weight_axis == 1)
        channels = channels_of(weight, axis, self.groups)
        factor, offset = affine.factor.expand(channels), affine.offset.expand(channels)
        return weight * along_channels(weight, factor, axis, self.groups), (0.0 if bias is None else bias) * factor + offset

    def largest(self, weight: Tensor) -> Tensor:
        """The largest absolute weight of each output channel."""
        if self.row.weight_axis == 1:
            return weight.reshape(self.groups, -1, weight.shape[1], weight[0, 0].numel()).abs().amax((1, 3)).reshape(-1)
        return weight.reshape(len(weight), -1).abs().amax(1)


def _note(gm: fx.GraphModule, base: _Base, quantized: Sequence[fx.Node], context: Context) -> bool:
    """Notes the calls behind an op, one after the other, that can be folded into its weight."""
    held, value, found = base.parameters(gm), base.node, False
    while (user := _only_reader(value)) is not None and value not in quantized and quant_of(user).int8:
        affine = affine_of(user, value, base.dimension, context.table)
        if affine is None:
            break
        try:
            held = _checked(base, held, affine)
        except Reject as reject:
            context.remark("note_affine", reject.code, f"{NAME}: {reject}", user)
            break
        if not context.allows(NAME, user):
            context.remark("note_affine", "held-back", f"it could be part of %{base.node.name}, but that was held back", user)
            break
        context.journal.matches += 1
        value.meta[QUANT] = quant_of(value).with_(float_output=True)
        user.meta[QUANT] = quant_of(user).with_(folded=True)
        value, found = user, True
        if user.kwargs.get("bounds") is not None:
            break
    return found


def _only_reader(value: fx.Node) -> fx.Node | None:
    users = [user for user in value.users if not asks_size(user)]
    return users[0] if len(users) == 1 else None


def _checked(base: _Base, held: tuple[Tensor, Tensor | None], affine: Affine) -> tuple[Tensor, Tensor]:
    """The weight and bias with a factor and an offset; refused where float32 or the scales of the weight cannot hold them."""
    name, made = base.node.name, base.folded(*held, affine)
    largest = torch.finfo(torch.float32).max
    if not all(bool((tensor.abs() <= largest).all()) for tensor in made):
        raise Reject("fold-overflow", f"float32 does not hold the weight of %{name} with the constant in it")
    sizes = affine.factor.abs()
    if channel_axis(base.row, quant_of(base.node).qconfig) is None and not bool((sizes == sizes.max()).all()):
        raise Reject("fold-per-tensor", f"the channels of the weight of %{name} share one scale, and the constant makes them unlike")
    before, after = base.largest(held[0]), base.largest(made[0])
    if bool(((after < FEWEST) & (after < before) & (after > 0)).any()):
        raise Reject("fold-tiny", f"with the constant in it the weight of %{name} is smaller than its steps can be")
    return made


def _fold(gm: fx.GraphModule, user: fx.Node, context: Context) -> None:
    """Takes a noted call into the op before it, which makes its value from now on, with its observer and group."""
    node = source_of_folded(user)
    row = context.table.of(node)
    dimension = channel_dimension(row, node) if row is not None else None
    affine = affine_of(user, node, dimension, context.table) if dimension is not None else None
    assert row is not None and dimension is not None and affine is not None
    base, held = _Base(node, row, dimension), node.args[1]
    assert isinstance(held, fx.Node)
    dtype, path = attribute(gm, str(held.target)).dtype, str(held.target)
    weight, bias = base.folded(*base.parameters(gm), affine)
    with gm.graph.inserting_before(node):
        made = set_parameter(gm, node, path, weight.to(dtype))
        offset = set_parameter(gm, node, bias_path(base.bias, path), bias.to(dtype))
    node.args = (node.args[0], made, offset)
    if user.kwargs.get("bounds") is not None:
        node.kwargs = {**node.kwargs, "bounds": user.kwargs["bounds"]}
    _remark(gm, user, node, context)
    own = quant_of(user)
    node.meta[SOURCE] = merged_source((node, user), source_of(node))
    node.meta[QUANT] = quant_of(node).with_(group=own.group, float_output=own.float_output)
    user.replace_all_uses_with(node)
    gm.graph.erase_node(user)


def _remark(gm: fx.GraphModule, user: fx.Node, node: fx.Node, context: Context) -> None:
    """Names the parameters and buffers that the result has no more."""
    left, held = [arg for arg in user.args[:2] if isinstance(arg, fx.Node) and arg is not node], dict[str, None]()
    while left:
        value = left.pop()
        left += value.all_input_nodes
        if value.op == "get_attr":
            held[user_path(gm, str(value.target))] = None
    if held:
        context.remark(NAME, "folded", f"{', '.join(held)} of %{user.name} is part of its weight and bias", node)
