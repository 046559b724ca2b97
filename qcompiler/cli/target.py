"""What the commands say of the target: the back end, its engine and its instruction set."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypedDict

import typer

import qcompiler
from qcompiler.backends import backend_of
from qcompiler.config.qconfig_mapping import QConfigMapping


class Engine(StrEnum):
    x86 = "x86"
    onednn = "onednn"
    fbgemm = "fbgemm"
    qnnpack = "qnnpack"


Backend = Annotated[str, typer.Option(help="Which back end compiles it: torch, or another one that is registered.")]
EngineOption = Annotated[Engine | None, typer.Option(help="Whose kernels will run it, of the torch back end. Default: x86.")]


class TargetOptions(TypedDict):
    """What the commands say of the target, as prepare_fx takes it."""

    backend: str
    engine: str | None
    isa: str | None


def target_options(backend: str, engine: Engine | None, isa: str | None = None) -> TargetOptions:
    """The options; the torch back end's engine is x86 unless another one is named."""
    chosen = engine or (Engine.x86 if backend == "torch" else None)
    return {"backend": backend, "engine": chosen.value if chosen is not None else None, "isa": isa}


def mapping_for(target: TargetOptions, keep_float: list[str] | None) -> QConfigMapping:
    """The target's default mapping, but for modules that stay float."""
    mapping = qcompiler.get_default_qconfig_mapping(backend_of(target["backend"]).target(target["engine"], target["isa"]).qconfigs)
    for path in keep_float or ():
        mapping = mapping.set_module_name(path, None)
    return mapping
