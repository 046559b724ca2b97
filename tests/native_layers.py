"""What the layers of native regions compute in a call of the whole module, beside the QUANTIZED graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.native.plan import samples
from qcompiler.backends.native.region import NativeRegion
from qcompiler.ops.reference import quantize

NOISE = 1e-6  # a smaller step rounds what float32 leaves of a zero, which each sum leaves otherwise


@dataclass(frozen=True)
class Seen:
    """`values`: codes and floats of all regions, by name. `result`: of the module."""

    values: dict[str, Tensor]
    result: Any


@contextmanager
def one_at_a_time(region: NativeRegion) -> Iterator[None]:
    """A region that computes sample by sample does so here, however small the samples are."""
    with mock.patch.object(samples, "NEAR", 0), mock.patch.object(region, "_calls", {}):
        yield


def watched(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Seen:
    """A call in which each region runs four times: as ever, on two threads, of few samples at a time, and keeping each value. All must hand
    out the same bits.
    """
    values: dict[str, Tensor] = {}
    run = NativeRegion.__call__

    def both(region: NativeRegion, *inputs: Tensor) -> tuple[Any, ...]:
        results, kept = run(region, *inputs), region.watch(*inputs)
        for name, result in zip(region.network.outputs, results, strict=True):
            assert name not in kept or torch.equal(kept[name], result), f"{name} depends on where values lie in memory"
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        with one_at_a_time(region):
            parts = run(region, *inputs)
        for name, one, other, part in zip(region.network.outputs, results, run(region, *inputs), parts, strict=True):
            assert not isinstance(one, Tensor) or torch.equal(one, other), f"{name} depends on the number of threads"
            assert torch.equal(one, part) if isinstance(one, Tensor) else one == part, f"{name} depends on the other samples"
        torch.set_num_threads(threads)
        values.update(kept)
        return results

    with mock.patch.object(NativeRegion, "__call__", both):
        return Seen(values, module(*args, **kwargs))


class Beside(fx.Interpreter):
    """Runs the QUANTIZED graph on the codes that the C computed, wherever it has them: each layer by itself, on equal inputs.

    `shift`: quanta by which the codes between two layers that the C computes as one are off.
    """

    def __init__(self, graph: fx.GraphModule, values: Mapping[str, Tensor], shift: int = 0) -> None:
        super().__init__(graph)
        self.values, self.shift, self.results = values, shift, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is quantize and n.name in self.values:
            found = self.values[n.name]
            assert found.shape == result.shape, f"{n.name} has shape {tuple(found.shape)}, in the QUANTIZED graph {tuple(result.shape)}"
            if found.numel() and float(n.args[1]) > NOISE:  # type: ignore[arg-type]
                self.results[n.name] = result.int()
            return found.clone(memory_format=torch.contiguous_format)  # torch's kernels for other layouts are not what is tested
        if self.shift and n.target is quantize and self.is_fused(n):
            return (result.int() + self.shift).clamp(*n.args[3:5]).to(result.dtype)  # type: ignore[arg-type]
        return result

    def is_fused(self, n: fx.Node) -> bool:
        """Whether the codes never lie in memory: a layer whose result the C does not keep, in front of one whose result it does."""
        chain = [n]
        for _ in range(3):  # dequantize, the layer, quantize
            if len(chain[-1].users) != 1:
                return False
            chain.append(next(iter(chain[-1].users)))
        return n.all_input_nodes[0].op != "placeholder" and chain[-1].target is quantize and chain[-1].name in self.values


def steps_apart(values: Mapping[str, Tensor], graph: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """By layer, how many quanta the C is from the QUANTIZED graph on equal inputs. A layer that was fused counts with what it was fused
    into, and there one quantum of it counts as one, however many it becomes."""

    def run(shift: int) -> dict[str, Tensor]:
        beside = Beside(graph, values, shift)
        left = [node for node in graph.graph.nodes if node.op == "placeholder"][len(args) :]
        with torch.no_grad():
            beside.run(*args, *(kwargs[n.name] if n.name in kwargs else n.args[0] for n in left))
        return beside.results

    own = run(0)
    apart = {name: (values[name].int() - result).abs() for name, result in own.items()}
    if any(int(steps.max()) > 1 for steps in apart.values()):
        for shifted in (run(1), run(-1)):
            for name, steps in apart.items():
                apart[name] = torch.where(steps <= (shifted[name] - own[name]).abs(), steps.clamp(max=1), steps)
    return {name: int(steps.max()) for name, steps in apart.items()}
