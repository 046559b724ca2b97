"""What comes before the first pass: the Settings of a compile, and the model as a TRACED graph."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._pytree import tree_map_only

from qcompiler.backend_config import as_backend_config
from qcompiler.backends import backend_of
from qcompiler.checks import check_eval, check_examples, check_model, check_training
from qcompiler.custom_config import PrepareCustomConfig, as_config
from qcompiler.errors import ConfigError, Where
from qcompiler.ir.types import ONLY_CHILD, SOURCE, Stage, source_of
from qcompiler.journal import Remark
from qcompiler.ops.decompositions import DECOMPOSE
from qcompiler.ops.state_nodes import held_names
from qcompiler.ops.table import OPS, Table
from qcompiler.pass_manager import Context
from qcompiler.qat.ops import training_table
from qcompiler.qconfig_mapping import QConfigMapping, as_mapping, get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from qcompiler.rewrite import Rule
from qcompiler.settings import Settings
from qcompiler.stages.verify import verify
from qcompiler.target import Target
from qcompiler.trace import fold_parametrizations, trace
from qcompiler.trace.parametrize import is_computed


def check_float(model: nn.Module) -> None:
    """Raises for what is no float model that can be compiled, a hand-edited graph included."""
    check_model(model)
    if isinstance(model, fx.GraphModule):
        verify(model, Stage.TRACED)


class Choices(TypedDict, total=False):
    """What prepare_fx and prepare_qat_fx take beside the model and its example inputs, in any form that they take it in."""

    qconfig_mapping: object
    prepare_custom_config: object
    backend_config: Any
    concrete_args: Mapping[str, Any] | None
    strict: bool
    table: Table
    rules: Sequence[Rule]
    backend: str
    engine: str | None
    isa: str | None


def settings_for(model: nn.Module, trains: bool = False, **choices: Unpack[Choices]) -> Settings:
    """The settings of one compile, checked against the model, which is in train mode if `trains`. Raises ConfigError."""
    check_float(model)
    (check_training if trains else check_eval)(model)
    custom = as_config(choices.get("prepare_custom_config"), PrepareCustomConfig)
    custom.check(model)
    target = backend_of(choices.get("backend", "torch")).target(choices.get("engine"), choices.get("isa"))
    table = choices.get("table", OPS)
    return Settings(
        table=training_table(table) if trains else table,
        mapping=_mapping(model, choices.get("qconfig_mapping"), target, trains),
        module_types={name: type_before_parametrizations(module) for name, module in model.named_modules()},
        target=target,
        rules=tuple(choices.get("rules", ())),
        strict=choices.get("strict", False),
        trains=trains,
        custom=custom,
        backend_config=as_backend_config(choices.get("backend_config")),
        concrete_args=choices.get("concrete_args"),
    )


def _mapping(model: nn.Module, given: object, target: Target, trains: bool) -> QConfigMapping:
    """The mapping that was given, or the target's default, with the modules' own `.qconfig`; it names only what the model has."""
    default = get_default_qat_qconfig_mapping if trains else get_default_qconfig_mapping
    mapping = (as_mapping(given) if given is not None else default(target.qconfigs)).with_attributes(model)
    mapping.check_names(name for name, _ in model.named_modules())
    return mapping


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
    inputs = tree_map_only(torch.Tensor, lambda x: x.clone() if x.is_inference() else x, check_examples(example_inputs))
    copied = _plain_parameters(model, context)
    alone, is_leaf = _is_one_leaf(copied, context), _is_leaf(context.table, context.settings.custom)
    found = trace(_Parent(copied) if alone else copied, inputs, example_kwargs, is_leaf=is_leaf, decompose=DECOMPOSE,
                  concrete_args=context.settings.concrete_args, strict=context.settings.strict, trains=context.trains)  # fmt: skip
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
