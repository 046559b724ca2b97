"""Random networks of the wide grammar, a few dozen; `python -m tests.fuzz_graphs --count 5000` for more, on any engine."""

from __future__ import annotations

import shutil
from itertools import product

import pytest
import torch

from tests import fuzz_graphs
from tests.graph_grammar import RULES, network


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
    drawn = {step.name for seed in range(500) for step in network(seed)[0].steps}
    assert {name for name, *_ in RULES} <= drawn


def test_a_wrong_result_is_seen() -> None:
    """The floor is one that a broken kernel does not pass."""
    model, inputs = network(2)
    with torch.no_grad():
        expected = model(*inputs)
        assert min(fuzz_graphs.sqnrs(expected, fuzz_graphs.simulated(model, inputs))) > 15
        broken = torch.utils._pytree.tree_map(lambda t: t.roll(1, -1), expected)
        assert min(fuzz_graphs.sqnrs(expected, broken)) < 15
