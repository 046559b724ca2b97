"""Model and Settings -> TRACED: what is a leaf, what is copied first, and the remarks of the trace."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map_only

from qcompiler.compile.journal import Remark
from qcompiler.compile.pass_manager import Context
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.errors import ConfigError, Where
from qcompiler.inputs.checks import check_examples, check_named
from qcompiler.ir.types import ONLY_CHILD, SOURCE, source_of
from qcompiler.ops.decompositions import DECOMPOSE
from qcompiler.ops.state_nodes import held_names
from qcompiler.ops.table import Table
from qcompiler.trace import TraceOptions, fold_parametrizations, trace
from qcompiler.trace.parametrize import is_computed


def _is_leaf(table: Table, custom: PrepareCustomConfig) -> Any:
    def leaf(module: nn.Module, path: str) -> bool:
        if table.module_form(module) is not None or custom.is_whole(module, path):
            return True
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
                      nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # fmt: skip
        return type(module).__module__.startswith("torch.nn") and not isinstance(module, containers) and type(module) not in DECOMPOSE

    return leaf


def _copied(model: nn.Module, copied: Callable[[nn.Module], nn.Module]) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:  # whatever the model's attributes raise
        hint = "copy.deepcopy(model) must work: locks, open files and tensors with a gradient history cannot be copied"
        raise ConfigError(f"the model cannot be copied: {type(error).__name__}: {error}", code="model-copy", hint=hint) from error


class _Parent(nn.Module):
    """Holds a model that is one leaf module, such as an LSTM: a trace starts above it, since its own forward cannot be followed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layer = model
        self.forward = functools.wraps(model.forward)(lambda *args, **kwargs: self.layer(*args, **kwargs))


def _is_one_leaf(model: nn.Module, context: Context) -> bool:
    """Whether it is one layer whose own forward cannot be followed: it calls a kernel with lists, or changes statistics in place."""
    found = context.table.module_form(model)
    if found is None or found[1].refuse(model) is not None:
        return False
    return bool(found[1].lists(model)) or (context.trains and bool(found[1].live))


def _name_as_root(gm: fx.GraphModule) -> None:
    gm.meta[ONLY_CHILD] = "layer"
    for node in gm.graph.nodes:
        source = source_of(node)
        if source.module_path == "layer":
            node.meta[SOURCE] = replace(source, module_path="")


def traced(
    model: nn.Module, example_inputs: object, context: Context, example_kwargs: Mapping[str, object] | None = None
) -> fx.GraphModule:  # fmt: skip
    """The TRACED graph of a copy of the model, followed with the arguments of one call. What was noted becomes remarks."""
    _refuse_state(model)
    check_named(example_kwargs, "example_kwargs")
    check_named(context.settings.concrete_args, "concrete_args")
    inputs = tree_map_only(torch.Tensor, lambda x: x.clone() if x.is_inference() else x, check_examples(example_inputs))
    copied = _plain_parameters(model, context)
    alone, is_leaf = _is_one_leaf(copied, context), _is_leaf(context.table, context.settings.custom)
    options = TraceOptions(is_leaf, DECOMPOSE, context.settings.strict, context.trains)
    found = trace(
        _Parent(copied) if alone else copied, inputs, example_kwargs, options=options, concrete_args=context.settings.concrete_args
    )
    for note in found.remarks:
        context.journal.remarks.append(Remark("trace", note.kind, note.reason, note.where, note.where.node))
    if alone:
        _name_as_root(found.graph_module)
    elif context.trains:
        _remark_unreached(copied, found.graph_module, context)
    return found.graph_module


def _refuse_state(model: nn.Module) -> None:
    """A graph of this compiler that reads and writes state is no model any more: nobody knows where its state began."""
    for path, module in model.named_modules():
        if isinstance(module, fx.GraphModule) and (names := held_names(module)):
            text = f"this graph keeps {', '.join(names)} between calls, as it was traced to"
            raise ConfigError(text, code="graph-state", where=Where(module_path=path), hint="give the model that it was traced from")


def _plain_parameters(model: nn.Module, context: Context) -> nn.Module:
    """A copy whose weights are parameters of their own: what int8 holds, and what training moves."""
    computed = [path for path, module in model.named_modules() if is_computed(module)]
    for path in computed if context.trains else ():
        text = "its parametrized weights (weight_norm and the like) are trained as plain parameters"
        context.journal.remarks.append(Remark("trace", "parametrization", text, Where(module_path=path)))
    return _copied(model, fold_parametrizations if computed else copy.deepcopy)


def _remark_unreached(model: nn.Module, gm: fx.GraphModule, context: Context) -> None:
    """The parameters that the traced forward does not use, and so does not train."""
    reached = {id(parameter) for parameter in gm.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in reached:
            text = "this parameter takes no part in the traced forward: training will not move it"
            context.journal.remarks.append(Remark("trace", "parameter-unused", text, Where(module_path=name)))
