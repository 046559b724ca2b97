"""Example inputs for a model that was given without: sizes that its first layers take, where the model does not branch on them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from qcompiler.errors import ConfigError

SIZES = (32, 64, 128, 224, 299, 512)  # of images and sequences, the smallest first: pooling may need more
CONVS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2,
                                     nn.ConvTranspose3d: 3, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}  # fmt: skip
HINT = "give example_inputs, a tuple of the forward's arguments"


def example_inputs_for(model: nn.Module) -> tuple[torch.Tensor, ...]:
    """Inputs that the model runs on, found from its first layers. ConfigError, saying why, where they cannot be told.

    torch.fx follows the model without values first: what it can follow branches neither on sizes nor on data, so that any inputs
    that run give the same graph.
    """
    try:
        graph = fx.symbolic_trace(copy.deepcopy(model)).graph
    except Exception as error:  # whatever forward raises on torch.fx's proxies
        raise ConfigError(f"this model cannot be traced without example inputs: {type(error).__name__}: {str(error).splitlines()[0]:.200}",
                          code="example-inputs", hint=HINT) from error  # fmt: skip
    required = [n for n, p in inspect.signature(model.forward).parameters.items() if p.default is p.empty]
    firsts = [_first_layer(model, node) for node in graph.nodes if node.op == "placeholder" and str(node.target).strip("*") in required]
    for inputs in _candidates(firsts):
        if _runs(model, inputs):
            return inputs
    raise ConfigError("the sizes of this model's inputs cannot be told from its layers", code="example-inputs", hint=HINT)


def _first_layer(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """The first module with weights on the way of a value."""
    found, seen = [node], {node}
    for current in found:
        for user in current.users:
            held = model.get_submodule(str(user.target)) if user.op == "call_module" else None
            if held is not None and any(True for _ in held.parameters()):
                return held
            if user not in seen:
                seen.add(user)
                found.append(user)
    return None


def _candidates(firsts: list[nn.Module | None]) -> Iterator[tuple[torch.Tensor, ...]]:
    for size in SIZES if firsts and None not in firsts else ():
        made = [_input_of(layer, size) for layer in firsts]
        if all(x is not None for x in made):
            yield tuple(made)  # type: ignore[arg-type]


def _input_of(layer: Any, size: int) -> torch.Tensor | None:
    rank = next((rank for kind, rank in CONVS.items() if isinstance(layer, kind)), None)
    if rank is not None:
        channels = layer.in_channels if hasattr(layer, "in_channels") else layer.num_features
        return torch.zeros(2, channels, *[size] * rank)
    if isinstance(layer, nn.Linear):
        return torch.zeros(2, layer.in_features)
    if isinstance(layer, nn.Embedding):
        return torch.zeros(2, size, dtype=torch.int64)
    if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
        return torch.zeros(2, size, layer.input_size) if layer.batch_first else torch.zeros(size, 2, layer.input_size)
    return None


def _runs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bool:
    try:
        copy.deepcopy(model)(*inputs)
    except Exception:  # sizes that do not fit: the next ones are tried
        return False
    return True
