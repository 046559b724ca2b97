"""The numeric suite on modules: loggers and shadows put beside the modules of a model, and taken away again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import nn

from qcompiler.errors import ConfigError, Where
from qcompiler.inputs.checks import check_eval
from qcompiler.inputs.kinds import module_of
from qcompiler.quantization.ns.graph import is_compiled
from qcompiler.quantization.ns.loggers import Logger, Shadow

INNER = "activation_post_process"  # child that FloatFunctional and QFunctional hand their results to


def check_modules(float_module: nn.Module, q_module: nn.Module) -> None:
    """Raises ConfigError for what has no modules to put a logger in, and for train mode."""
    for model in map(module_of, (float_module, q_module)):
        if is_compiled(model):
            raise ConfigError("a model of the graph flow is one program: its layers are no modules that a logger could go into",
                              code="compiled", hint="compare_model_outputs and compare_model_stub take it as it is")  # fmt: skip
        if model.training:  # torch.ao leaves parts of fused eval models in train mode, which changes nothing in them
            check_eval(model)


def logged_paths(float_module: nn.Module, q_module: nn.Module, allow_list: Collection[object] | None) -> Iterator[str]:
    """Paths in both models: of modules of the types in `allow_list`, or of those that were swapped or have no parts."""
    floats = dict(float_module.named_modules())
    for path, module in q_module.named_modules():
        base = floats.get(path)
        if base is None or not path or isinstance(module, (Logger, nn.Identity)):
            continue
        swapped = type(module) is not type(base)
        if (swapped or not any(module.children())) if allow_list is None else {type(module), type(base)} & set(allow_list):
            _check_fused(path, base, module)
            yield path


def _check_fused(path: str, base: nn.Module, module: nn.Module) -> None:
    """A fused quantized module computes what its fused float module does, not what the first part of it does."""
    made_from = getattr(type(module), "_FLOAT_MODULE", None)
    if isinstance(made_from, type) and issubclass(made_from, nn.Sequential) and not isinstance(base, made_from):
        raise ConfigError(f"{path} is a {type(module).__name__}, fused from several modules; the float model has a {type(base).__name__}",
                          code="not-fused", where=Where(module_path=path), hint="fuse_modules the float model likewise")  # fmt: skip


def attach(model: nn.Module, paths: Iterable[str], logger_cls: Callable[[], nn.Module]) -> ExitStack:
    """Puts a logger behind the modules at these paths. Closing what it returns takes them away."""
    undo = ExitStack()
    for path in paths:
        module, logger = model.get_submodule(path), logger_cls()
        if hasattr(module, "add_relu") and INNER in module._modules:
            _swap(module, INNER, logger, undo)
        else:
            undo.callback(module.register_forward_hook(_Log(logger)).remove)
    return undo


class _Log:
    """A forward hook that shows the result to a logger, which is no child: an nn.Sequential would run it as one more layer.

    A class, so that the module can be copied and saved.
    """

    def __init__(self, logger: nn.Module) -> None:
        self.logger = logger

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        self.logger(output)


def _swap(parent: nn.Module, name: str, child: nn.Module, undo: ExitStack) -> None:
    before = parent._modules.get(name)

    def restore() -> None:
        if before is None:
            parent._modules.pop(name, None)
        else:
            parent._modules[name] = before

    parent._modules[name] = child
    undo.callback(restore)


def put_shadows(
    float_module: nn.Module,
    q_module: nn.Module,
    types: Collection[object],
    logger_cls: Callable[[], nn.Module],
    undo: ExitStack,
    prefix: str = "",
) -> None:
    """Swaps each quantized module that came from a float module of these types for a Shadow of the two."""
    floats = dict(float_module.named_children())
    for name, module in list(q_module.named_children()):
        base = floats.get(name)
        if base is None:
            continue
        if type(base) not in types:
            put_shadows(base, module, types, logger_cls, undo, f"{prefix}{name}.")
        elif [type(m) for m in base.modules()] != [type(m) for m in module.modules()]:
            _check_fused(prefix + name, base, module)
            _swap(q_module, name, Shadow(module, base, logger_cls), undo)


def logger_stats(model: nn.Module, prefix: str = "") -> dict[str, dict[str, object]]:
    """The stats of every logger by the path of the module that holds it: `conv1.stats`."""
    found: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules(prefix=prefix):
        hooked = [hook.logger for hook in module._forward_hooks.values() if isinstance(hook, _Log)]
        for logger in [*hooked, *module.children()]:
            if isinstance(logger, Logger):
                found.setdefault(f"{path}.stats" if path else "stats", logger.stats)
    return found
