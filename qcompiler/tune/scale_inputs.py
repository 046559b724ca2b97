"""scale_inputs: channels of unlike range in front of linears are brought nearer to each other by a multiplication.

What `equalize` folds into the weights in front costs nothing. Where these cannot take the factors, as behind a layer norm whose result is
added as well, a float value is multiplied by 1/s_c for the linears alone, and the columns of their weights by s_c. Language models have a
few channels of a hundred times the size of the others: they set the step of all (Xiao et al., SmoothQuant, 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import fx

from qcompiler.ambient import in_plain_torch
from qcompiler.config.corrections import NO_CORRECTIONS, Corrections, scaled_name
from qcompiler.inputs.door import door
from qcompiler.ir.names import user_path
from qcompiler.ir.types import quant_of
from qcompiler.ops.spec import Family
from qcompiler.tune.alphas import best_alpha, check_alpha
from qcompiler.tune.channel_ends import TRIED, Ends, Halves, channel_scales, scaled_range
from qcompiler.tune.channel_regions import is_own
from qcompiler.tune.one_form import one_form
from qcompiler.tune.trial import Trial
from qcompiler.tune.walk import Tell
from qcompiler.workflow.twins import Twin

Inputs = Mapping[fx.Node, list[fx.Node]]  # by float value the linears that round it


@in_plain_torch
@door
def scale_inputs(prepared: object, batches: object, *, corrections: Corrections | None = None, alpha: float | None = None,
                 tell: Tell | None = None) -> Corrections:  # fmt: skip
    """The corrections with factors for the columns of linears that read a float value, and the ranges that this then has.

    It costs a multiplication of that value. Arguments and errors as of `equalize`. Linears that have factors in the corrections so far, and
    those whose weight others read as well, keep what they have; codes that were found for a changed weight are dropped.
    """
    check_alpha(alpha)
    so_far = corrections or NO_CORRECTIONS
    with one_form(prepared, batches, so_far, "inputs of a model of several forms of the call cannot be scaled") as (twin, data):
        found = inputs_of_linears(twin, so_far)
        ends = Halves.of(twin, dict.fromkeys(found, 1), data)
        trial = partial(Trial.of, prepared, twin.floats, data[:TRIED])
        return best_alpha(lambda one, of: so_far | _scaled(twin, found, of, one), alpha, so_far, ends, trial, tell)


def inputs_of_linears(twin: Twin, so_far: Corrections) -> Inputs:
    """The float values that int8 linears alone round, with a calibrated range."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in twin.floats.graph.nodes:
        row = twin.settings.table.of(node)
        if row is None or row.settled.family is not Family.LINEAR or not quant_of(node).int8 or not is_own(twin.floats, node.args[1]):
            continue
        value = node.args[0]
        assert isinstance(value, fx.Node) and isinstance(node.args[1], fx.Node)
        if not quant_of(value).int8 and quant_of(value).group in twin.measured and _path(twin, node) not in so_far.columns:
            found.setdefault(value, []).append(node)
    return found


def _path(twin: Twin, node: fx.Node) -> str:
    assert isinstance(node.args[1], fx.Node)
    return user_path(twin.floats, str(node.args[1].target))


def _scaled(twin: Twin, found: Inputs, ends: Ends, alpha: float) -> Corrections:
    made = NO_CORRECTIONS
    for value, readers in found.items():
        scale = channel_scales(ends, [value], alpha)
        if scale is not None and alpha:
            columns = {_path(twin, node): scale for node in readers}
            made |= Corrections(columns=columns, ranges={scaled_name(value.name): scaled_range(ends[value], scale)})
    return made
