"""A LOWERED graph built by hand: quantize, conv + relu, add, max pool, flatten, linear, dequantize, a float op, maybe a leaf."""

from __future__ import annotations

import torch
from torch import fx, nn

from qcompiler.backends.torch.runtime import packs
from qcompiler.ir.types import SOURCE, VALUE, Source, Value
from qcompiler.ops import functional

ENGINES = [e for e in ("x86", "fbgemm", "onednn", "qnnpack") if e in torch.backends.quantized.supported_engines]
INPUT = torch.linspace(-2.0, 3.0, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Holder(nn.Module):
    """A scope for tensors."""


def weights(scope: nn.Module, shape: tuple[int, ...], channels: int, generator: torch.Generator) -> None:
    scope.register_buffer("weight", torch.randint(-60, 60, shape, dtype=torch.int8, generator=generator))
    scope.register_buffer("weight_scale", torch.rand(channels, generator=generator) * 0.01 + 0.001)
    scope.register_buffer("weight_zero_point", torch.zeros(channels, dtype=torch.int64))


def lowered(leaf: nn.Module | None = None, seed: int = 0, scale: float = 0.05, label: str = "features.0") -> fx.GraphModule:
    generator = torch.Generator().manual_seed(seed)
    root = Holder()
    root.features = nn.Sequential(Holder())
    weights(root.features[0], (8, 3, 3, 3), 8, generator)
    root.features[0].register_buffer("bias", torch.rand(8, generator=generator))
    root.fc = Holder()
    weights(root.fc, (5, 8 * 4 * 4), 1, generator)
    if leaf is not None:
        root.head = leaf
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta[VALUE] = Value((2, 3, 8, 8), torch.float32)
    graph.placeholder("flag", default_value=None)
    q = graph.call_function(torch.quantize_per_tensor, (x, 0.02, 100, torch.quint8))
    tensors = [graph.get_attr(f"features.0.{n}") for n in ("weight", "weight_scale", "weight_zero_point", "bias")]
    pack = graph.call_function(packs.prepack_conv2d, (*tensors, [1, 1], [1, 1], [1, 1], 1, 0, ""))
    conv = graph.call_function(torch.ops.quantized.conv2d_relu.new, (q, pack, scale, 0))
    conv.meta[SOURCE] = Source("/somewhere/net.py", 12, label, "Conv2d")
    total = graph.call_function(torch.ops.quantized.add.default, (conv, conv), {"scale": 2 * scale, "zero_point": 0})
    flat = graph.call_function(torch.flatten, (graph.call_function(torch.max_pool2d, (total, 2)), 1))
    tensors = [graph.get_attr(f"fc.{n}") for n in ("weight", "weight_scale", "weight_zero_point")]
    pack = graph.call_function(packs.prepack_linear, (*tensors, None, -1, ""))
    linear = graph.call_function(torch.ops.quantized.linear.default, (flat, pack, 0.3, 110))
    result = graph.call_method("dequantize", (linear,))
    clipped = graph.call_function(functional.add, (result, result), {"bounds": (0.0, None)})
    if leaf is not None:
        clipped = graph.call_module("head", (clipped,))
    graph.output((clipped, {"logits": result}))
    return fx.GraphModule(root, graph)
