"""What the examples report of a quantized model beside its float original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from qcompiler.timing import in_turn


def run_batched(model: nn.Module, images: torch.Tensor, batch: int = 16) -> torch.Tensor:
    """model(images), `batch` at a time."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in images.split(batch)])


def agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of rows with the same highest class."""
    return (a.argmax(1) == b.argmax(1)).float().mean().item()


def interleaved_medians(calls: dict[str, Callable[[], object]], rounds: int = 30, warmup: int = 5) -> dict[str, float]:
    """Median milliseconds of each call on the wall. They take turns, so that a change of the machine's speed meets all of them alike."""
    with torch.inference_mode():
        return {name: timed.wall.median for name, timed in in_turn(calls, rounds, warmup).items()}


def size_on_disk(model: nn.Module, path: Path) -> int:
    """Bytes of the model's state_dict, saved to `path`."""
    torch.save(model.state_dict(), path)
    return path.stat().st_size


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
