"""What kind of module and of tensor is handed in: one check for every door. What holds no values, or not as a plain tensor, is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from qcompiler.errors import ConfigError, UnsupportedOpError, Where

PLAIN = (torch.Tensor, nn.Parameter)
ORIGINAL = "_orig_mod"  # where torch.compile's module keeps the one that it was made of
PYTHON_MODULE = "give the Python module that it was made of: nothing else says what is a layer"


def is_compiled(module: object) -> bool:
    """Whether torch.compile made this module: it has the parameters of another one, and a forward that cannot be followed."""
    return isinstance(module, nn.Module) and ORIGINAL in module._modules and type(module).__module__.startswith("torch._dynamo")


def module_of(model: Any) -> nn.Module:
    """The module to work on: of a compiled one, the module that it was made of.

    Raises ConfigError for what is no module, and for programs (TorchScript, torch.export), which have no layers any more.
    """
    while is_compiled(model):
        model = model._modules[ORIGINAL]
    kind = type(model)
    if kind.__module__.startswith("torch.export") or (isinstance(model, fx.GraphModule) and _of_aten(model)):
        raise ConfigError(f"this {kind.__name__} is a program of torch.export", code="exported-program", hint=PYTHON_MODULE)
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ConfigError(f"this {kind.__name__} is a TorchScript program", code="scripted-module", hint=PYTHON_MODULE)
    if not isinstance(model, nn.Module):
        hint = "give an instance: Model()" if isinstance(model, type) else None
        raise ConfigError(f"expected a torch.nn.Module, got {kind.__name__}", code="not-a-module", hint=hint)
    return model


def _of_aten(gm: fx.GraphModule) -> bool:
    return any(isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten" for node in gm.graph.nodes)


def check_kinds(model: nn.Module) -> None:
    """Raises for the first parameter or buffer that is no plain dense tensor with values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        refuse_kind(name, tensor, Where(module_path=name))


def refuse_kinds(arguments: object, what: str) -> None:
    """Raises for the first tensor among the arguments of a call, in containers of any depth, that is no plain one with values."""
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, torch.Tensor):
            refuse_kind(what, leaf)


def refuse_kind(name: str, tensor: torch.Tensor, where: Where | None = None) -> None:
    """ConfigError for a tensor without values (lazy, fake, meta), UnsupportedOpError for one that is not plain and dense."""
    kind = type(tensor)
    if is_lazy(tensor):
        raise ConfigError(f"{name} belongs to a lazy module that has not seen data: it has no shape yet", code="lazy-module", where=where,
                          hint="call the model once on an example, then compile it")  # fmt: skip
    if kind.__module__.startswith("torch._subclasses") or (kind in PLAIN and tensor.is_meta):
        text = f"{name} is a {'meta' if kind in PLAIN else 'fake'} tensor: its weights are not materialized"
        raise ConfigError(text if where else text.replace("its weights are not materialized", "it holds no values"), code="meta-tensor",
                          where=where, hint="make the model with real tensors" if where else "give real tensors")  # fmt: skip
    if tensor.is_nested or tensor.layout is not torch.strided:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").strip("_")
        raise UnsupportedOpError(f"{name} is not a plain dense tensor ({layout})", code="tensor-layout", where=where,
                                 hint="give to_padded_tensor(...) and a mask" if tensor.is_nested else "give x.to_dense()")  # fmt: skip
    if kind not in PLAIN:
        raise UnsupportedOpError(f"{name} is a {kind.__name__}, a subclass of torch.Tensor", code="tensor-subclass", where=where,
                                 hint="what a subclass does at each op cannot be compiled: give x.as_subclass(torch.Tensor)")  # fmt: skip
