"""Random networks of the wide grammar, a few dozen; `python -m tests.fuzz_graphs --count 5000` for more, on any engine."""

from __future__ import annotations

import shutil
from itertools import product
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler.ops.reference import dequantize, quantize
from tests import fuzz_graphs
from tests.graph_grammar import RULES, network
from tests.native_layers import steps_apart


@pytest.mark.parametrize(("engine", "first"), [("x86", 0), ("onednn", 1000), ("qnnpack", 2000), ("native", 4_000_000)])
def test_random_networks_compile_and_compute(engine: str, first: int) -> None:
    if shutil.which("cc") is None if engine == "native" else engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"there is no {engine} here")
    count = 8 if engine == "native" else 12  # each is compiled by a C compiler
    found = fuzz_graphs.run(count, first, [engine])
    assert not found.bad, found.bad
    assert found.outcomes[f"{engine} good"] >= count * 3 / 4, found.outcomes  # the rest says why it cannot be traced


def test_engines_take_turns_within_each_flow() -> None:
    assert {(fuzz_graphs.engine_of(s, fuzz_graphs.ENGINES), s % 8) for s in range(32)} == set(product(fuzz_graphs.ENGINES, range(8)))


def test_the_same_seed_gives_the_same_network() -> None:
    one, other = network(7), network(7)
    assert repr(one[0]) == repr(other[0]) and all(torch.equal(a, b) for a, b in zip(one[1], other[1]))
    assert all(torch.equal(a, b) for a, b in zip(one[0].state_dict().values(), other[0].state_dict().values()))


def test_every_rule_is_drawn() -> None:
    drawn = {step.name for seed in range(1000) for step in network(seed)[0].steps}
    assert {name for name, *_ in RULES} <= drawn


def test_a_wrong_result_is_seen() -> None:
    """The floor is one that a broken kernel does not pass."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        assert min(fuzz_graphs.sqnrs(expected, fuzz_graphs.simulated(model, (x,)))) > 15
        broken = torch.utils._pytree.tree_map(lambda t: t.roll(1, -1), expected)
        assert min(fuzz_graphs.sqnrs(expected, broken)) < 15


def test_another_dtype_or_container_is_seen() -> None:
    x = torch.arange(3)
    fuzz_graphs.of_one_kind((x, {"a": [x]}), (x, {"a": [x]}))
    for other in ((x.float(), {"a": [x]}), (x, {"a": (x,)}), (x, {"a": [x[None]]}), (x, {"a": [3]})):
        with pytest.raises(AssertionError):
            fuzz_graphs.of_one_kind((x, {"a": [x]}), other)


class Chance(nn.Module):
    """The second result is made of roundings alone."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x * 0.7, nn.functional.normalize((x + 1e5) - 1e5 - x), torch.tanh(x)


def bounds(model: Any, x: Tensor) -> list[float]:
    """Of results that are all worse than any bound."""
    expected = model(x)
    return fuzz_graphs.bounds_of(model, expected, [-20.0] * len(expected), ((x,), {}))


def test_what_float32_leaves_to_chance_has_no_bound() -> None:
    """A broken result beside it is seen all the same."""
    torch.manual_seed(0)
    model, x = cast(Any, Chance()), torch.randn(4, 7)
    assert [near > 60 for near in fuzz_graphs.in_double(model, model(x), ((x,), {}))] == [True, False, True]
    found = bounds(model, x)
    assert found[1] == -float("inf") and min(found[0], found[2]) > 20


class Nearest(nn.Module):
    """The second result hangs on which of two values is larger."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x * 0.7, x[:, :2].argmax(1, keepdim=True) * 4.0 + x[:, 2:] * 0.1


def test_a_decision_that_roundings_turn_has_the_bound_of_that() -> None:
    """Of values nearer than a step one simulation of ten picks the other one."""
    x = torch.tensor([[0.9877, 1.0, 0.2, -0.4]])
    found = bounds(Nearest(), x)
    assert found[0] > 20 and found[1] < 10
    assert fuzz_graphs.in_seven_bits(cast(Any, Nearest()), Nearest()(x), ((x,), {}))[1] > 20


class Pieces(nn.Module):
    """A piece as long as there are numbers among the values, of which a simulation has fewer: it divides by what it rounds to zero."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = (x * x + 0.1).rsqrt()
        return x * 0.7, x[:, : int(torch.isfinite(y).sum())]


def test_a_simulation_of_other_sizes_is_no_bound() -> None:
    x = torch.tensor([[0.0, 1.0, 20.0, -40.0]])
    assert Pieces()(x)[1].shape == (1, 4) and bounds(Pieces(), x)[1] == -float("inf")


U8 = (0, 255, torch.uint8)
STEPS = {"x_q": (0.02, 128), "product_q": (0.03, 128), "result_q": (2 / 256, 128)}


def two_layers() -> fx.GraphModule:
    """A product of the argument, and the tanh of that, each rounded."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for name, layer, args in (("x_q", None, ()), ("product_q", torch.mul, (0.7,)), ("result_q", torch.tanh, ())):
        value = graph.call_function(layer, (value, *args)) if layer is not None else value
        value = graph.create_node("call_function", quantize, (value, *STEPS[name], *U8), name=name)
        value = graph.call_function(dequantize, (value, *STEPS[name]))
    graph.output(value)
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(("off", "due"), [(0, 0), (1, 1), (-1, 1), (2, 8)])
def test_one_quantum_of_a_fused_layer_counts_as_one(off: int, due: int) -> None:
    """One of the product is up to 4 of its tanh; two are none that a layer may be off."""
    graph, x = two_layers(), torch.linspace(-1.5, 1.5, 101)
    product = quantize(dequantize(quantize(x, *STEPS["x_q"], *U8), *STEPS["x_q"]) * 0.7, *STEPS["product_q"], *U8)
    shifted = (product.int() + off).to(torch.uint8)
    result = quantize(torch.tanh(dequantize(shifted, *STEPS["product_q"])), *STEPS["result_q"], *U8)
    assert steps_apart({"result_q": result}, graph, (x,), {}) == {"result_q": due}
    if abs(off) == 1:  # where the C keeps the product, the tanh is exact, and one off that is not is seen
        assert steps_apart({"product_q": shifted, "result_q": result}, graph, (x,), {}) == {"product_q": 1, "result_q": 0}
        assert steps_apart({"product_q": product, "result_q": result}, graph, (x,), {})["result_q"] == 4
