"""Random networks from a weighted grammar: each compiles, and computes what its reference does.

Deterministic: the same 60 networks in every run. `pytest --hypothesis-seed=...` and a larger QCOMPILER_EXAMPLES look further.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompiler import QCompilerError, fuse_fx
from qcompiler.debug import compute_sqnr
from tests.flow import ENGINES, fingerprint, flow, randn, randomized

EXAMPLES = int(os.environ.get("QCOMPILER_EXAMPLES", "60"))
CHANNELS, SIZE = 8, 6

# Kind and weight. Every step takes a (N, 8, 6, 6) value, some two, and gives one.
STEPS = {
    "conv": 5, "depthwise": 2, "conv_bn": 4, "conv_bn_relu": 5, "transposed": 1, "functional_conv": 1, "shared_conv": 2,
    "relu": 2, "relu6": 2, "hardswish": 1, "silu": 1, "sigmoid": 1, "clamp": 1, "gelu": 1, "leaky": 1,
    "add": 4, "mul": 1, "sub": 1, "cat": 3, "scalar": 1, "bn": 1, "gate": 1, "erf": 1, "norm": 1,
    "pool": 1, "avg": 1, "shuffle": 1, "transpose": 1, "split": 1, "slice": 1, "inplace": 1, "assign": 1, "float_leaf": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    kind: str
    left: int  # how far back its inputs lie
    right: int


steps = st.builds(
    Step,
    st.sampled_from([kind for kind, weight in STEPS.items() for _ in range(weight)]),
    st.integers(1, 3),
    st.integers(1, 5),
)
programs = st.tuples(st.lists(steps, min_size=1, max_size=14), st.sampled_from(["one", "many", "head"]), st.integers(0, 2**16))


class Leaf(nn.Module):
    """Cannot be followed: it branches on data."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 if float(x.abs().max()) < 1e6 else x


class Network(nn.Module):
    def __init__(self, program: list[Step], outputs: str) -> None:
        super().__init__()
        self.program, self.outputs = program, outputs
        self.shared, self.head = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Linear(CHANNELS, 5)
        self.parts = nn.ModuleList(self.part(step.kind) for step in program)
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 3, 3) / 8)

    def part(self, kind: str) -> nn.Module:
        c = CHANNELS
        conv = nn.Conv2d(c, c, 3, padding=1, bias=kind != "conv_bn")
        parts: dict[str, Any] = {
            "conv": conv,
            "depthwise": nn.Conv2d(c, c, 3, padding=1, groups=c),
            "conv_bn": nn.Sequential(conv, nn.BatchNorm2d(c)),
            "conv_bn_relu": nn.Sequential(conv, nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
            "transposed": nn.ConvTranspose2d(c, c, 3, padding=1),
            "shared_conv": self.shared,
            "bn": nn.BatchNorm2d(c),
            "cat": nn.Conv2d(2 * c, c, 1),
            "gate": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1), nn.Hardsigmoid()),
            "norm": nn.GroupNorm(2, c),
            "float_leaf": Leaf(),
        }
        return parts.get(kind) or nn.Identity()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step, part in zip(self.program, self.parts, strict=True):
            left, right = (values[-min(back, len(values))] for back in (step.left, step.right))
            values.append(self.step(step.kind, part, left, right))
        if self.outputs == "many":
            return {"last": values[-1], "some": [values[len(values) // 2], (values[-1].mean((2, 3)),)]}
        if self.outputs == "head":
            pooled = F.adaptive_avg_pool2d(values[-1], 1).flatten(1)
            return self.head(pooled.view(pooled.size(0), -1))
        return values[-1]

    def step(self, kind: str, part: Any, x: Tensor, y: Tensor) -> Tensor:
        n, c, h, w = x.shape
        steps: dict[str, Any] = {
            "relu": lambda: F.relu(x),
            "relu6": lambda: F.relu6(x),
            "hardswish": lambda: F.hardswish(x),
            "silu": lambda: F.silu(x),
            "sigmoid": lambda: x.sigmoid(),
            "clamp": lambda: x.clamp(-1, 1.5),
            "gelu": lambda: F.gelu(x),
            "leaky": lambda: F.leaky_relu(x, 0.1),
            "functional_conv": lambda: F.conv2d(x, self.weight, padding="same"),
            "add": lambda: F.relu(x + y) if n else x,
            "mul": lambda: x * torch.sigmoid(y),
            "sub": lambda: x - y * 0.5,
            "cat": lambda: part(torch.cat([x, y], 1)),
            "scalar": lambda: 2 - x * 0.5 + 1,
            "gate": lambda: x * part(x),
            "erf": lambda: torch.erf(x),
            "pool": lambda: F.max_pool2d(x, 3, 1, 1),
            "avg": lambda: F.avg_pool2d(x, 3, 1, 1),
            "shuffle": lambda: x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w),
            "transpose": lambda: x.transpose(2, 3).contiguous(),
            "split": lambda: torch.cat(x.chunk(2, 1)[::-1], 1),
            "slice": lambda: F.pad(x[:, :, 1:, :-1], (1, 0, 0, 1)),
            "inplace": lambda: (x + 0.5).clamp_(-1, 2),
            "assign": lambda: assign(x),
        }
        result: Tensor = steps[kind]() if kind in steps else part(x)
        return result


def assign(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 0.25
    return y


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in (value.values() if isinstance(value, dict) else value) for t in tensors(v)]


def check(program: list[Step], outputs: str, seed: int, engine: str) -> None:
    torch.manual_seed(seed)
    model, x = randomized(Network(program, outputs), seed), randn(4, CHANNELS, SIZE, SIZE, seed=seed)
    before = fingerprint(model)
    with torch.no_grad():
        wanted = tensors(model(x))
        fused = tensors(fuse_fx(model, (x,))(x))
        result = flow(model, (x,), engine=engine)
        reference, lowered = tensors(result.reference(x)), tensors(result.module(x))
        one = tensors(result.module(x[:1]))
    assert fingerprint(model) == before
    for want, fuse, refer, low, first in zip(wanted, fused, reference, lowered, one, strict=True):
        assert want.shape == fuse.shape == refer.shape == low.shape and want.dtype is low.dtype
        assert torch.allclose(fuse, want, rtol=1e-4, atol=1e-4 * max(1.0, float(want.abs().max())))
        assert torch.allclose(first, low[:1], atol=float(low.abs().max()) / 100 + 1e-6)
        if float(want.std()) > 0.05 * float(want.abs().max()):  # else the signal is a constant
            assert compute_sqnr(want - want.mean(), low - want.mean()) >= 14
            assert compute_sqnr(want, low) >= 20
            assert compute_sqnr(refer, low) >= 26


@pytest.mark.slow
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(programs, st.sampled_from(ENGINES))
def test_random_networks(program: tuple[list[Step], str, int], engine: str) -> None:
    try:
        check(*program, engine)
    except QCompilerError as error:  # a listed error would be right, but no such network is invalid
        raise AssertionError(f"{type(error).__name__}: {error}") from error


@pytest.mark.parametrize("kind", STEPS)
def test_each_step(kind: str) -> None:
    check([Step("conv", 1, 1), Step(kind, 1, 2), Step("conv", 1, 1)], "one", 1, "x86")
