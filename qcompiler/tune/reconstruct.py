"""reconstruct: the weights of a model rounded so that its results keep their values; correct_bias: its biases alone.

Both walk over the model: each op is given what the int8 ops before it make, corrected as they are by then, and aims at what the float
model makes there. So errors of an op are made up by the ops behind it. No labels are needed, and no op takes longer afterwards.

What a range cuts off is not aimed at: a range is narrower than its data where that costs the results little, and weights that make up
for it in the few rows that it cuts are wrong for all others (all-MiniLM-L6-v2 behind fitted ranges: 4.5 dB instead of 20.6).

Known to hurt: a bias over all positions, those included that a clamp cuts off (CREPE -5 dB), so `correct_bias` looks at active ones alone.
Known to give nothing: tuning codes by the error of the model's result; float sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.ambient import in_plain_torch
from qcompiler.config.corrections import NO_CORRECTIONS, Corrections
from qcompiler.config.qconfig_of_op import weight_codes
from qcompiler.inputs.door import door
from qcompiler.ir.attributes import attribute, bias_path, set_attribute, set_parameter
from qcompiler.ir.types import quant_of
from qcompiler.tune.damping import chosen_damping, moved, usual_damping
from qcompiler.tune.rounding import Grid, Moments, reconstructed
from qcompiler.tune.sampled_rows import FOR_EACH, MOST_ROWS
from qcompiler.tune.sites import Site, as_rows, from_rows, per_channel
from qcompiler.tune.sums import Sums, blocks_of, from_blocks, in_blocks
from qcompiler.tune.walk import Options, Tell, Visit, walk

LEAST_ACTIVE = 16  # results of a channel within its bounds, to tell their mean error


@in_plain_torch
@door
def reconstruct(
    prepared: object, batches: object, *, corrections: Corrections | None = None, rows: int = MOST_ROWS, seed: int = 0,
    tell: Tell | None = None
) -> Corrections:  # fmt: skip
    """The corrections with codes for the weights of convolutions and linears, on the scales that these have, and biases that fit these.

    prepared: calibrated, of prepare_fx. batches: as `calibrate` takes them; the same data will do. `corrections`: those so far, on which
    it builds. `rows`: at most so many rows of products at an op, drawn with `seed`. `tell(done, total)` is called
    behind each op; what it raises ends the walk, and nothing is changed. Weights that several ops share keep their codes, and those that
    several forms of the call with data read their biases as well. Raises what convert_fx does, and CalibrationError for no batches.
    """
    codes, scales, biases = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for visit in walk(prepared, batches, corrections, Options(seed, tell, rows)):
        if not visit.site.shared and not _too_wide(visit):
            name, made = visit.site.name, _rounded(visit)
            codes[name], scales[name] = made, visit.site.weight.scale
            set_attribute(visit.twin.quantized, visit.site.path, made)
        biases[visit.site.node.name] = _mended_bias(visit)
    return (corrections or NO_CORRECTIONS) | Corrections(codes=codes, scales=scales, biases=biases)


@in_plain_torch
@door
def correct_bias(
    prepared: object, batches: object, *, corrections: Corrections | None = None, seed: int = 0, tell: Tell | None = None
) -> Corrections:  # fmt: skip
    """The corrections with biases that take the mean error of each channel away, where the result is not cut by bounds.

    Arguments as of `reconstruct`.
    """
    biases = dict[str, Tensor]()
    for visit in walk(prepared, batches, corrections, Options(seed, tell)):
        biases[visit.site.node.name] = _mended_bias(visit)
    return (corrections or NO_CORRECTIONS) | Corrections(biases=biases)


def _codes(visit: Visit) -> Tensor:
    return attribute(visit.twin.quantized, visit.site.path)


def _grid(site: Site) -> Grid:
    zero_point = per_channel(site, site.weight.zero_point).double()
    return Grid(per_channel(site, site.weight.scale), zero_point, *weight_codes(site.call.op, quant_of(site.node).qconfig))


def _too_wide(visit: Visit) -> bool:
    """Rows in several blocks for a kernel whose sums ask something of whole rows."""
    return visit.site.limit is not None and blocks_of(visit.sums.weight.shape[2]) > 1


def _rounded(visit: Visit) -> Tensor:
    """New codes of the weight."""
    site, sums = visit.site, visit.sums

    def holds(codes: Tensor) -> Tensor:
        assert site.limit is not None
        return site.limit.holds(from_rows(site, codes)).reshape(codes.shape[:2])

    start, wanted, moments = in_blocks(as_rows(site, _codes(visit))), *_wanted(sums)
    damping = usual_damping(wanted.shape[2], sums.count, FOR_EACH)
    grid = _grid(site).repeated(blocks_of(sums.weight.shape[2]))
    found = reconstructed(wanted, start, moments, grid, damping, None if site.limit is None else holds)
    return from_rows(site, from_blocks(found, sums.weight.shape[2])).to(torch.int8).contiguous()


def _wanted(sums: Sums) -> tuple[Tensor, Moments]:
    """The real weight that is rounded, with moments that have it as their best: the float weight, moved to where it makes float results
    as far as halves of the data agree on that. Where there are no halves, both as they are: rounding moves the weight, too."""
    weight, halves = in_blocks(sums.weight).double(), sums.halves()
    usual = usual_damping(weight.shape[2], sums.count, FOR_EACH)
    damping, moments = None if halves is None else chosen_damping(weight, halves, usual), sums.moments()
    if halves is None:
        return weight, moments
    wanted = weight if damping is None else moved(weight, moments, damping)
    return wanted, Moments(moments.h, wanted @ moments.h)


def _mended_bias(visit: Visit) -> Tensor:
    """The float bias and the mean error of the active results of each channel (none where too few are active), which the quantized graph
    has from here on."""
    weight = _grid(visit.site).real(as_rows(visit.site, _codes(visit)).double())
    bias = (visit.sums.bias[..., 0] + visit.sums.mean_error(weight, LEAST_ACTIVE)).float().reshape(-1)
    _set_bias(visit, bias)
    return bias


def _set_bias(visit: Visit, bias: Tensor) -> None:
    node, gm = visit.site.node, visit.twin.quantized
    at = [param.name for param in visit.site.call.op.params].index("bias")
    given = [*node.args, *[None] * (at + 1 - len(node.args))]
    with gm.graph.inserting_before(node):
        given[at] = set_parameter(gm, node, bias_path(given[at], visit.site.path), bias)
    node.args = tuple(given)
