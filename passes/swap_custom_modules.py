"""Custom modules: the user's own triple float -> observed -> quantized, each kept as one call.

observe_custom_modules: a float module becomes observed_class.from_float(module). quantize_custom_modules: an observed one becomes
quantized_class.from_observed(module), which takes and gives quint8 tensors; the lowering that follows hands it those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.errors import ConfigError
from qcompiler.ir.types import Stage, quant_of
from qcompiler.ir.verify import where


def _calls(gm: fx.GraphModule, classes: Any) -> list[tuple[fx.Node, Any]]:
    """The int8 calls of modules of these classes."""
    calls = [(n, gm.get_submodule(str(n.target))) for n in gm.graph.nodes if n.op == "call_module" and quant_of(n).int8]
    return [(node, module) for node, module in calls if classes is None or type(module) in classes]


def _swap(gm: fx.GraphModule, node: fx.Node, new: Any, maker: str) -> None:
    if new is None:
        raise ConfigError(f"{maker} returned None", code="custom-module", where=where(node))
    gm.set_submodule(str(node.target), new)


@dataclass(frozen=True)
class ObserveCustomModules:
    name: str = "observe_custom_modules"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        classes = context.settings.custom.observed_classes
        found = _calls(gm, classes) if classes else []
        for node, module in found:
            if type(module) not in classes:  # called a second time, and swapped before
                continue
            module.qconfig = quant_of(node).qconfig
            made: Any = classes[type(module)]
            _swap(gm, node, made.from_float(module).eval(), f"{made.__name__}.from_float")
        return bool(found)


@dataclass(frozen=True)
class QuantizeCustomModules:
    name: str = "quantize_custom_modules"
    stage: Stage = Stage.QUANTIZED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        found, done = _calls(gm, None), set()
        for node, module in found:
            if node.target in done:
                continue
            done.add(node.target)
            quantized: Any = context.settings.quantized_classes.get(type(module))
            if quantized is None:
                raise ConfigError(f"no quantized class is given for {type(module).__name__}", code="custom-module", where=where(node),
                                  hint="convert_custom_config=ConvertCustomConfig().set_observed_to_quantized_mapping(...)")  # fmt: skip
            _swap(gm, node, quantized.from_observed(module), f"{quantized.__name__}.from_observed")
        return bool(found)
