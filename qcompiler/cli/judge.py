"""What `quantize` says of its result: how near it is to float on data that it was not calibrated on, how fast, and how small."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.cli.calls import call, tensors

ROUNDS = 10


def nearness(model: nn.Module, small: nn.Module, batches: Iterable[object]) -> list[tuple[str, str]]:
    """The signal to quantization noise of the float results, and of classifiers how often the highest class is the same. That is agreement
    with float, and no accuracy: nobody knows the right answers here."""
    signal = noise = 0.0
    same = rows = 0
    with torch.inference_mode():
        for batch in batches:
            expected, got = (tensors(call(one, batch)) for one in (model, small))
            for (_, a), (_, b) in zip(expected, got, strict=True):
                if a.is_floating_point():
                    signal, noise = signal + float(a.double().square().sum()), noise + float((a.double() - b.double()).square().sum())
            if len(expected) == 1 and is_scores(expected[0][1]):
                same += int((expected[0][1].argmax(1) == got[0][1].argmax(1)).sum())
                rows += len(expected[0][1])
    found = [("signal to quantization noise", decibels(signal, noise))]
    return found + ([("same highest class as float", f"{same / rows:.1%} of {rows}")] if rows else [])


def decibels(signal: float, noise: float) -> str:
    if not noise or not signal:
        return "no signal" if noise else "exact"
    return f"{10 * math.log10(signal / noise):.1f} dB"


def is_scores(value: Tensor) -> bool:
    """Whether rows of it may be scores of classes."""
    return value.is_floating_point() and value.dim() == 2 and value.shape[1] > 1


def speed(model: nn.Module, small: nn.Module, batch: object) -> list[tuple[str, str]]:
    """Of the first batch, in turn."""
    data = [batch if isinstance(batch, (dict, tuple)) else (batch,)]
    found = qcompiler.bench(small, data, modules={"float": model}, scripted=False, rounds=ROUNDS, warmup=2)
    name = next(one for one in found.times if one != "float")
    times = {one: f"{found.times[one].wall.median:.1f} ms" for one in ("float", name)}
    ratio, work = (found.times["float"].wall.median / found.times[name].wall.median,
                   found.times["float"].processor.median / found.times[name].processor.median)  # fmt: skip
    threads = f"{found.threads} thread{'s' * (found.threads != 1)}"
    how = f"{found.inputs}, {threads}; processor time {work:.2f} x"
    rows = [("speed", f"{ratio:.2f} x as fast as float: {times[name]} instead of {times['float']} ({how})")]
    return rows + ([("", found.note)] if found.note else [])
