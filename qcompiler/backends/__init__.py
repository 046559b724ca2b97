"""The registry of back ends: a name, the target that answers the passes' questions, the passes that lower QUANTIZED, and what is built.

A back end is imported when it is first asked for. One of another package registers itself, or names where it is to be found:

    register("mine", "my_package.back_end:BACKEND")
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from qcompiler.compile.pass_manager import Pass
from qcompiler.errors import ConfigError
from qcompiler.executable import JSON, Executable
from qcompiler.executable.steps import Steps, steps_of_graph
from qcompiler.target import Target


@dataclass(frozen=True)
class Model:
    """What `build` is told besides the graph: the name of the user's model, the target, and attributes of the user's to keep."""

    name: str
    target: Target
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """What a file holds of one executable: the payload that it wrote, and tensors by their names in the state_dict.

    `path`: of the file, for messages. `modules`: what the user gave as `load(modules=...)`. `shared`: the file holds several forms of the
    call, so that tensors and modules may be those of other forms.
    """

    path: str
    data: Mapping[str, JSON]
    tensors: Mapping[str, Tensor]
    modules: Mapping[str, Any]
    shared: bool = False


@dataclass(frozen=True)
class Backend:
    """One back end.

    `target(engine, isa)`: what prepare_fx and convert_fx ask; each setting is None where the user left it open, and ConfigError for
    one that the back end does not have. `passes`: QUANTIZED to what `build` takes; they may leave ops float, with a remark each.
    `build` makes the module; `load` makes it again of what `_payload` wrote, and runs no code from a file. A back end without `build`
    serves convert_to_reference_fx and exporters. `running`: what must hold while a graph behind `passes` runs node by node, and
    `steps`: its values for those who compare. `taught`: what users registered with the back end and its passes ask for, as data or
    importable objects; `teach` registers it again, in a process that reproduces a failure. `copies`: whether the passes change no tensor in
    place and `build` copies all that the module holds, so that the graph may have the prepared module's own.
    """

    name: str
    target: Callable[[str | None, str | None], Target]
    passes: tuple[Pass, ...] = ()
    build: Callable[[fx.GraphModule, Model], Executable] | None = None
    load: Callable[[Stored], Executable] | None = None
    running: Callable[[Target], AbstractContextManager[None]] = lambda target: nullcontext()
    steps: Callable[[fx.GraphModule], Steps] = steps_of_graph
    taught: Callable[[], Sequence[Any]] = tuple
    teach: Callable[[Sequence[Any]], None] = lambda things: None
    copies: bool = False


_PLACES: dict[str, str | Backend] = {
    "torch": "qcompiler.backends.torch.backend:BACKEND",
    "native": "qcompiler.backends.native.backend:BACKEND",
    "reference": "qcompiler.backends.reference:BACKEND",
    "onnx": "qcompiler.export.onnx_qdq.target:BACKEND",
    "xnnpack": "qcompiler.export.torch_export.xnnpack:BACKEND",
}


def register(name: str, backend: str | Backend) -> None:
    """Adds a back end, or `package.module:attribute`, which is imported when it is asked for. ConfigError for a name that is taken."""
    if _PLACES.get(name, backend) != backend:
        raise ConfigError(f"a back end {name!r:.80} is registered already", code="backend")
    _PLACES[name] = backend


def unregister(name: str) -> None:
    """Takes a back end that was registered out again."""
    _PLACES.pop(name, None)


def names() -> tuple[str, ...]:
    """The registered back ends."""
    return tuple(_PLACES)


def backend_of(name: str) -> Backend:
    """The back end of that name. ConfigError where there is none."""
    place = _PLACES.get(name) if isinstance(name, str) else None
    if place is None:
        raise ConfigError(f"unknown backend {name!r:.80}", code="backend",
                          hint=f"one of {', '.join(names())}; custom settings of convert_fx: convert_custom_config=")  # fmt: skip
    if isinstance(place, Backend):
        return place
    module, _, attribute = place.partition(":")
    found: Backend = getattr(importlib.import_module(module), attribute)
    _PLACES[name] = found
    return found


__all__ = ["Backend", "Model", "Stored", "backend_of", "names", "register", "unregister"]
