"""The ends of the channels of values on data, and the factors that bring channels nearer to each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx

from qcompiler.tune.lane import Batch, Lane
from qcompiler.tune.together import together
from qcompiler.workflow.twins import Twin

Ends: TypeAlias = dict[fx.Node, tuple[Tensor, Tensor]]  # by value the lowest and highest number of each channel
TRIED = 4  # batches that a trial sees
LEAST = 1 / 64  # a channel that is nearly always zero is not made as large as the others


def channel_ends(twin: Twin, axes: Mapping[fx.Node, int], batches: Iterable[Batch], start: int = 0) -> Ends:
    """Of values of the float twin, whose channels lie so many axes from the end; of several processes, those of the data of all.

    `start`: the number of the first batch, for messages.
    """
    ends: Ends = {}
    for number, batch in enumerate(batches, start):
        lane = Lane(twin.floats, [batch], number)
        for node in axes:
            lane.last[node] = len(lane.nodes)  # kept up to the look at it
        for node in sorted(axes):
            lane.advance(node.next)
            x = lane.value(node, 0).movedim(-axes[node], 0).flatten(1)
            low, high = ends.get(node, (x.amin(1), x.amax(1)))
            ends[node] = torch.minimum(low, x.amin(1)), torch.maximum(high, x.amax(1))
            lane.last[node] = max((lane.index[user] for user in node.users), default=-1)
    said = together().all({node.name: pair for node, pair in ends.items()})
    return _merged([{node: one[node.name] for node in axes if node.name in one} for one in said])


def _merged(parts: Sequence[Ends]) -> Ends:
    lows, highs = dict[fx.Node, list[Tensor]](), dict[fx.Node, list[Tensor]]()
    for node, (low, high) in (pair for part in parts for pair in part.items()):
        lows.setdefault(node, []).append(low)
        highs.setdefault(node, []).append(high)
    return {node: (torch.stack(lows[node]).amin(0), torch.stack(highs[node]).amax(0)) for node in lows}


@dataclass(frozen=True)
class Halves:
    """`whole`: the ends on all batches. `others`: on those behind the first `TRIED`, where there are such: on what a trial sees, ends that
    were found on it cut nothing off, so that it would tell too much good of them."""

    whole: Ends
    others: Ends

    @staticmethod
    def of(twin: Twin, axes: Mapping[fx.Node, int], batches: Sequence[Batch]) -> Halves:
        with torch.no_grad():
            first, others = channel_ends(twin, axes, batches[:TRIED]), channel_ends(twin, axes, batches[TRIED:], TRIED)
        return Halves(_merged([first, others]), others or first)


def ends_of_last(twin: Twin, axes: Mapping[fx.Node, int], batches: Sequence[Batch]) -> Ends:
    """Those of one batch, for a first look at another one."""
    with torch.no_grad():
        return channel_ends(twin, axes, batches[-1:], len(batches) - 1)


def channel_scales(ends: Ends, values: Sequence[fx.Node], alpha: float) -> Tensor | None:
    """s_c = (r_c / max r) ^ alpha of the largest absolute values r of the channels of all these; None where all are zero."""
    reach = torch.stack([torch.maximum(-ends[node][0], ends[node][1]) for node in values]).amax(0)
    if not float(reach.max()) > 0:
        return None
    return torch.where(reach > 0, (reach / reach.max()).clamp(min=LEAST).pow(alpha), 1.0)


def scaled_range(ends: tuple[Tensor, Tensor], scale: Tensor) -> tuple[float, float]:
    """What a value needs whose channels are divided by `scale`, 0 included."""
    return min(0.0, float((ends[0] / scale).min())), max(0.0, float((ends[1] / scale).max()))
