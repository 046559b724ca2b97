"""What a user chose, in any form that it is taken in -> the Settings of one compile, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from qcompiler.backends import backend_of
from qcompiler.compile.pass_manager import Pass
from qcompiler.compile.rewrite import Rule
from qcompiler.compile.settings import Settings
from qcompiler.config.backend_config import as_backend_config
from qcompiler.config.custom_config import PrepareCustomConfig, as_config
from qcompiler.config.qconfig_mapping import QConfigMapping, as_mapping, get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from qcompiler.inputs.checks import check_eval, check_model, check_training
from qcompiler.ir.types import Stage
from qcompiler.ops.table import OPS, Table
from qcompiler.qat.ops import training_table
from qcompiler.stages.verify import verify
from qcompiler.target import Target


def check_float(model: nn.Module) -> None:
    """Raises for what is no float model that can be compiled, a hand-edited graph included."""
    check_model(model)
    if isinstance(model, fx.GraphModule):
        verify(model, Stage.TRACED)


class Options(TypedDict, total=False):
    """What every compile takes beside the model, its qconfigs and its data."""

    prepare_custom_config: object
    backend_config: object
    concrete_args: Mapping[str, object] | None
    strict: bool
    table: Table
    rules: Sequence[Rule]
    engine: str | None
    isa: str | None


class Choices(Options, total=False):
    """What prepare_fx and prepare_qat_fx take beside the model and its example inputs, in any form that they take it in."""

    qconfig_mapping: object
    backend: str


class QuantizeOptions(Options, total=False):
    """What `quantize` hands on to prepare_fx."""

    backend: str
    example_kwargs: Mapping[str, object] | Sequence[object] | None
    passes: Sequence[Pass]


class BenchOptions(Options, total=False):
    """What `bench` hands on to `quantize`."""

    qconfig_mapping: object
    example_kwargs: Mapping[str, object] | Sequence[object] | None
    passes: Sequence[Pass]
    progress: bool
    debug: object


class TuneOptions(Options, total=False):
    """What `autotune` compiles with."""

    qconfig_mapping: object


class FuseOptions(TypedDict, total=False):
    """What `fuse_fx` traces with."""

    concrete_args: Mapping[str, object] | None
    example_kwargs: Mapping[str, object] | None
    strict: bool


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
