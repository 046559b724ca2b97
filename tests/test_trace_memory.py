"""Which variables of a trace have, or may have, one memory: also when the memory of others is gone, whose identity torch gives again."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import frontend, prepare_fx
from qcompiler.trace.guards import is_guard
from qcompiler.trace.memory import Memory, storage
from tests.flow import randn


class Variable:
    """What the memory asks of a proxy."""

    def __init__(self, example: Tensor) -> None:
        self.example, self.node = example, torch.fx.Graph().placeholder("x")


def remembered(memory: Memory, example: Tensor) -> Any:
    made: Any = Variable(example)
    memory.remember(made)
    return made


def test_memory_that_is_gone_is_linked_to_nothing_new() -> None:
    memory = Memory()
    one = remembered(memory, torch.zeros(3))
    for _ in range(20):
        other = remembered(memory, torch.zeros(3))
        memory.link(one, other)
        assert memory.kin(one) == [other] and memory.kin(other) == [one]
        del other
        new = [remembered(memory, torch.zeros(3)) for _ in range(4)]  # the first of them had the identity of what is gone
        assert memory.kin(one) == [] and all(memory.kin(variable) == [] for variable in new)


def test_the_data_of_what_is_linked_is_let_go() -> None:
    memory, one, other = Memory(), Variable(torch.zeros(3)), Variable(torch.zeros(3))
    memory.link(one, other)  # type: ignore[arg-type]
    kept = memory._kept[storage(other.example)]
    assert not kept.expired()
    del other
    assert kept.expired()


class Shuffles(nn.Module):
    """Blocks of a channel shuffle, which may be a view, and ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            n, c, h, w = x.shape
            x = block(x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))
        return x


@pytest.mark.parametrize("run", range(3))
def test_no_size_is_held_for_memory_by_chance(run: int) -> None:
    """The size of the input was held fixed, in some runs, and a trace took 20 seconds instead of one."""
    assert not [node for node in prepare_fx(Shuffles().eval(), None, (randn(2, 4, 6, 6),)).graph.nodes if is_guard(node)]


def test_a_trace_keeps_nothing_of_the_model_that_it_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracer and its parts refer to each other: weights that were folded since would stay up to the next garbage collection."""
    copies: list[weakref.ref[nn.Module]] = []

    def copied(model: nn.Module, how: Any) -> nn.Module:
        made: nn.Module = how(model)
        copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr(frontend, "_copied", copied)
    for model in (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), Shuffles()):
        gc.collect()
        gc.disable()
        try:
            prepared = prepare_fx(model.eval(), None, (randn(2, 3 if isinstance(model, nn.Sequential) else 4, 4, 4),))
            assert copies.pop()() is None and prepared is not None
        finally:
            gc.enable()
