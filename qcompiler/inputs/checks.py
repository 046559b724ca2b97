"""Refuses models and inputs that cannot be compiled, before anything is changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from qcompiler.errors import ConfigError, InputError, NumericsError, Where
from qcompiler.inputs.input_text import refuse_arrays
from qcompiler.inputs.kinds import module_of, refuse_kind, refuse_kinds

MARK = "_qcompiler_stage"  # "prepared" or "converted", on the modules that the API returns


def check_model(model: Any) -> None:
    """Raises for what is no float CPU model in eval mode; names the parameter or module."""
    module_of(model)
    for path, module in model.named_modules():
        stage = getattr(module, MARK, None) or _eager_stage(type(module))
        if stage is not None:
            raise ConfigError(f"{path or 'this model'} is already {stage}", code=f"already-{stage}", where=Where(module_path=path or None),
                              hint="start from the float model")  # fmt: skip
    for name, tensor in _tensors(model):
        _check_tensor(name, tensor)
    for path, module in model.named_modules():
        _check_statistics(path, module)
    devices = {str(t.device): name for name, t in reversed(list(_tensors(model)))}  # with the first of each
    if devices and list(devices) != ["cpu"]:
        places = ", ".join(f"{device} ({devices[device]})" for device in sorted(devices))
        raise ConfigError(f"the model is on {places}", code="device", hint="int8 kernels run on the CPU: model.cpu() first")


STUBS = ("QuantStub", "DeQuantStub", "QuantWrapper", "FloatFunctional", "FXFloatFunctional")  # float modules of eager flows


def _eager_stage(cls: type[nn.Module]) -> str | None:
    """What eager quantization, torch's own or ours, made of a module, by the package of its class."""
    package = cls.__module__
    if cls.__name__ in STUBS:
        return None
    if package.startswith("qcompiler.nn."):
        return "quantized" if "quantized" in package else None
    if not package.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic.quantized")):
        return None
    return "prepared" if package.startswith("torch.ao.quantization.") else "quantized" if "quantized" in package else None


def check_eval(model: nn.Module) -> None:
    """Raises ConfigError in train mode, naming the layers that would behave differently."""
    behaves = [(n, m) for n, m in model.named_modules() if not _only_passes_on(m)]
    training = [(n or "the model itself", type(m).__name__) for n, m in behaves if m.training]
    if training:
        telling = [f"{n} ({t})" for n, t in training if "Norm" in t or "Drop" in t] or [f"{n} ({t})" for n, t in training]
        more = f" and {len(telling) - 5} more" if len(telling) > 5 else ""
        raise ConfigError(f"the model is in train mode: {', '.join(telling[:5])}{more}", code="train-mode", hint="call model.eval() first")


def _only_passes_on(module: nn.Module) -> bool:
    """Whether a module computes nothing of its own that could depend on its mode: containers, and the graphs of torch.fx, whose calls
    are written down (torch.fx makes the modules around their parts anew, in train mode)."""
    forward = inspect.getattr_static(type(module), "forward", None)  # of a script it is no function
    written = isinstance(module, fx.GraphModule) or type(module).__module__.startswith("torch.export")
    return written or forward in (nn.Sequential.forward, inspect.getattr_static(nn.Module, "forward"))


def check_training(model: nn.Module) -> None:
    """Raises ConfigError for a model in eval mode: what is not trained needs no quantization-aware training."""
    if not model.training:
        raise ConfigError("the model is in eval mode", code="eval-mode",
                          hint="call model.train() first; parts that shall stay frozen may be in eval mode")  # fmt: skip


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _check_tensor(name: str, t: torch.Tensor) -> None:
    place = Where(module_path=name)
    refuse_kind(name, t, place)
    if t.is_quantized:
        raise ConfigError(f"{name} is quantized already", code="already-quantized", where=place, hint="start from the float model")
    if t.is_complex() and t.dtype is not torch.complex64:
        raise ConfigError(f"{name} is {t.dtype}, expected complex64", code="weight-dtype", where=place,
                          hint="convert it with .to(torch.complex64) first")  # fmt: skip
    if isinstance(t, nn.Parameter) and not (t.is_floating_point() or t.is_complex()):
        raise ConfigError(f"parameter {name} is {t.dtype}, expected float32", code="weight-dtype", where=place)
    if t.is_floating_point() and t.dtype is not torch.float32:
        raise ConfigError(
            f"{name} is {t.dtype}, expected float32", code="weight-dtype", where=place, hint="convert with model.float() first"
        )
    if t.is_floating_point() and not bool(torch.isfinite(t).all()) and not _is_mask(name, t):
        raise NumericsError(f"{name} holds NaN or inf", code="bad-weight", where=place, hint="look at the checkpoint it was loaded from")


def _is_mask(name: str, t: torch.Tensor) -> bool:
    """-inf in a buffer that is no statistic: what softmax shall not see."""
    known = isinstance(t, nn.Parameter) or name.rpartition(".")[2].startswith("running_")
    return not known and not bool(torch.isnan(t).any())


def _check_statistics(path: str, module: object) -> None:
    """A BatchNorm's variance must not be negative, and above zero with its eps, whether it is folded or not."""
    var, eps = getattr(module, "running_var", None), getattr(module, "eps", None)
    if isinstance(var, torch.Tensor) and isinstance(eps, float) and not bool(((var >= 0) & (var.double() + eps > 0)).all()):
        raise NumericsError(f"the running variance of {path or 'the model'} is negative, or zero without eps", code="bad-batch-norm",
                            where=Where(module_path=path or None), hint="untrained, or a damaged checkpoint")  # fmt: skip


def check_whole(value: object, what: str, least: int | None = None) -> None:
    """Raises ConfigError for what is no int, or a smaller one."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        more = "" if least is None else f" from {least}"
        raise ConfigError(f"{what} is a whole number{more}, not {value!r:.40}", code="setting")


def check_named(arguments: object, what: str) -> None:
    """Raises ConfigError for arguments by name that are no dict with names as keys."""
    if arguments is not None and not (isinstance(arguments, Mapping) and all(isinstance(name, str) for name in arguments)):
        raise ConfigError(f"{what} must be a dict of arguments by their names, got {type(arguments).__name__}", code="named-arguments")


def check_examples(example_inputs: object) -> tuple[Any, ...]:
    """The example inputs as a tuple of arguments."""
    refuse_arrays(example_inputs, "example inputs")
    refuse_kinds(example_inputs, "an example input")
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if not isinstance(example_inputs, (tuple, list)):
        raise InputError(
            f"example_inputs must be a tuple of the forward's arguments, got {type(example_inputs).__name__}", code="example-inputs"
        )
    return tuple(example_inputs)
