"""Which of the live variables of a trace use the same memory, by the memory of their examples."""

from __future__ import annotations

import weakref

import torch

from qcompiler.trace.proxy import Proxy

_MANY = 8  # variables of one memory, from where on dead ones are taken out


def storage(tensor: torch.Tensor) -> int:
    """Identity of a tensor's memory (0 where it has none)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


class Memory:
    """The variables that were bound to tensors, weakly held."""

    def __init__(self) -> None:
        self._users: dict[int, list[weakref.ref[Proxy]]] = {}

    def remember(self, proxy: Proxy) -> None:
        """Note which memory the example of a variable uses."""
        refs = self._users.setdefault(storage(proxy.example), [])
        if len(refs) > _MANY:
            refs[:] = [ref for ref in refs if ref() is not None]
        refs.append(weakref.ref(proxy))

    def aliases(self, proxy: Proxy) -> list[Proxy]:
        """The other live variables that use the same memory."""
        return [p for p in self.users(storage(proxy.example)) if p is not proxy]

    def users(self, key: int) -> list[Proxy]:
        """The live variables of a memory."""
        live = [ref() for ref in self._users.get(key, ())] if key else []
        return [p for p in live if p is not None and not p.node._erased and storage(p.example) == key]
