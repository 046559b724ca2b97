"""bind: a program's source -> the function that runs, with its kernels, packs and tensors as globals."""

from __future__ import annotations

import itertools
import linecache
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.emit import Emitter
from qcompiler.backends.torch.program.traced_calls import is_opaque, is_seen
from qcompiler.backends.torch.runtime.by_shape import PacksByShape

_serial = itertools.count()


@dataclass(frozen=True)
class Bound:
    """`forward(self, ...)` as it runs, its source, and the emitter that wrote it. `by_shape`: the packs that it takes by shape."""

    forward: Callable[..., object]
    source: str
    emitter: Emitter
    by_shape: PacksByShape


def resolve(op: str) -> Any:
    """The callable behind an operation's name, as it is called fastest."""
    found = registry.resolve(op)
    # the C function behind an overload costs a third less per call than the overload object
    return getattr(found, "_op", found) if isinstance(found, torch._ops.OpOverload) else found


def define(source: str, namespace: dict[str, Any], title: str, opaque: bool = True) -> Callable[..., object]:
    """The function `forward` of a source text, under a file name of its own that tracebacks and inspect can read.

    `opaque`: torch.compile calls it as it is, and does not look inside.
    """
    filename = f"<qcompiler {title} {next(_serial)}>"
    namespace["__name__"] = "qcompiler.generated"
    exec(compile(source, filename, "exec"), namespace)
    if not opaque:
        del namespace["__name__"]  # torch.compile would import the module of that name to read globals from
    forward: Callable[..., object] = namespace.pop("forward")
    if opaque:  # torch.compile knows no quantized tensors
        forward._torchdynamo_disable = True  # type: ignore[attr-defined]
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    weakref.finalize(forward, linecache.cache.pop, filename, None)
    return forward


def bind(
    emitter: Emitter,
    packs: Mapping[str, object],
    tensor: Callable[[str], Tensor],
    engine: str,
    callee: Callable[[str], object] = resolve,
    like: PacksByShape | None = None,
) -> Bound:
    """Emits and defines forward. `packs`: results of the once calls on `engine`; `tensor`: the tensor under a dotted name.

    `like`: what another forward on the same packs chooses them from.
    """
    emitted = emitter.emit()
    named = {emitted.packs[name]: pack for name, pack in packs.items() if name not in emitter.by_shape}
    chosen = {alias: packs[name] for name, alias in emitted.packs.items() if name in emitter.by_shape}
    by_shape = like if like is not None and like.packs() == chosen else PacksByShape(chosen, engine)
    namespace = emitter.namespace(callee) | named | {alias: tensor(path) for path, alias in emitted.tensors.items()}
    namespace[emitter.choice] = by_shape
    source = "".join(f"# {alias} = {op}\n" for alias, op in sorted(emitted.kernels.items())) + emitted.source
    opaque = any(map(is_opaque, emitter.program.calls)) or not all(map(is_seen, packs.values()))
    return Bound(define(source, namespace, emitter.program.name, opaque), source, emitter, by_shape)


def without_forward(cls: type) -> None:
    """Called when the module of a class is gone: a class refers to itself, so all that its forward holds would wait for a garbage
    collection."""
    if "forward" in vars(cls):
        del cls.forward  # type: ignore[attr-defined]
