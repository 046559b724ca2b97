"""Puts the user's float weights in the place of the model's, before anything is measured or rounded on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.compile.pass_manager import Context
from qcompiler.errors import ConfigError
from qcompiler.ir.attributes import attribute, set_attribute
from qcompiler.ir.names import user_path
from qcompiler.ir.types import QUANT, Stage, quant_of
from qcompiler.ir.verify import where


@dataclass(frozen=True)
class CorrectWeights:
    name: str = "correct_weights"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        given, done = context.settings.corrections.weights, False
        for node in [n for n in gm.graph.nodes if n.op == "get_attr"] if given else ():
            tensor = given.get(user_path(gm, str(node.target)))
            if tensor is None:
                continue
            _check(node, tensor, attribute(gm, str(node.target)))
            set_attribute(gm, str(node.target), tensor, parameter=True)
            _note(node, context)
            done = True
        return done


def _check(node: fx.Node, given: Tensor, held: Tensor) -> None:
    if given.shape != held.shape or given.dtype is not torch.float32:
        text = f"the weight {node.target} of corrections is {given.dtype}{list(given.shape)}, the model's {held.dtype}{list(held.shape)}"
        raise ConfigError(text, code="correction", where=where(node), hint="corrections are of the model that they were made from")


def _note(weight: fx.Node, context: Context) -> None:
    for user in weight.users:
        user.meta[QUANT] = quant_of(user).with_(corrected=(*quant_of(user).corrected, "float weight"))
        context.remark("correct_weights", "corrected", f"corrections gave the float values of {weight.target}", user)
