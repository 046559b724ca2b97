"""Weights and values of a float and a quantized model in pairs, as torch.ao.ns._numeric_suite gives them.

    pairs = compare_weights(float_model.state_dict(), quantized.state_dict())
    pairs["conv1.weight"]["float"], pairs["conv1.weight"]["quantized"]
    pairs = compare_model_outputs(float_model, quantized, x)
    compute_sqnr(pairs["conv1.stats"]["float"], pairs["conv1.stats"]["quantized"])

Models of the eager flow and of the graph flow alike. Everything is held in memory; qcompiler.debug.compare keeps sums alone and
takes any amount of data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.debug.metrics import compute_cosine_similarity, compute_normalized_l2_error, compute_sqnr
from qcompiler.errors import ConfigError
from qcompiler.inputs.door import door
from qcompiler.inputs.kinds import module_of
from qcompiler.quantization.ns import eager, graph
from qcompiler.quantization.ns.loggers import Logger, OutputLogger, Shadow, ShadowLogger
from qcompiler.quantization.ns.weights import pair_weights

Pairs = dict[str, dict[str, Any]]


@in_plain_torch
@door
def compare_weights(float_dict: Mapping[str, object], quantized_dict: Mapping[str, object]) -> dict[str, dict[str, Tensor]]:
    """The quantized weights beside the float ones: {"conv1.weight": {"float": tensor, "quantized": quantized tensor}}.

    Takes two state dicts, of either flow. Weights that are not quantized are left out. A weight into which a BatchNorm was
    folded differs by that from the float one: give the state_dict of `fuse_fx(model, inputs)`, or of the fused eager model.
    """
    for given in (float_dict, quantized_dict):
        if not isinstance(given, Mapping):
            raise ConfigError(f"compare_weights takes two state_dicts, not a {type(given).__name__}", code="state-kind",
                              hint="give model.state_dict()" if isinstance(given, nn.Module) else None)  # fmt: skip
    return pair_weights(float_dict, quantized_dict)


@door
def get_logger_dict(mod: nn.Module, prefix: str = "") -> dict[str, dict[str, Any]]:
    """What the loggers inside a module kept, by the path of the module that holds them: {"conv1.stats": {...}}.

    `prefix` is put before the paths.
    """
    return eager.logger_stats(module_of(mod), prefix)


@in_plain_torch
@door
def prepare_model_with_stubs(
    float_module: nn.Module, q_module: nn.Module, module_swap_list: Collection[object], logger_cls: Callable[[], nn.Module] = ShadowLogger
) -> None:
    """Swaps, in `q_module` itself, what came from float modules of the types in `module_swap_list` for Shadows.

    For the eager flow. Run it on data and read `get_logger_dict(q_module)`. Raises ConfigError in train mode, and for a model of
    the graph flow.
    """
    eager.check_modules(float_module, q_module)
    eager.put_shadows(float_module, q_module, module_swap_list, logger_cls, ExitStack())


@in_plain_torch
@door
def compare_model_stub(
    float_model: nn.Module, q_model: nn.Module, module_swap_list: Collection[Any], *data: Any, logger_cls: Callable[[], Any] = ShadowLogger
) -> Pairs:
    """Each module's own error, the float module fed as the quantized one: {"conv1.stats": {"float": [...], "quantized": [...]}}.

    `module_swap_list`: types of float modules, layers or whole blocks. `data`: the arguments of one call. Both models are left
    as they were. In the graph flow both sides get the float model's values as the quantized graph rounds them, and the outputs
    are dequantized; a layer's entry holds what was fused into it. Raises ConfigError where nothing fits the list, and in train mode.
    """
    if graph.is_compiled(q_model):
        loggers = graph.log_shadows(float_model, q_model, data, logger_cls, module_swap_list)
        return _found({f"{path}.stats": logger.stats for path, logger in loggers.items()})
    eager.check_modules(float_model, q_model)
    with ExitStack() as undo, torch.no_grad():
        eager.put_shadows(float_model, q_model, module_swap_list, logger_cls, undo)
        q_model(*data)
        return _found(get_logger_dict(q_model))


@in_plain_torch
@door
def prepare_model_outputs(
    float_module: nn.Module,
    q_module: nn.Module,
    logger_cls: Callable[[], nn.Module] = OutputLogger,
    allow_list: Collection[object] | None = None,
) -> None:
    """Puts a logger behind the modules that both models have, in the models themselves.

    For the eager flow. `allow_list`: types of float or quantized modules; default: all that were swapped, and all without parts.
    Run both on data and call get_matching_activations. Raises ConfigError in train mode, and for a model of the graph flow.
    """
    _attach(float_module, q_module, logger_cls, allow_list)


def _attach(float_module: nn.Module, q_module: nn.Module, logger_cls: Any, allow_list: Collection[Any] | None) -> ExitStack:
    eager.check_modules(float_module, q_module)
    paths = list(eager.logged_paths(float_module, q_module, allow_list))
    undo = ExitStack()
    for model in (float_module, q_module):
        undo.enter_context(eager.attach(model, paths, logger_cls))
    return undo


@door
def get_matching_activations(float_module: nn.Module, q_module: nn.Module) -> Pairs:
    """What the loggers of two models kept, in pairs: {"conv1.stats": {"float": [...], "quantized": [...]}}, an entry a call."""
    return _matching(get_logger_dict(float_module), get_logger_dict(q_module))


def _matching(floats: Mapping[str, Any], quantized: Mapping[str, Any]) -> Pairs:
    kept = {key: stats["tensor_val"] for key, stats in quantized.items() if stats["tensor_val"] and key in floats}
    return {key: {"float": floats[key]["tensor_val"], "quantized": values} for key, values in kept.items()}


@in_plain_torch
@door
def compare_model_outputs(
    float_model: nn.Module,
    q_model: nn.Module,
    *data: Any,
    logger_cls: Callable[[], Any] = OutputLogger,
    allow_list: Collection[Any] | None = None,
) -> Pairs:
    """The values of both models on the same data: {"conv1.stats": {"float": [...], "quantized": [...]}}, an entry a call.

    The difference holds the errors of all layers before. `data`: the arguments of one call. `allow_list`: as for
    prepare_model_outputs; in the graph flow types of float modules. Both models are left as they were. Raises ConfigError
    where nothing fits the list, and in train mode.
    """
    if graph.is_compiled(q_model):
        sides = graph.log_outputs(float_model, q_model, data, logger_cls, allow_list)
        return _found(_matching(*({f"{key}.stats": logger.stats for key, logger in side.items()} for side in sides)))
    with _attach(float_model, q_model, logger_cls, allow_list), torch.no_grad():
        float_model(*data)
        q_model(*data)
        return _found(get_matching_activations(float_model, q_model))


def _found(pairs: Pairs) -> Pairs:
    if not pairs:
        raise ConfigError("the two models have nothing to compare", code="nothing-to-compare",
                          hint="is the second one made from the first, and do the types given occur in it?")  # fmt: skip
    return pairs


__all__ = [
    "Logger", "OutputLogger", "Shadow", "ShadowLogger", "compare_model_outputs", "compare_model_stub", "compare_weights",
    "compute_cosine_similarity", "compute_normalized_l2_error", "compute_sqnr", "get_logger_dict", "get_matching_activations",
    "prepare_model_outputs", "prepare_model_with_stubs",
]  # fmt: skip
