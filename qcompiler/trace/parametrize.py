"""Weights that are computed from other tensors in each forward are computed once."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import remove_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def fold_parametrizations(model: nn.Module) -> nn.Module:
    """A copy of a model whose parametrized weights (weight_norm, spectral_norm, own parametrizations) are plain parameters.

    Both the hook form and the parametrization form are folded; values are those that the model's forward would use next.
    """
    memo = {id(value): value.detach().clone() for value in _computed(model)}
    folded: nn.Module = copy.deepcopy(model, memo)
    for module in list(folded.modules()):
        _fold_hooks(module)
        if parametrize.is_parametrized(module):
            shared = type(module)  # made by torch for the original; removal deletes its properties, so the copy gets its own
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                _fold(module, name)
    return folded


def _fold(module: nn.Module, name: str) -> None:
    """One computed tensor as a parameter, if one of its originals is. Of several (weight_norm's) torch makes a buffer, without gradients,
    where they are off: no optimizer would find that. The originals are copied first, for torch writes the value into a single one, which
    another module may use as it is."""
    held: nn.Module = module.parametrizations[name]  # type: ignore[index, assignment]
    for key, tensor in held.named_parameters(recurse=False):
        held.register_parameter(key, nn.Parameter(tensor.detach().clone(), tensor.requires_grad))
    originals = list(held.parameters(recurse=False))
    remove_parametrizations(module, name, leave_parametrized=True)
    if originals and name in module._buffers:
        value = getattr(module, name).detach().clone()
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(value, requires_grad=any(o.requires_grad for o in originals)))


def is_computed(module: nn.Module) -> bool:
    """Whether a module computes some of its weights from other parameters."""
    hooked = any(isinstance(hook, WeightNorm | SpectralNorm) for hook in module._forward_pre_hooks.values())
    return hooked or parametrize.is_parametrized(module)


def _computed(model: nn.Module) -> list[torch.Tensor]:
    """Tensors that a hook computed with gradients: deepcopy refuses them."""
    return [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and v.grad_fn is not None]


def _fold_hooks(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the hook forms are deprecated; models still use them
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
