"""Whether an int8 model computes what its training simulated: value by value, against the fake-quantized graph in eval mode.

Each value is compared on equal inputs: both sides get the same integers. So a rounding that falls to the other side counts
where it happens, by one step, and not again in every layer behind it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.debug.match import Site, match
from qcompiler.debug.walk import RANDOM, Seen, Walk, pairs
from qcompiler.errors import ConfigError, InputError, PassError, Where
from qcompiler.executable import Executable
from qcompiler.executable.states import fill
from qcompiler.executable.steps import steps_of_graph
from qcompiler.fake_quantize import FakeQuantizeBase
from qcompiler.inputs.batches import batches, check_data
from qcompiler.inputs.door import door
from qcompiler.ir.attributes import attribute
from qcompiler.ir.names import NAMES, safe_path
from qcompiler.ir.types import Mode, quant_of
from qcompiler.prepared.module import state_of
from qcompiler.qat.sites import FakeQuantWatch, switch_observers_off

TOLERANCE = 1  # steps: kernels multiply and round in another order, so a value at a half step may fall to either side
FLOATS = 1e-4  # of the largest value, where no integers hold a result: float32 sums in another order
FEW = 10_000  # steps of an int8 op's sums: floats that it hands out count as so large at least, or a bias rounded to a step would differ


@dataclass(frozen=True)
class Difference:
    """The largest difference of one value: in steps of its scale, or relative to its largest value where it is float.

    `simulated`: whether training saw how it is rounded. What is rounded at run time alone (int8 dynamic) or when it is stored
    (float16, 4 bits) was not, so it agrees whatever the difference. `int8`: whether an int8 op computes it, which may hand out floats.
    """

    node: str
    module_path: str
    location: str
    worst: float
    is_float: bool
    simulated: bool = True
    int8: bool = True

    @property
    def agrees(self) -> bool:
        return not self.simulated or self.worst <= (FLOATS if self.is_float else TOLERANCE)

    def __str__(self) -> str:
        size = f"{self.worst:.2g} of the largest value" if self.is_float else f"{self.worst:.3g} steps"
        return f"%{self.node} ({', '.join(filter(None, (self.module_path, self.location)))}): {size}"


@dataclass(frozen=True)
class Parity:
    """Every value in the order of execution; `worst`: the largest difference in steps. `unmatched`: values without a counterpart."""

    differences: tuple[Difference, ...]
    unmatched: tuple[tuple[str, str], ...]
    batches: int

    @property
    def holds(self) -> bool:
        return all(d.agrees for d in self.differences)

    @property
    def first_diverging(self) -> Difference | None:
        return next((d for d in self.differences if not d.agrees), None)

    @property
    def worst(self) -> float:
        return max((d.worst for d in self.differences if not d.is_float), default=0.0)

    def __str__(self) -> str:
        verdict = "the int8 model computes what training simulated" if self.holds else f"diverges first at {self.first_diverging}"
        text = f"{verdict} ({len(self.differences)} values, {self.batches} batches, at most {self.worst:.3g} steps apart)"
        others = [str(d) for d in self.differences if not d.simulated]
        return f"{text}; training did not simulate {', '.join(others)}" if others else text


def simulated(prepared: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> fx.GraphModule:
    """A copy of a model of prepare_qat_fx in eval mode, with the qparams that convert takes: those of values as they are, those of
    weights as the next forward makes them."""
    state = state_of(prepared)
    if state is None or not state.settings.trains or not isinstance(prepared, fx.GraphModule):
        raise ConfigError("parity compares with the module that prepare_qat_fx returned", code="not-prepared",
                          hint="parity(prepared, convert_fx(prepared), data)")  # fmt: skip
    copied = copy.deepcopy(prepared).cpu().eval()
    for module in copied.modules():
        if isinstance(module, FakeQuantWatch):
            switch_observers_off(module)
    with torch.no_grad():
        copied(*args, **kwargs)
    switch_observers_off(copied)
    state = state_of(prepared)
    if state is not None:
        state.before.put_back(copied)
    return copied


@in_plain_torch
@door
def parity(prepared: nn.Module, converted: nn.Module, data: object) -> Parity:
    """How far convert_fx's int8 module is from the fake-quantized graph in eval mode, value by value.

    `data`: as calibrate takes it. Raises ConfigError for other modules, InputError for no data.
    """
    check_data(data, "the data to compare on")
    if not isinstance(converted, Executable):
        raise ConfigError(f"parity needs what convert_fx returned, got a {type(converted).__name__}", code="not-quantized",
                          hint="parity(prepared, convert_fx(prepared), data)")  # fmt: skip
    items = list(batches(data))
    if not items:
        raise InputError("0 batches of data to compare on", code="no-data", hint="an iterator can be read only once")
    return _compare(prepared, converted, items)


def _compare(prepared: nn.Module, converted: Executable, items: Sequence[tuple[tuple[object, ...], dict[str, object]]]) -> Parity:
    graph = simulated(prepared, *items[0])
    floats, steps = steps_of_graph(graph, rounds=True), converted._steps()
    scales = {node.name: _scale(graph, node) for node in graph.graph.nodes if node.op == "call_module"}
    walk = Walk(floats, steps, match(floats, steps), ends=_ranges(graph), scales=scales)
    found = _Found(walk, _not_simulated(graph), _sum_steps(graph))
    with torch.inference_mode(), steps.kept():
        for path, held in steps.held.items():
            fill(held, attribute(graph, safe_path(graph.meta.get(NAMES, {}), path)))
        for args, kwargs in items:
            walk.run(args, kwargs, found.visit)
    return Parity(tuple(found.worst.values()), tuple({**walk.matching.unmatched, **found.random}.items()), len(items))


def require_parity(
    prepared: nn.Module, converted: Executable, example: tuple[tuple[object, ...], dict[str, object]], cause: str = ""
) -> Parity:
    """PassError that names the first value of an int8 op that is not the simulated one: more than a step away, or other floats.

    What float ops compute is listed and nothing more: their kernels are not convert's. `cause`: what is known to make such differences
    in this model.
    """
    found = _compare(prepared, converted, [example])
    wrong = next((d for d in found.differences if d.int8 and not d.agrees), None)
    if wrong is not None:
        place = Where(f"%{wrong.node}", wrong.module_path or None, wrong.location or None)
        hint = "check_parity=False converts all the same; debug.parity(prepared, converted, data) lists every value"
        hint = f"{cause}; {hint}" if cause else hint
        raise PassError(f"the int8 model does not compute what training simulated: {wrong}", code="parity", where=place, hint=hint)
    return found


def _ranges(graph: fx.GraphModule) -> dict[str, tuple[int, int]]:
    """The smallest and largest integer of the values before and behind fake quantization, by node."""
    found: dict[str, tuple[int, int]] = {}
    for node in graph.graph.nodes:
        watch = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(watch, FakeQuantWatch):
            fake_quant: Any = watch.observer
            least = fake_quant.quant_min if fake_quant.dtype is torch.int8 else 0  # int8 counts from there: QParams.unsigned
            found[node.name] = found[str(node.args[0])] = fake_quant.quant_min - least, fake_quant.quant_max - least
    return found


def _not_simulated(graph: fx.GraphModule) -> set[str]:
    """The nodes whose op rounds in a way that insert_fake_quants has no module for."""
    return {node.name for node in graph.graph.nodes if quant_of(node).mode not in (None, Mode.WEIGHT_ONLY)}


def _sum_steps(graph: fx.GraphModule) -> dict[str, float]:
    """One step of the 32-bit sums of each int8 op that hands out floats: the product of its operands' scales."""
    handing = [n for n in graph.graph.nodes if quant_of(n).int8 and quant_of(n).float_output]
    return {node.name: math.prod(_scale(graph, operand) for operand in node.all_input_nodes) for node in handing}


def _scale(graph: fx.GraphModule, value: fx.Node) -> float:
    """The largest scale of an operand, which may be a copy of what was rounded; 1 where nothing rounds it, as a bias."""
    while value.op == "call_function" and value.all_input_nodes:
        value = value.all_input_nodes[0]
    held: Any = attribute(graph, str(value.target)) if value.op in ("call_module", "get_attr") else None
    held = held.observer if isinstance(held, FakeQuantWatch) else held
    rounds = isinstance(held, FakeQuantizeBase)
    return float(held.in_use()[0].max()) if rounds else 1.0


class _Found:
    """The worst difference of each value over all batches."""

    def __init__(self, walk: Walk, not_simulated: set[str], sum_steps: Mapping[str, float]) -> None:
        self.worst: dict[str, Difference] = {}
        self.walk, self.not_simulated, self.sum_steps = walk, not_simulated, sum_steps
        self.random: dict[str, str] = {}  # values that no two runs share, with the reason

    def visit(self, seen: Seen) -> None:
        site, compared = seen.site, pairs(seen.own_reference, seen.own_value)
        if site.step.kind == "input" or not compared:
            return
        if seen.random:
            self.random[site.step.name] = RANDOM
            return
        for reference, value in compared:
            if not reference.is_floating_point() or not reference.numel():
                continue
            step = self._sum_step(site)
            worst, is_float = _distance(reference, value, seen, FEW * (step or 0.0))
            again = [one for one in self.walk.computed_again(site) if one is site or one.step.name in self.walk.rounded]
            computed = {site.float_step.name, *(step.name for one in again for step in one.region or ())}
            simulated, int8 = not computed & self.not_simulated, not is_float or step is not None
            found = Difference(site.computed.name, site.step.module_path, site.step.location, worst, is_float, simulated, int8)
            known = self.worst.get(site.step.name)
            if known is None or found.worst > known.worst:
                self.worst[site.step.name] = found

    def _sum_step(self, site: Site) -> float | None:
        """Of the int8 op that hands out the floats of this value, alone or within what is computed in one go."""
        found = [self.sum_steps[step.name] for step in (site.float_step, *(site.region or ())) if step.name in self.sum_steps]
        return max(found, default=None)


def _distance(reference: Tensor, value: Tensor, seen: Seen, least: float) -> tuple[float, bool]:
    """In steps between the integers that hold the two: a value that a cat copies is rounded behind the cat, in training.

    Floats: relative to the largest, which counts as `least` where all are smaller.

    The reference may be a value before its fake quantization, so it is cut to the range of that; int8 must have done so itself.
    """
    grid, slack = seen.grid, seen.slack if seen.slack is not None and seen.slack.shape == value.shape else torch.zeros(())
    if grid is None:
        apart = float(((reference.double() - value.double()).abs() - slack).clamp(min=0).max())
        largest = max(float(reference.abs().max()), least)
        return apart / largest if largest else apart, True
    scale, zero_point, low, high = grid
    integers = [torch.round(v.double() / scale) + zero_point for v in (reference, value)]
    return float(((integers[0].clamp(low, high) - integers[1]).abs() - slack / scale).clamp(min=0).max()), False
