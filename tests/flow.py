"""The whole way of a small model, in one call, for the tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, convert_to_reference_fx, prepare_fx
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.compile.pass_manager import Context, Pass, run_passes
from qcompiler.compile.settings import Settings
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.ir.types import Stage
from qcompiler.ops.table import OPS, Table
from qcompiler.trace import TraceOptions, trace

QUANTIZED = PrepareCustomConfig().set_output_quantized_indexes([0])  # the first result is wanted in int8, so the op before it is int8
ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


@dataclass
class Flow:
    """What each step made of a model."""

    prepared: fx.GraphModule
    reference: fx.GraphModule
    module: CompiledModule


def flow(
    model: nn.Module, example: Sequence[Any], data: Sequence[Sequence[Any]] | None = None, mapping: Any = None, **options: Any
) -> Flow:
    """prepare, calibrate on `data` (default: the example), convert both ways."""
    prepared = prepare_fx(model, mapping, tuple(example), **options)
    calibrate(prepared, [tuple(item) for item in (data or [example])])
    return Flow(prepared, convert_to_reference_fx(prepared), convert_fx(prepared))


def passed(model: nn.Module, example: Sequence[Any], passes: Sequence[Pass], table: Table = OPS) -> tuple[fx.GraphModule, Context]:
    """The model traced, with every module that has a row as a leaf, and taken through some passes."""
    context = Context(Settings(table))
    traced = trace(model, tuple(example), options=TraceOptions(lambda module, path: table.module_form(module) is not None))
    return run_passes(traced.graph_module, passes, Stage.TRACED, context), context


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with BatchNorm statistics such that folding them shows."""
    generator = seeded(seed)
    for module in model.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if mean is not None and var is not None:
            mean.copy_(torch.randn(mean.shape, generator=generator) * 0.1)
            var.copy_(torch.rand(var.shape, generator=generator) + 0.5)
    return model.eval()


def fingerprint(model: nn.Module) -> str:
    """A hash of everything that compiling must not change: state, training flags, hooks, attribute names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {id(value)} {value.requires_grad}".encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        digest.update(f"{name} {type(module).__name__} {module.training} {hooks} {sorted(module.__dict__)}".encode())
    return digest.hexdigest()


def targets(graph: fx.Graph) -> list[str]:
    """The names of what a graph calls, in order."""
    return [getattr(n.target, "__name__", str(n.target)) for n in graph.nodes if n.op.startswith("call_")]


def max_difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
