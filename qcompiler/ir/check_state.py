"""load_state_dict on a model with integer tensors: what does not fit is refused before anything is changed.

torch casts what it loads. A float checkpoint in an int8 module would become zeros, int8 codes in a float model weights of -128 to 127.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import ConfigError, Where
from qcompiler.ir.check_qparams import CODES, HINT, scale_fault, zero_point_fault

BYTES = (torch.int8, torch.uint8)
INTEGERS = (*BYTES, torch.int16, torch.int32, torch.int64)
FLOAT_GIVEN = "a checkpoint of the float model goes into that: load it there, and quantize again"
CODES_GIVEN = "this is the state of an int8 module: load it into one that was converted in the same way"


def check_state(module: nn.Module, state_dict: Mapping[str, Any], prefix: str = "", assign: bool = False) -> None:
    """Raises ConfigError naming the first tensor of `state_dict` that does not fit `module`, whose names start with `prefix`.

    Checked are dtypes, shapes (where the module does not take others), scales and zero points. A module's class may say more:
    `_resizes(name, value)`, whether a tensor may take that shape; `_as_ours(state_dict, prefix)`, the state with the names and
    tensors that the module has; `_check_own(state_dict, prefix)`, for state in no tensor; `_fixed_dtypes`: float16
    tensors stay float16, and with `assign` all keep their dtype.
    """
    if not isinstance(state_dict, Mapping):
        hint = "give model.state_dict()" if isinstance(state_dict, nn.Module) else None
        raise ConfigError(f"a state_dict is a dict of tensors, not a {type(state_dict).__name__}", code="state-kind", hint=hint)
    for path, part in module.named_modules(remove_duplicate=False):
        start = f"{prefix}{path}." if path else prefix
        state = part._as_ours(state_dict, start) if hasattr(part, "_as_ours") else state_dict
        for name, held in _persistent(part):
            given = state.get(start + name, held)
            if given is not None and (fault := _fault(part, name, held, given, assign)) is not None:
                text, code, hint = fault
                raise ConfigError(f"{start}{name}: {text}", code=code, where=Where(module_path=start[:-1] or None), hint=hint)
        if hasattr(part, "_check_own"):
            part._check_own(state, start)


def check_before_load(module: nn.Module, state_dict: Mapping[str, object], prefix: str, metadata: object, *rest: object) -> None:
    """`check_state` as a load_state_dict_pre_hook: of a root, it sees the whole model before any part is changed."""
    check_state(module, state_dict, prefix, assigns(metadata))


def guard_loading(root: nn.Module) -> None:
    """Makes `root` check what it is given to load, once."""
    if len(_hooks(root)) == len(root._load_state_dict_pre_hooks):
        root.register_load_state_dict_pre_hook(check_before_load)


def _hooks(module: nn.Module) -> list[object]:
    """What else runs before the module loads; it may rename or reshape."""
    return [h for h in module._load_state_dict_pre_hooks.values() if getattr(h, "hook", h) is not check_before_load]


def assigns(metadata: Any) -> bool:
    """Whether load_state_dict was called with assign=True, from the metadata that it hands on."""
    return bool((metadata or {}).get("assign_to_params_buffers", False))


def _persistent(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, held in (*module._parameters.items(), *module._buffers.items()):
        lazy = isinstance(held, (nn.UninitializedParameter, nn.UninitializedBuffer))
        if held is not None and not lazy and name not in module._non_persistent_buffers_set:
            yield name, held


def _fault(module: nn.Module, name: str, held: Tensor, given: object, assign: bool) -> tuple[str, str, str | None] | None:
    """(text, code, hint) of what is wrong with a tensor."""
    if not isinstance(given, Tensor) or given.layout is not torch.strided:
        kind = f"a {given.layout} tensor" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        return f"{kind} is given, a plain tensor is held", "weight-kind", None
    exact = getattr(module, "_fixed_dtypes", False) and (assign or held.dtype is torch.float16)
    if not _takes(held.dtype, given, exact):
        hint = FLOAT_GIVEN if held.dtype in BYTES else CODES_GIVEN if given.dtype in INTEGERS or given.is_quantized else None
        return f"a {given.dtype} tensor is given, {held.dtype} is held", "weight-dtype", hint
    if not _fits(module, name, held, given):
        return f"size mismatch: shape {tuple(given.shape)} is given, {tuple(held.shape)} is held", "weight-shape", None
    of_codes = name == "bias" and module._buffers.get("weight_scale") is not None
    if of_codes and not given.is_meta and not bool(torch.isfinite(given).all()):  # int8 kernels round what comes of it to plain numbers
        return "it holds NaN or inf", "bad-weight", "look at the checkpoint it was loaded from"
    text = "" if given.is_meta else _qparams_fault(module, name, given)
    return (text, "qparams", HINT) if text else None


def fault_of(module: nn.Module, name: str, held: Tensor, given: object) -> tuple[str, str, str | None] | None:
    """(text, code, hint) of what is wrong with a tensor that was assigned to a module's `name`, in place of `held`; None if it fits."""
    return _fault(module, name, held, given, True)


def _takes(held: torch.dtype, given: Tensor, exact: bool) -> bool:
    if given.is_quantized or given.dtype is held:
        return given.dtype is held
    codes_for_floats = held.is_floating_point and given.dtype in INTEGERS  # biases have codes of 32 bits elsewhere
    is_flag = torch.bool in (given.dtype, held)
    return not exact and held not in BYTES and not codes_for_floats and not is_flag and torch.can_cast(given.dtype, held)


def _fits(module: nn.Module, name: str, held: Tensor, given: Tensor) -> bool:
    if given.shape == held.shape or (not held.dim() and given.shape == (1,)):  # torch takes one element for none
        return True
    resizes: Any = getattr(module, "_resizes", None)
    if resizes is not None:
        return bool(resizes(name, given))
    own = type(module)._load_from_state_dict is not nn.Module._load_from_state_dict
    return own or bool(_hooks(module))  # which may resize


def _qparams_fault(module: nn.Module, name: str, given: Tensor) -> str:
    """Scales and zero points by their names: `weight_scale` and `weight_zero_point` go with `weight`."""
    for kind in ("zero_point", "scale"):
        before, found, after = name.rpartition(kind)
        other = {"zero_point": "scale", "scale": "zero_point"}[kind]
        if not found or module._buffers.get(f"{before}{other}{after}") is None or name not in module._buffers:
            continue
        if kind == "scale":
            return scale_fault(given)
        of = module._buffers.get(before.removesuffix("_"))
        dtype = of.dtype if of is not None else getattr(module, "dtype", torch.uint8)
        return zero_point_fault(given, dtype) if dtype in CODES else ""
    return ""
