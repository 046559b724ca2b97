"""Weights that are loaded into a compiled module: a kernel that adds in 16 bits was chosen since these could not overflow it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from qcompiler.backends.torch.conv import saturation
from qcompiler.backends.torch.depthwise import safe_weight
from qcompiler.codegen.program import Program
from qcompiler.codegen.values import Const
from qcompiler.errors import ConfigError

PACKS = {"runtime.prepack_conv2d": "conv2d", "runtime.prepack_conv3d": "conv3d"}
SETTINGS = ("stride", "padding", "dilation", "groups")  # the arguments of a pack behind weight, scale, zero point and bias


def check_sums(program: Program, engine: str, given: Callable[[str], Tensor | None]) -> None:
    """Raises ConfigError naming a depthwise weight, of those that `given` has, whose codes could overflow its kernel's sums."""
    for call in program.once:
        name, weight = PACKS.get(call.op), call.args[0] if call.args else None
        codes = given(weight.name) if name is not None and isinstance(weight, Const) else None
        if codes is None:
            continue
        settings = dict(zip(SETTINGS, call.args[4:8], strict=False))
        pairs = saturation(str(name), tuple(codes.shape), settings, engine, program.isa) == "pairs"
        if pairs and not safe_weight(codes):
            assert isinstance(weight, Const)
            raise ConfigError(f"{weight.name}: neighbouring codes of this depthwise weight add up to more than 128, which {engine}'s "
                              "kernel for it cannot hold in 16 bits", code="weight-sums",
                              hint="load the state of a model that was converted for this engine")  # fmt: skip
