"""Steps that read an argument which a call may leave out: networks that have them are prepared for several call forms."""

from __future__ import annotations

from torch import Tensor, nn

from tests.grammar.network import Draw, Made, rule

OPTION = {"masked": "mask", "masked_module": "mask", "scaled": "scale"}  # of the steps of each rule


def spread(mask: Tensor, like: Tensor) -> Tensor:
    """One number for each row of the batch."""
    return mask.view(-1, *[1] * (like.dim() - 1))


@rule(1)
def masked(draw: Draw, x: Tensor) -> Made | None:
    def times(v: Tensor, mask: Tensor | None) -> Tensor:
        return v if mask is None else v * spread(mask, v)

    def filled(v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            v = v.masked_fill(spread(mask, v) == 0, 0.5)
        return v * 2

    return None, draw.pick(times, filled)


@rule(1)
def masked_module(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() not in (2, 3) or not 2 <= x.shape[-1] <= 32:
        return None

    def either(part: nn.Module, v: Tensor, mask: Tensor | None) -> Tensor:
        return v + 1 if mask is None else part(v) * spread(mask, v) + v  # type: ignore[no-any-return]

    return nn.Linear(x.shape[-1], x.shape[-1]), either


@rule(1)
def scaled(draw: Draw, x: Tensor) -> Made | None:
    return None, draw.pick(lambda v, scale: v * scale, lambda v, scale: v + scale, lambda v, scale: (v - scale).relu())
