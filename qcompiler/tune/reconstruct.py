"""reconstruct: the weights of a model rounded so that its results keep their values; correct_bias: its biases alone.

Both walk over the model: each op is given what the int8 ops before it make, corrected as they are by then, and aims at what the float
model makes there. So errors of an op are made up by the ops behind it. No labels are needed, and no op takes longer afterwards.

What a range cuts off is not aimed at: a range is narrower than its data where that costs the results little, and weights that make up
for it in the few rows that it cuts are wrong for all others (all-MiniLM-L6-v2 behind fitted ranges: 4.5 dB instead of 20.6).

Known to hurt: a bias over all positions, those included that a clamp cuts off (CREPE -5 dB), so `correct_bias` looks at active ones alone.
Known to give nothing: tuning codes by the error of the model's result; float sums.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from qcompiler.ambient import in_plain_torch
from qcompiler.config.corrections import NO_CORRECTIONS, Corrections
from qcompiler.config.qconfig_of_op import weight_codes
from qcompiler.inputs.door import door
from qcompiler.ir.attributes import attribute, bias_path, set_attribute, set_parameter
from qcompiler.ir.types import quant_of
from qcompiler.ops.spec import Family
from qcompiler.stages.arguments import Weight
from qcompiler.tune.rounding import FEW, Grid, on_larger_scales, reconstructed
from qcompiler.tune.sampled_rows import FOR_EACH, MOST_ROWS
from qcompiler.tune.sites import Site, as_rows, from_rows, per_channel
from qcompiler.tune.sums import blocks_of, from_blocks, in_blocks
from qcompiler.tune.walk import Options, Tell, Visit, walk

LEAST_ACTIVE = 16  # results of a channel within its bounds, to tell their mean error
# How near a weight stays to what it was, in parts of the mean square of its inputs. With 0.01, as is usual for language models, the later
# layers of EfficientNet-Lite0 fit four calibration photos, and do worse on others than rounding to the nearest (20.97 dB against 22.05 at
# one layer, given the same inputs; 22.13 with 1).
DAMPING = 1.0


@in_plain_torch
@door
def reconstruct(
    prepared: object, batches: object, *, corrections: Corrections | None = None, rows: int = MOST_ROWS, seed: int = 0,
    tell: Tell | None = None
) -> Corrections:  # fmt: skip
    """The corrections with codes for the weights of convolutions and linears, their scales, and biases that fit these.

    prepared: calibrated, of prepare_fx. batches: as `calibrate` takes them; the same data will do. `corrections`: those so far, on which
    it builds. `rows`: at most so many rows of products at an op, drawn with `seed`. `tell(done, total)` is called
    behind each op; what it raises ends the walk, and nothing is changed. Weights that several ops share keep their codes, and those that
    several forms of the call with data read their biases as well. Raises what convert_fx does, and CalibrationError for no batches.
    """
    so_far, weights, biases = corrections or NO_CORRECTIONS, list[Weight](), dict[str, Tensor]()
    for visit in walk(prepared, batches, corrections, Options(seed, tell, rows)):
        if not visit.site.shared and not _too_wide(visit):
            weights.append(_rounded(visit, visit.site.name not in so_far.scales))
            visit = _with_weight(visit, weights[-1])
        biases[visit.site.node.name] = _mended_bias(visit)
    codes, scales = ({weight.name: getattr(weight, part) for weight in weights} for part in ("codes", "scale"))
    return so_far | Corrections(codes=codes, scales=scales, biases=biases)


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


def _rounded(visit: Visit, scales: bool) -> Weight:
    """The weight with new codes and, where `scales` and products are few, scales. Where there are few rows for so many products, it stays
    nearer to what it was: EfficientNet-Lite0's layers on 7 x 7 pixels have three rows for each, and fitted these alone (28 dB on them,
    18 dB on other photos)."""
    site, sums = visit.site, visit.sums

    def holds(codes: Tensor) -> Tensor:
        assert site.limit is not None
        return site.limit.holds(from_rows(site, codes)).reshape(codes.shape[:2])

    grid, start = _grid(site), as_rows(site, _codes(visit)).double()
    damping = DAMPING * max(1.0, FOR_EACH * in_blocks(start).shape[2] / max(sums.count, 1)) ** 2
    limit, products = None if site.limit is None else holds, start.shape[2]
    scales &= site.limit is None or site.row.family is not Family.TRANSPOSED
    if scales and products <= FEW and site.weight.scale.numel() == start.shape[0] * start.shape[1] > 1:
        found, scale = on_larger_scales(sums.weight.double(), start, sums.moments(), grid, damping, limit)
    else:
        grid, scale = grid.repeated(blocks_of(products)), site.weight.scale
        found = reconstructed(in_blocks(sums.weight).double(), in_blocks(start), sums.moments(), grid, damping, limit)
        found = from_blocks(found, products)
    codes = from_rows(site, found).to(torch.int8).contiguous()
    return replace(site.weight, codes=codes, scale=scale.reshape(site.weight.scale.shape).contiguous())


def _with_weight(visit: Visit, weight: Weight) -> Visit:
    """The site with it, in the quantized graph too."""
    read = visit.site.node.args[visit.site.call.op.weight or 0]
    assert isinstance(read, fx.Node)
    for part, tensor in zip(read.args[:2], (weight.codes, weight.scale)):
        assert isinstance(part, fx.Node)
        set_attribute(visit.twin.quantized, str(part.target), tensor)
    return replace(visit, site=replace(visit.site, weight=weight))


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
