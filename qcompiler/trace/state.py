"""What a forward leaves on its modules is taken back: a trace does not change the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from qcompiler.trace.recorder import Recorder

_Snapshot = tuple[nn.Module, dict[str, Any], list[tuple[Any, Any]]]


def _snapshot(module: nn.Module) -> _Snapshot:
    """A module's attributes, and the contents of those that are plain containers."""
    containers = [(value, value.copy()) for value in vars(module).values() if isinstance(value, (dict, list, set))]
    return module, dict(vars(module)), containers


def _restore(snapshot: _Snapshot) -> None:
    module, attributes, containers = snapshot
    now = vars(module)
    if len(now) != len(attributes) or any(now.get(name) is not value for name, value in attributes.items()):
        now.clear()
        now.update(attributes)
    for container, content in containers:
        if _same(container, content):
            continue
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(content)


def _same(a: Any, b: Any) -> bool:
    """Whether two containers hold the same objects in the same order (proxies must not be compared by value)."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(k is m and v is w for (k, v), (m, w) in zip(a.items(), b.items(), strict=True))
    return all(v is w for v, w in zip(a, b, strict=True))


@contextlib.contextmanager
def kept_state(recorder: Recorder) -> Iterator[None]:
    """Restore every module's attributes in the end, and those of the modules of a rolled-back attempt at once."""
    snapshots = {id(module): _snapshot(module) for module in recorder.model.modules()}

    def restore(root: nn.Module) -> None:
        for module in root.modules():
            if id(module) in snapshots:
                _restore(snapshots[id(module)])

    recorder.restore_modules = restore
    try:
        yield
    finally:
        for snapshot in snapshots.values():
            _restore(snapshot)
