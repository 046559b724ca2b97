"""The zoo is seeded: the same call gives the same model and inputs."""

from __future__ import annotations

import torch

from tests.zoo import inputs, load


def test_the_same_name_gives_the_same_model() -> None:
    first, second = load("squeezenet1_1"), load("squeezenet1_1")
    assert not first.training
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_inputs_have_the_shape_asked_for() -> None:
    batches = inputs(batch=2, size=32, n=3)
    assert [tuple(b.shape) for b in batches] == [(2, 3, 32, 32)] * 3
    assert all(torch.equal(a, b) for a, b in zip(batches, inputs(2, 32, 3), strict=True))
