"""Which ops of the model each layer of a plan computes: layers are joined and cut as the kernels want them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.steps import DEQUANTIZE, DYNAMIC, KNOWN, QUANTIZE, WEIGHT, Step

ROUNDINGS = (QUANTIZE, DEQUANTIZE, DYNAMIC)


def computes(steps: Sequence[Step], layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """Names of ops by the layer's value. An op stands at the layer that makes its value or codes; where that is joined to what reads it,
    there; where several layers make it, at the one with the largest weight, else the last."""
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.reads():
            readers.setdefault(name, []).append(step)
    made = _by_stem(layers)
    found: dict[str, list[str]] = {}
    for step in steps:
        if step.op not in (*ROUNDINGS, WEIGHT) and not step.op.startswith(KNOWN):
            layer = _layer_of(step.out, readers, made)
            if layer is not None:
                found.setdefault(layer, []).append(step.out)
    return {layer: tuple(ops) for layer, ops in found.items()}


def _layer_of(name: str, readers: Mapping[str, Sequence[Step]], made: Mapping[str, str]) -> str | None:
    """The first layer on the way from a value to what reads it; its codes come before its floats."""
    waiting, seen = [name], {name}
    while waiting:
        value = waiting.pop(0)
        after = [step.out for step in sorted(readers.get(value, ()), key=lambda step: step.op not in ROUNDINGS)]
        own = [step.out for step in readers.get(value, ()) if step.op in ROUNDINGS]
        for candidate in (value, *own):
            if candidate in made:
                return made[candidate]
        waiting += [out for out in after if out not in seen]
        seen.update(after)
    return None


def _by_stem(layers: Iterable[Layer]) -> dict[str, str]:
    """The main layer of each value: `up_q.phase.0` and its like are parts of `up_q`."""
    parts: dict[str, list[Layer]] = {}
    for layer in layers:
        parts.setdefault(layer.out.partition(".")[0], []).append(layer)
    return {stem: max(reversed(found), key=_size).out for stem, found in parts.items()}


def _size(layer: Layer) -> int:
    weight = getattr(layer, "weight", None)
    return weight.numel() if weight is not None else 0
