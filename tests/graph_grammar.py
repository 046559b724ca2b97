"""Random networks of many kinds: 1-3d convolutions, recurrent layers, attention, norms, functions of single values, reductions, indexing,
masks, shared modules, in-place forms, buffers, complex numbers, statements that look at data, several inputs, some of integers, several
call forms.

`network(seed)` draws step after step, each fed by values that exist already, and runs it on the example to know what comes out. Every
step computes with the sizes of its inputs, so that other batches and sizes fit as well. The rules stand in tests/grammar/.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tests.grammar import (  # noqa: F401
    blocks,
    features,
    forms,
    functions,
    indexing,
    norms,
    pairs,
    products,
    recurrences,
    reductions,
    sampling,
    sequences,
    spatial,
    spectra,
    statements,
    values,
    writes,
)  # fmt: skip
from tests.grammar.network import BRANCHES, MAX_VALUES, RULES, Draw, Network, Step

__all__ = ["RULES", "Network", "network"]


def _inputs(rng: random.Random) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    batch, channels = rng.choice((1, 2, 3)), rng.choice((1, 3, 4, 8))
    rank = rng.choice((0, 0, 1, 1, 2, 2, 2, 2, 3))
    sizes = [rng.choice((1, 2, 4, 5, 8)) for _ in range(rank)] if rng.random() < 0.3 else [rng.choice((6, 8, 9)) for _ in range(rank)]
    shape = (batch, channels, *sizes)
    if rng.random() < 0.2:  # tokens
        shape = (batch, rng.choice((1, 3, 6, 9)), rng.choice((4, 8, 16)))
    x, kind = torch.randn(shape, generator=generator) * rng.choice((0.3, 1, 4)), rng.random()
    if kind < 0.15:
        return x, torch.randn(shape, generator=generator)
    return (x, torch.randint(10, (batch, rng.choice((1, 4, 6))), generator=generator)) if kind < 0.3 else (x,)


def _forms(rng: random.Random, x: Tensor) -> list[dict[str, Any]]:
    """For some networks the call forms: without, with and with a number beside the mask."""
    mask = (torch.arange(x.shape[0]) % 2 == 0).float()
    forms: list[dict[str, Any]] = [{}, {"mask": mask}, {"mask": mask, "scale": 0.5}]
    return forms[: rng.choice((2, 3))] if rng.random() < 0.12 else []


def _step(draw: Draw) -> tuple[Step, Tensor] | None:
    floats = [i for i, v in enumerate(draw.values) if v.is_floating_point()]
    draw.index = draw.rng.choice(floats[-4:])
    x = draw.values[draw.index]
    if draw.rng.random() < 0.2:
        return pairs.pair(draw, x)
    name, made, _ = draw.rng.choices(RULES, [weight for *_, weight in RULES])[0]
    option = forms.OPTION.get(name)
    if (option is not None and not draw.net.forms) or (name in BRANCHES and draw.net.forms):
        return None  # conditions are far from where they turn with the example's arguments alone
    found = made(draw, x)
    if found is None:
        return None
    part, function = found
    key = next((k for k, m in draw.net.parts.items() if m is part), f"{name}{len(draw.net.steps)}") if part is not None else None
    if part is not None:
        _randomize(part.eval(), draw.rng)
    given = () if option is None else (draw.net.forms[-1].get(option, 1.0),)
    result = function(*(() if part is None else (part,)), draw.values[draw.index], *given)
    if part is not None and key is not None:
        draw.net.parts[key] = part
    return Step(name, key, function, (draw.index,), option), result


def _randomize(part: nn.Module, rng: random.Random) -> None:
    """Statistics and weights of BatchNorms, as training would leave them."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if module.affine:
                module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


def network(seed: int) -> tuple[Network, tuple[Tensor, ...]]:
    """A network and its example inputs: the same for the same seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    draw = Draw(rng)
    inputs = _inputs(rng)
    draw.values, draw.given = list(inputs), len(inputs)
    draw.net.forms = _forms(rng, inputs[0])
    wanted = rng.choice((1, 2, 4, 6, 8, 12, 16))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LSTM with projections")  # torch's float layer has a slow form alone
        for _ in range(20 * wanted):
            if len(draw.net.steps) >= wanted:
                break
            found = _step(draw)
            if found is None or not found[1].numel() or found[1].numel() > MAX_VALUES or not bool(torch.isfinite(found[1]).all()):
                continue
            if found[1].abs().max() > 1e4:
                continue
            draw.net.steps.append(found[0])
            draw.values.append(found[1])
    unread = [i for i in range(len(inputs), len(draw.values)) if not any(i in s.inputs for s in draw.net.steps)] or [len(draw.values) - 1]
    form = rng.choice(("one", "one", "tuple", "dict", "dict", "list", "nested"))
    if form == "one" and len(unread) > 1:
        form = "tuple"
    draw.net.results = (form, tuple(unread[-4:]))
    if not any(s.option for s in draw.net.steps):
        draw.net.forms = []
    used = {s.module for s in draw.net.steps}
    for name in [n for n in draw.net.parts if n not in used]:
        del draw.net.parts[name]
    return draw.net.eval(), inputs
