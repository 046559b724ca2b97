"""Whether each lowered op computes what the op itself computes from the same int8 inputs: one run of the LOWERED graph on an example.

The inputs are those that the kernel got, with their codes and their layout, so a difference is the kernel's own. Float arithmetic is the
reference; where that finds more than a step, float64 decides. A kernel that raises is a finding as well; a crash cannot be caught here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from qcompiler.backends.torch.runtime.by_shape import ENGINE_LOCK
from qcompiler.backends.torch.site import Kernel, Operand, Rounded, Site
from qcompiler.ir.types import Mode, QParams, quant_of
from qcompiler.ops.arguments import changes
from qcompiler.ops.reference import SMALLEST_STEP, dequantize_weight
from qcompiler.ops.spec import Op
from qcompiler.ops.state_nodes import is_write

STEP = 1  # kernels multiply and round in another order, so a value at a half step may fall to either side
FLOATS = 1e-3  # of the largest value, where a kernel hands out floats: sums of 8-bit products in another order
OP_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError)


@dataclass(frozen=True)
class Lowered:
    """What one op became: `kernel` by its label, `result` in the LOWERED graph, and the nodes there that hold the op's arguments.

    `args`, `kwargs`: the op's own, with nodes of the LOWERED graph in place of the old ones; weights are Codes. `output` None: floats.
    `most`: the largest code of an activation for which the sums are sure to fit.
    """

    node: fx.Node
    kernel: str
    result: fx.Node
    first: fx.Node | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: QParams | None
    most: int = 255

    def reads(self) -> list[fx.Node]:
        found: list[fx.Node] = []

        def note(leaf: object) -> Any:
            if isinstance(leaf, Codes):
                found.extend((leaf.values, leaf.scale, leaf.zero_point))
            elif isinstance(leaf, fx.Node):
                found.append(leaf)
            return leaf

        fx.node.map_aggregate((self.args, dict(self.kwargs)), note)
        return found


@dataclass(frozen=True)
class Codes:
    """An int8 parameter as an argument."""

    values: fx.Node
    scale: fx.Node
    zero_point: fx.Node
    axis: int | None


@dataclass(frozen=True)
class Wrong:
    """A kernel that computed something else: `text` says how far off."""

    lowered: Lowered
    text: str


Example = tuple[tuple[object, ...], Mapping[str, object]]


def wrong_sites(
    gm: fx.GraphModule, graph: fx.Graph, sites: Sequence[Lowered], example: Example, engine: str, spans: dict[fx.Node, float]
) -> list[Wrong]:
    """The sites of a LOWERED graph whose kernels are wrong on the example. Nothing of the module or of torch's state is changed.

    `spans`: float values of the graph; each gets how far its numbers and 0 lie apart.
    """
    run = _Run(gm, graph, sites, spans)
    with ENGINE_LOCK, torch.no_grad(), torch.random.fork_rng(devices=[]):
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
        try:
            run.through(tree_map_only(Tensor, torch.clone, example))
        finally:
            torch.backends.quantized.engine = before
    return run.wrong


class _Run:
    """One walk over the graph: values are let go after their last use, by the graph or by a site that ends later."""

    def __init__(self, gm: fx.GraphModule, graph: fx.Graph, sites: Sequence[Lowered], spans: dict[fx.Node, float]) -> None:
        self.gm, self.nodes, self.spans = gm, list(graph.nodes), spans
        order = {node: i for i, node in enumerate(self.nodes)}
        self.at = {site.result: site for site in sites if site.result in order and all(n in order for n in site.reads())}
        last: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            for used in (node, *node.all_input_nodes, *(self.at[node].reads() if node in self.at else ())):
                last[used] = node
        self.done: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            self.done.setdefault(node, []).append(used)
        self.within: dict[fx.Node, Lowered] = {}
        for site in self.at.values():
            for i in range(order.get(site.first, order[site.result]) if site.first else order[site.result], order[site.result] + 1):
                self.within[self.nodes[i]] = site
        assigned = (isinstance(arg, fx.Node) and changes(node, arg) for node in self.nodes for arg in node.args[:1])
        self.writes = any(assigned) or any(map(is_write, self.nodes))
        self.values: dict[fx.Node, Any] = {}
        self.wrong: list[Wrong] = []

    def through(self, example: tuple[tuple[object, ...], Mapping[str, object]]) -> None:
        args, kwargs = list(example[0]), dict(example[1])
        for node in self.nodes:
            try:
                self.values[node] = self._value(node, args, kwargs)
            except OP_FAILURES as error:
                if node in self.within:
                    first = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
                    self.wrong.append(Wrong(self.within[node], f"raises {type(error).__name__}: {first}"))
                return  # what comes behind is checked when the op has another kernel
            if node in self.at:
                self._compare(self.at[node])
            if node in self.spans and self.values[node].numel():
                low, high = map(float, torch.aminmax(self.values[node].float()))
                self.spans[node] = max(high, 0.0) - min(low, 0.0)
            for used in self.done.get(node, ()):
                self.values.pop(used, None)

    def _value(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if node.op == "placeholder":
            name = str(node.target).lstrip("*")
            return args.pop(0) if args else kwargs.get(name, node.args[0] if node.args else None)
        if node.op == "get_attr":
            held = attrgetter(str(node.target))(self.gm)
            return (
                copy.deepcopy(held) if isinstance(held, nn.Module) else held.clone() if self.writes and isinstance(held, Tensor) else held
            )
        given, named = fx.node.map_arg((node.args, dict(node.kwargs)), self.values.__getitem__)  # type: ignore[misc]
        if node.op == "output":
            return None
        if node.op == "call_method":
            return getattr(given[0], str(node.target))(*given[1:], **named)
        target: Any = copy.deepcopy(self.gm.get_submodule(str(node.target))) if node.op == "call_module" else node.target
        return target(*given, **named)

    def _is_beyond(self, site: Lowered) -> bool:
        """Whether the example leaves the range that calibration found for the input of a kernel that adds in 16 bits.

        Of two products of one sign such a kernel then takes at most 32767, which lies between their sum and that of the values cut at
        the end of the range. So the result is no further off than a cut would be, but it need not be the op's.
        """
        given = [self.values[n] for n in site.reads()] if site.most < 255 else []
        return any(isinstance(x, Tensor) and x.dtype is torch.quint8 and x.numel() and int(x.int_repr().max()) > site.most for x in given)

    def _compare(self, site: Lowered) -> None:
        if self._is_beyond(site):
            return
        got = self.values[site.result]
        try:
            off = _off(got, self._expected(site, torch.float32), site.output)
            if off > STEP:
                off = min(off, _off(got, self._expected(site, torch.float64), site.output))
        except OP_FAILURES:
            return  # the op itself does not take plain tensors of these values: there is nothing to compare with
        if off > STEP:
            self.wrong.append(Wrong(site, f"{off:.0f} steps off" if site.output is not None else "other floats"))

    def _expected(self, site: Lowered, dtype: torch.dtype) -> object:
        def real(value: object) -> Any:
            if isinstance(value, Codes):
                codes, scale, zero_point = (self.values[n] for n in (value.values, value.scale, value.zero_point))
                return dequantize_weight(codes, scale, zero_point, value.axis).to(dtype)
            found = self.values[value] if isinstance(value, fx.Node) else value
            if isinstance(found, (tuple, list)):
                return type(found)(map(real, found)) if type(found) in (tuple, list) else found
            if isinstance(found, Tensor) and found.is_quantized:
                return ((found.int_repr().to(dtype) - found.q_zero_point()) * found.q_scale()).contiguous()
            return found.to(dtype) if isinstance(found, Tensor) and found.is_floating_point() else found

        args, kwargs = fx.node.map_aggregate((site.args, dict(site.kwargs)), real)  # type: ignore[misc]
        target: Any = site.node.target
        return target(*args, **kwargs)


def _off(got: object, expected: object, output: QParams | None) -> float:
    """The largest distance in steps; of floats, in FLOATS of the largest value."""
    results, truths = (list(v) if isinstance(v, (tuple, list)) else [v] for v in (got, expected))
    worst = 0.0
    for result, truth in zip(results, truths, strict=True):
        if result.shape != truth.shape:
            return float("inf")
        if not result.numel():
            continue
        if output is None:
            largest = float(truth.abs().max()) or 1.0
            worst = max(worst, float((result.double() - truth.double()).abs().max()) / largest / FLOATS)
        else:
            assert isinstance(output.scale, float) and isinstance(output.zero_point, int)
            codes = torch.round(truth.double() / output.scale) + output.zero_point
            worst = max(worst, float((result.int_repr().double() - codes.clamp(0, 255)).abs().max()))
    return worst if worst == worst else 0.0  # NaN: an example without numbers tells nothing


def rounded_by(node: fx.Node, row: Op, args: Sequence[object]) -> list[tuple[fx.Node, bool]]:
    """What a kernel rounds at run time, and whether to 7 bits; recurrent ones their input, inside."""
    found = [(given.node, given.reduce_range) for given in args if isinstance(given, Rounded)]
    if quant_of(node).mode is Mode.DYNAMIC and row.rounds_inside and isinstance(args[0], fx.Node):
        found.append((args[0], node.kwargs.get("activation_range") == (0, 127)))
    return found


def few_steps(span: float, reduced: bool) -> str | None:
    """A sentence where torch's dynamic kernels round such values to fewer than half of their steps."""
    steps, levels = span / SMALLEST_STEP, 127 if reduced else 255
    if not 0 < steps < levels / 2:
        return None
    return (f"its input takes {int(steps)} of {levels} steps on the example inputs: dynamic kernels choose no step below "
            f"{SMALLEST_STEP:.2g}; give it a static qconfig, or larger values")  # fmt: skip


def largest_code(kernel: Kernel, site: Site) -> int:
    """What the activations of a kernel that may overflow were given at most: values beyond their range have larger codes."""
    ranges = [argument.qparams for argument in site.args if isinstance(argument, Operand) and argument.qparams is not None]
    return min((qparams.quant_max for qparams in ranges), default=255) if kernel.saturates(site) else 255
