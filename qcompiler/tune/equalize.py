"""equalize: channels of unlike range are brought nearer to each other, so that the steps they share suit all of them.

s_c = (r_c / max r) ^ alpha of the largest absolute values r of the channels: the op in front makes channel c 1/s_c as large, and those that
read it have weights s_c as large. Through sums, PReLU, open ReLU and pools, and from a layer norm to linears: the scales fold into weights
that are there, so it costs nothing at run time and changes no float result.

Known to hurt: a ReLU6, or any clamp with an upper end, which then cuts elsewhere; such values are left alone. An alpha that was not tried:
with 0.5 Silero VAD has 10.0 dB instead of 23.5, with the one that is chosen on the data 24.6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, fx

from qcompiler.ambient import in_plain_torch
from qcompiler.config.corrections import NO_CORRECTIONS, Corrections
from qcompiler.inputs.door import door
from qcompiler.ir.attributes import attribute
from qcompiler.ir.names import user_path
from qcompiler.ir.types import quant_of
from qcompiler.ops.spec import Family
from qcompiler.tune.alphas import best_alpha, check_alpha, may_gain
from qcompiler.tune.channel_ends import TRIED, Ends, Halves, channel_scales, ends_of_last
from qcompiler.tune.channel_regions import Region, regions
from qcompiler.tune.groups import named_ranges
from qcompiler.tune.one_form import one_form
from qcompiler.tune.trial import Trial
from qcompiler.tune.walk import Tell
from qcompiler.workflow.twins import Twin

MUCH = 2.0  # dB with float weights: what is worth new codes for all weights. Less is no gain on other data (EfficientNet-Lite1 and Lite2)


@in_plain_torch
@door
def equalize(prepared: object, batches: object, *, corrections: Corrections | None = None, alpha: float | None = None,
             tell: Tell | None = None) -> Corrections:  # fmt: skip
    """The corrections with float weights whose results have channels of like range, and the ranges that the values have then.

    prepared: calibrated, of prepare_fx, with one form of the call. batches: as `calibrate` takes them. `alpha`: of 0.25, 0.5 and 0.75 the
    one with the least error of the results on the first four batches, or no change where each makes it larger; a number is taken unseen:
    0 changes nothing, 1 would make all channels alike at the cost of the weights that read them; at most 0.75. Codes that were found for a
    changed weight are dropped, so this comes before `reconstruct`. `tell(done, total)` is called behind each part of the work. Raises
    ConfigError for another alpha and for several forms of the call, CalibrationError for no batches.
    """
    check_alpha(alpha)
    return _equalized(prepared, batches, corrections or NO_CORRECTIONS, alpha, tell)


@in_plain_torch
def equalize_values(prepared: object, batches: object, so_far: Corrections, tell: Tell) -> Corrections:
    """As `equalize(alpha=None)`, in front of new codes: chosen by the noise with float weights, `so_far` where that gains too little.

    Most models gain too little, and one batch tells most of those.
    """
    return _equalized(prepared, batches, so_far, None, tell, MUCH)


def _equalized(prepared: object, batches: object, so_far: Corrections, alpha: float | None, tell: Tell | None,
               least: float | None = None) -> Corrections:  # fmt: skip
    """`least`: dB with float weights that a change must gain; None: judged as it is, whatever it gains."""
    with one_form(prepared, batches, so_far, "a model of several forms of the call cannot be equalized") as (twin, data):
        found = list(regions(twin.floats, twin.settings.table))
        axes = {node: region.axis for region in found for node in region.values}

        def make(one: float, of: Ends) -> Corrections:
            return _with_alpha(twin, of, found, one, so_far)

        def trial(count: int = TRIED) -> Trial:
            made = Trial.of(prepared, twin.floats, data[:count])
            return made if least is None else replace(made, values_alone=True, least=least)

        if least is not None and not may_gain(make, so_far, ends_of_last(twin, axes, data), trial(1)):
            return so_far
        return best_alpha(make, alpha, so_far, Halves.of(twin, axes, data), trial, tell)


def _with_alpha(twin: Twin, ends: Ends, found: Iterable[Region], alpha: float, so_far: Corrections) -> Corrections:
    for region in found:
        so_far |= _of_region(twin, region, ends, alpha, so_far)
    return so_far


def _of_region(twin: Twin, region: Region, ends: Ends, alpha: float, so_far: Corrections) -> Corrections:
    quantized = [node for node in region.values if quant_of(node).group is not None]
    if not quantized:
        return NO_CORRECTIONS  # no value of it is rounded
    scale = channel_scales(ends, quantized, alpha)
    if scale is None:
        return NO_CORRECTIONS
    fold = _Fold(twin, so_far)
    for node in region.makers:
        for arg in node.args[1:3]:
            if isinstance(arg, fx.Node):
                fold.multiply(node, arg, 1 / scale)
    for node in region.readers:
        assert isinstance(node.args[1], fx.Node)
        fold.multiply(node, node.args[1], scale, reads=True)
    biases = {node.name: so_far.biases[node.name] / scale for node in region.makers if node.name in so_far.biases}
    return Corrections(weights=fold.made, biases=biases, ranges=named_ranges(twin, _ranges(quantized, ends, scale), so_far))


class _Fold:
    """Parameters of a twin, with factors for their channels multiplied in; `made` by the user's names."""

    def __init__(self, twin: Twin, so_far: Corrections) -> None:
        self.twin, self.so_far = twin, so_far
        self.made: dict[str, Tensor] = {}

    def multiply(self, node: fx.Node, arg: fx.Node, scale: Tensor, reads: bool = False) -> None:
        """Along the channels that the op reads, or makes."""
        floats, row = self.twin.floats, self.twin.settings.table.of(node)
        path = user_path(floats, str(arg.target))
        held = self.made.get(path, self.so_far.weights.get(path))
        if held is None:
            held = attribute(floats, str(arg.target)).detach() / self.so_far.columns.get(path, torch.tensor(1.0))
        groups = node.kwargs.get("groups", 1)
        assert row is not None and isinstance(groups, int)
        by_last = held.dim() == 1 or row.name == "layer_norm"  # whose weight has the shape of what it normalizes, channels last
        self.made[path] = _scaled(held, scale, groups, None if by_last else reads != (row.family is Family.TRANSPOSED))


def _scaled(held: Tensor, scale: Tensor, groups: int, second: bool | None) -> Tensor:
    """A weight (rows, columns, ...) with its rows or, where `second`, the columns of each group of rows multiplied; None: its last axis."""
    if second is None:
        return held * scale
    if not second and len(scale) == len(held):
        return held * scale.reshape(-1, *[1] * (held.dim() - 1))
    parts = held.reshape(groups, len(held) // groups, *held.shape[1:])
    return (parts * scale.reshape(groups, 1, held.shape[1], *[1] * (held.dim() - 2))).reshape(held.shape)


def _ranges(values: list[fx.Node], ends: Ends, scale: Tensor) -> dict[int, tuple[float, float]]:
    """By group: of all of its values, what they need."""
    lows, highs = dict[int, float](), dict[int, float]()
    for node in values:
        group = quant_of(node).group
        assert group is not None
        lows[group] = min(lows.get(group, 0.0), float((ends[node][0] / scale).min()))
        highs[group] = max(highs.get(group, 0.0), float((ends[node][1] / scale).max()))
    return {group: (lows[group], highs[group]) for group in lows}
