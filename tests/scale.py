"""Time to compile against the number of nodes: `python -m tests.scale [KIND ...] [--nodes N]` prints N, 2N, 4N.

Channels are few and images small, so that what is timed is the compiler and not the kernels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from tests.zoo import seeded


class Blocks(nn.Sequential):
    """`count` times conv, batch norm, relu."""

    def __init__(self, count: int) -> None:
        block = [lambda: nn.Conv2d(4, 4, 1), lambda: nn.BatchNorm2d(4), lambda: nn.ReLU()]
        super().__init__(*(make() for _ in range(count) for make in block))


OPS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sigmoid,
    lambda x: F.max_pool2d(x, 1),
    lambda x: x + x,
    lambda x: F.hardtanh(x, 0.1, 2.0),
    torch.flatten,
    lambda x: x.reshape(-1, 4, 4, 4),
)


class Elementwise(nn.Module):
    """A convolution, then `count` ops without weights."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for i in range(self.count):
            x = OPS[i % len(OPS)](x)
        return x


class Residual(nn.Module):
    """`count` times: add and cat of earlier values around a convolution."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            x, y = torch.clamp(x + conv(torch.cat([x, y], 1)), -2.0, 2.0), x
        return x


KINDS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "blocks": (Blocks, 3),
    "elementwise": (Elementwise, 1),
    "residual": (Residual, 4),
}  # name -> (constructor, traced ops for each count)


def build(kind: str, nodes: int) -> nn.Module:
    """A model of about `nodes` traced ops."""
    make, ops = KINDS[kind]
    return seeded(make(nodes // ops))


def steps(model: nn.Module, folder: Path) -> dict[str, float]:
    """Processor seconds for each step of a compile and for a run of the result."""
    x, seconds = torch.randn(1, 4, 4, 4), {}

    def timed(name: str, function: Callable[[], object]) -> object:
        start = time.process_time()
        result = function()
        seconds[name] = time.process_time() - start
        return result

    prepared = timed("prepare", lambda: qcompiler.prepare_fx(model, None, (x,)))
    timed("calibrate", lambda: qcompiler.calibrate(prepared, [x]))  # type: ignore[arg-type]
    converted = timed("convert", lambda: qcompiler.convert_fx(prepared))
    timed("save", lambda: qcompiler.save(converted, folder / "model.qc"))  # type: ignore[arg-type]
    loaded = timed("load", lambda: qcompiler.load(folder / "model.qc"))
    timed("run", lambda: loaded(x))  # type: ignore[operator]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND")
    parser.add_argument("--nodes", type=int, default=2500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            for factor in (1, 2, 4):
                seconds = steps(build(kind, factor * options.nodes), Path(folder))
                print(f"{kind:12} {factor * options.nodes:6} ", "  ".join(f"{k} {s:6.2f}" for k, s in seconds.items()), flush=True)


if __name__ == "__main__":
    main()
