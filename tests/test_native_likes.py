"""What a value gives its sizes alone (zeros_like and its kind), and methods that are functions of torch's: they end no native region."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from tests.native_nets import converted, example


class Between(nn.Module):
    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.made = nn.Linear(6, 8), nn.Linear(8, 8), made

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.made(self.first(x)))
        return y


def recurrence(y: Tensor) -> Tensor:
    state, large = torch.zeros_like(y), torch.full_like(y, -1e38)
    for _ in range(3):
        large = torch.maximum(large, y)
        state = torch.tanh(state + y * torch.exp(y - large))
    return state


def on_a_grid(y: Tensor) -> Tensor:
    """What sizes alone settle, the parts of a meshgrid among it."""
    rows, columns = torch.meshgrid(torch.arange(y.shape[0]), torch.arange(y.shape[1]), indexing="ij")
    near = ((rows > 0) * (columns < y.shape[1])).all(-1, keepdim=True)
    far = torch.arange(y.shape[0]).float().outer(torch.linspace(-1, 1, y.shape[1]))
    return torch.where(near, y, -y) + (rows - columns).float() * 0.1 + far * (columns == 2).any(0)


def numbers_as_tensors(y: Tensor) -> Tensor:
    """As DeBERTa has its scale, and Deformable DETR the sizes of its levels."""
    scale = torch.sqrt(torch.tensor(y.size(-1), dtype=torch.float) * 3)
    sizes = torch.as_tensor([[y.shape[0], y.shape[1]], [2, y.shape[1] // 2]], dtype=torch.long)
    return y / scale + torch.stack([sizes[..., 1], sizes[..., 0]], -1).float().sum() / torch.tensor([y.shape[0] * 9.0])


def of_its_own_sizes(y: Tensor) -> Tensor:
    """A mask of windows whose sizes are asked for, as Swin's is made."""
    at = torch.arange(y.shape[0])[:, None] + torch.arange(y.shape[1])
    rows, columns = at.shape
    near = (at.view(rows, columns // 2, 2).sum(-1) > 3).float().repeat(1, columns // (columns // 2))
    return y + near * (1 / near.shape[1])


def one_hot_positions(y: Tensor) -> Tensor:
    """As Gemma's vision tower looks up positions: rows of a table by a product."""
    table = torch.linspace(-1, 1, 40 * 8).reshape(40, 8)
    return y + F.one_hot(torch.arange(y.shape[0]).clamp(min=0), num_classes=40).to(table) @ table


def in_buckets(y: Tensor) -> Tensor:
    at, ends = torch.arange(y.shape[0]).float(), torch.tensor([1.0, 3.0])
    places = torch.bucketize(at, ends) + torch.searchsorted(ends, at, right=True)
    return y * (1 + torch.fmod(places, 3)).float()[:, None]


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros, added": lambda y: y + torch.zeros_like(y),
    "ones of a part, times": lambda y: y * torch.ones_like(y[:1]),
    "full, the larger": lambda y: torch.maximum(y, torch.full_like(y, -0.5)),
    "full by keywords": lambda y: torch.maximum(y, torch.full_like(input=y[:, 0:1], fill_value=-0.5)),
    "of bools": lambda y: torch.where(torch.zeros_like(y, dtype=torch.bool), y, -y),
    "joined": lambda y: torch.cat([y, torch.zeros_like(y)], 1)[:, 2:10],
    "a state": recurrence,
    "on a grid": on_a_grid,
    "of its own sizes": of_its_own_sizes,
    "numbers as tensors": numbers_as_tensors,
    "one hot positions": one_hot_positions,
    "in buckets": in_buckets,
    "between numbers as tensors": lambda y: torch.clamp(y, torch.tensor(-0.4), torch.tensor([0.5])),
    "between rows": lambda y: y.clamp(torch.linspace(-1, 0, 8), torch.linspace(0, 1, 8)),
    "between what is computed": lambda y: torch.clamp(y, y.mean(-1, keepdim=True) - 0.5, y.amax(-1, keepdim=True) * 0.5),
    "below a column": lambda y: torch.clip(y.relu(), max=y.mean(-1, keepdim=True)),
    "above a tensor, below a number": lambda y: y.clamp(torch.tensor(-0.2), 0.5),
    "above the upper bound": lambda y: y.clamp_min(torch.tensor(0.5)).clamp(torch.tensor(0.7), torch.tensor(-0.7)) + y,
    "log_softmax": lambda y: y.log_softmax(-1),
    "where": lambda y: y.where(y > 0, y * 0.1),
    "where by keywords": lambda y: y.where(condition=y > 0, other=-y),
    "bitwise_and": lambda y: torch.where((y > 0).bitwise_and(y < 0.5), y, -y),
    "comparisons": lambda y: torch.where(y.gt(0).logical_or(y.lt(-0.3)), y, -y),
}


def test_numbers_as_tensors_hold_no_size_of_an_export() -> None:
    module, _ = converted(Between(numbers_as_tensors).eval(), example((5, 6)))
    exported = torch.export.export(module, (example((5, 6)),), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},))
    for count in (5, 9):
        x = example((count, 6), count)
        assert torch.equal(exported.module()(x), module(x))


def test_what_a_caller_gets_keeps_what_was_assigned_to_it() -> None:
    """Places that sizes settle, changed in place: handed out, so that torch computes them, and read by the region as well."""

    class Places(Between):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            y = self.first(x)
            at = torch.stack([torch.arange(y.shape[0]).float(), torch.ones(y.shape[0])], -1)
            at[..., 0] /= y.shape[0]
            at[..., 1] *= 0.5
            return self.last(y * at.sum(-1, keepdim=True)), at

    module, graph = converted(Places(lambda y: y).eval(), example((5, 6)))
    for x in (example((5, 6)), example((7, 6))):
        (result, at), (expected, places) = module(x), graph(x)
        assert torch.equal(at, places) and compute_sqnr(expected, result) > 35


class Clipped(Between):
    """Bounds that come with the weights, as Gemma's vision tower has them: none in a network that was not trained."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__(made)
        self.register_buffer("low", torch.tensor(-math.inf))
        self.register_buffer("high", torch.tensor(math.inf))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.clamp(self.first(x), self.low, self.high))  # type: ignore[no-any-return]


def test_bounds_of_a_state_dict() -> None:
    module, _ = converted(model := Clipped(lambda y: y).eval(), x := example((5, 6)))
    assert sum(call.op == "runtime.run_region" for call in module.program.calls) == len(module.program.calls) - 1
    assert compute_sqnr(model(x), module(x)) > 25
    bounds = {"low": torch.tensor(-0.2), "high": torch.tensor(0.3)}
    module.load_state_dict(module.state_dict() | bounds)
    model.load_state_dict(model.state_dict() | bounds)
    assert compute_sqnr(model(x), module(x)) > 25


@pytest.mark.parametrize("name", MADE)
def test_one_region(name: str, tmp_path: Path) -> None:
    x = example((5, 6))
    module, graph = converted(Between(MADE[name]).eval(), x)
    calls = Counter(call.op for call in module.program.calls)
    assert calls.pop("runtime.run_region") == 1 and set(calls) <= {"operator.getitem"}
    qcompiler.save(module, tmp_path / "m.qc")
    loaded = qcompiler.load(tmp_path / "m.qc")
    for given in (x, example((2, 6))):
        assert torch.equal(loaded(given), module(given))
        assert float(compute_sqnr(graph(given), module(given))) > 40
