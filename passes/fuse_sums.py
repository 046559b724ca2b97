"""Residual sums become part of the convolution before them, where the back end has such a kernel and its config asks for it.

It stands behind calibration: what stays float is known by then, a transformer's residuals among it, and `convert_fx(keep_float=...)` finds
the range of the convolution as well as that of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.types import Stage
from qcompiler.patterns import residual


@dataclass(frozen=True)
class FuseSums:
    name: str = "fuse_sums"
    stage: Stage = Stage.OBSERVED
    required: bool = False
    per_match: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        config = context.settings.backend_config
        if context.trains or config is None or not config.has("conv2d_add", "ConvAdd2d") or not context.target.adds_inside:
            return False
        return bool(context.apply_rules(gm, (residual.RULE,)))
