"""What a compiled module wants of a state_dict besides tensors that fit: its names, and weights that its kernels can add."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from qcompiler.backends.torch.kernels.conv import saturation
from qcompiler.backends.torch.kernels.depthwise import safe_weight
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import Call
from qcompiler.backends.torch.program.values import Const
from qcompiler.errors import ConfigError
from qcompiler.ir.check_qparams import HINT, scale_fault, zero_point_fault
from qcompiler.ir.nested import Ref
from qcompiler.ops.spec import Family

PACKS = ("runtime.prepack_conv2d", "runtime.prepack_conv3d")  # of depthwise kernels, among others
SETTINGS = ("stride", "padding", "dilation", "groups")  # the arguments of a pack behind weight, scale, zero point and bias


def check_sums(program: Program, engine: str, given: Callable[[str], Tensor | None]) -> None:
    """Raises ConfigError naming a depthwise weight, of those that `given` has, whose codes could overflow its kernel's sums.

    A kernel that adds in 16 bits was chosen since the weights, as they were, could not.
    """
    for call in program.once:
        weight = call.args[0] if call.args else None
        codes = given(weight.name) if call.op in PACKS and isinstance(weight, Const) else None
        if codes is None:
            continue
        settings = dict(zip(SETTINGS, call.args[4:8], strict=False))
        pairs = saturation(Family.CONVOLUTION, tuple(codes.shape), settings, engine, program.isa) == "pairs"
        if pairs and not safe_weight(codes):
            assert isinstance(weight, Const)
            raise ConfigError(f"{weight.name}: neighbouring codes of this depthwise weight add up to more than 128, which {engine}'s "
                              "kernel for it cannot hold in 16 bits", code="weight-sums",
                              hint="load the state of a model that was converted for this engine")  # fmt: skip


def check_names(program: Program, held: Sequence[str], state_dict: Mapping[str, object]) -> None:
    """Raises ConfigError where names are missing or unknown, but for those of float submodules, which may rename theirs in loading."""
    leaves = tuple(f"{leaf}." for leaf in program.leaves)
    known = dict.fromkeys(held)
    missing = [name for name in held if name not in state_dict and not name.startswith(leaves)]
    unknown = [name for name in state_dict if name not in known and not name.startswith(leaves)]
    if missing or unknown:
        text = "; it ".join(f"{what} {_listed(names)}" for what, names in (("misses", missing), ("has beside them", unknown)) if names)
        raise ConfigError(f"the state_dict has not the names of this {program.name}: it {text}", code="state-names",
                          hint="load_state_dict(state, strict=False) takes what fits")  # fmt: skip


def check_qparams(module: nn.Module, names: tuple[str, str]) -> None:
    """Raises ConfigError for activation parameters that no quantized tensor has: they stand in the source as numbers."""
    scales, zero_points = (module._buffers[name] for name in names)
    assert scales is not None and zero_points is not None
    text = scale_fault(scales) or ("" if zero_points.dtype is torch.int64 else f"zero points are int64, not {zero_points.dtype}")
    text = text or zero_point_fault(zero_points, torch.uint8)
    if text:
        raise ConfigError(f"{names[0]}, {names[1]}: {text}", code="qparams", hint=HINT)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def recurrent_fault(program: Program, given: Callable[[str], Tensor | None]) -> str:
    """What is wrong with the sizes that a recurrent layer is called with: kernels read states and rows as wide as the program says."""
    made = {call.out: call for call in program.once}
    for call in program.calls:
        if not call.op.startswith("runtime.") or not call.op.endswith("_dynamic"):
            continue
        args = dict(zip(registry.parameter_names(call.op), call.args, strict=False))
        cells = args["cells"] if "cells" in args else [(args.get("pack_ih"), args.get("pack_hh"))]
        directions = 2 if args.get("bidirectional") is True else 1
        gates = next(n for kind, n in GATES.items() if call.op.startswith(f"runtime.{kind}"))
        hidden, wide = args.get("hidden_size"), args.get("input_size")
        for number, cell in enumerate(cells if isinstance(cells, (list, tuple)) else ()):
            ih, hh = (_shape(part, given) for part in _weights(cell, made))
            rows = wide if number < directions else None if not isinstance(hidden, int) else directions * hidden
            if ih is None or hh is None or hh != (gates * hh[1], hidden) or ih[0] != hh[0] or (rows and ih[1] != rows):
                return f"the sizes of a recurrent layer ({call.out}) are not those of its weights"
    return ""


GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def _weights(cell: object, made: Mapping[str | None, Call]) -> tuple[object, object]:
    """What holds the weights of the input and of the state: the constants that a cell, or its two packs, are made of."""
    if isinstance(cell, tuple):
        parts = [made[ref.name].args[0] if isinstance(ref, Ref) and ref.name in made else None for ref in cell]
        return parts[0], parts[1]
    call = made.get(cell.name) if isinstance(cell, Ref) else None
    args = dict(zip(registry.parameter_names(call.op), call.args, strict=False)) if call is not None else {}
    return args.get("w_ih"), args.get("w_hh")


def _shape(weight: object, given: Callable[[str], Tensor | None]) -> tuple[int, ...] | None:
    tensor = given(weight.name) if isinstance(weight, Const) else None
    return tuple(tensor.shape) if tensor is not None and tensor.dim() == 2 else None
