"""What tells one search from another, so that a log is gone on from by the same one alone: the same text in every process."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import fx, nn

from qcompiler.errors import ConfigError
from qcompiler.executable.call_forms import forms_of
from qcompiler.inputs.fingerprint import fingerprints
from qcompiler.ir.types import quant_of
from qcompiler.prepared.module import required_state
from qcompiler.tune.classes import are_classes
from qcompiler.tune.held_out import Item, checksum
from qcompiler.tune.score import Metric
from qcompiler.tune.shares import Shares
from qcompiler.workflow.ranks import told

PLAIN = (bool, int, float, str, torch.dtype, torch.qscheme)


def search_key(
    model: nn.Module, prepared: nn.Module, items: Sequence[Item], metric: Metric | None, drawn: tuple[float, int]
) -> dict[str, str]:  # fmt: skip
    """Prepared, not yet calibrated. `drawn`: share that is held out, and seed."""
    judged = Shares.of(prepared).text() or ("" if are_classes(prepared) else "embeddings")
    target = required_state(forms_of(prepared)[0]).settings.target
    return {
        "weights": _digest(sorted(fingerprints(model).items())),
        "data": checksum(items),
        "holdout": str(drawn[0]),
        "seed": str(drawn[1]),
        "metric": "" if metric is None else getattr(metric, "__qualname__", type(metric).__name__),
        "back end": " ".join([target.backend, *(f"{name}={value}" for name, value in sorted(target.settings.items()))]),
        "quantization": _digest(line for form in forms_of(prepared) for line in _decisions(form)),
    } | ({"judgement": judged} if judged else {})


def joined_keys(keys: Sequence[dict[str, str]]) -> dict[str, str]:
    """One of the keys of all processes, with the data of all. Raises ConfigError where they differ in anything else."""
    for rank, key in enumerate(keys):
        other = [name for name, value in key.items() if name != "data" and value != keys[0][name]]
        if other:
            text = f"rank {rank} searches with another {' and '.join(other)} than rank 0"
            hint = "call autotune with the same model and arguments in all processes: only the data differs"
            raise told(ConfigError(text, code="ranks", hint=hint))
    return keys[0] | {"data": " ".join(key["data"] for key in keys)}


def _digest(parts: Iterable[object]) -> str:
    return f"{zlib.crc32(repr(list(parts)).encode()):08x}"


def _decisions(form: nn.Module) -> Iterator[str]:
    """Of each node of a prepared graph what it is, how it is quantized, and with which observers: all that mappings and configs decide."""
    assert isinstance(form, fx.GraphModule)
    for node in form.graph.nodes:
        quant = quant_of(node)
        makers = () if quant.qconfig is None else (quant.qconfig.activation, quant.qconfig.weight)
        watched = form.get_submodule(str(node.target)) if node.op == "call_module" else None
        yield f"{node.name} {node.op} {quant.int8} {quant.mode} {quant.group} {quant.reason}"
        yield f"{list(map(_made, makers))} {_settings(watched)}"


def _made(maker: object) -> str:
    return _settings(maker() if callable(maker) else None)


def _settings(module: nn.Module | None) -> str:
    """The class of a module and of what is in it, with their plain attributes: a maker without a name has no text of its own."""
    parts = [] if module is None else [part for part in module.modules() if type(part) is not nn.Identity]
    return "; ".join(f"{type(part).__qualname__} {sorted(_plain(part))}" for part in parts)


def _plain(module: nn.Module) -> Iterator[str]:
    for name, value in vars(module).items():
        if isinstance(value, PLAIN):
            yield f"{name}={value}"
