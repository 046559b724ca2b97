"""Which of the live variables of a trace use the same memory, by the memory of their examples."""

from __future__ import annotations

import weakref

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from qcompiler.trace.proxy import Proxy

_MANY = 8  # variables of one memory, from where on dead ones are taken out


def storage(tensor: torch.Tensor) -> int:
    """Identity of a tensor's memory (0 where it has none)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def stamp(tensor: torch.Tensor) -> tuple[object, ...]:
    """What is another one where a tensor was changed in place, given other memory, or swapped with another tensor."""
    return 0 if tensor.is_inference() else tensor._version, storage(tensor), tensor.storage_offset(), tensor.size(), tensor.stride()


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last position in its memory that a tensor covers."""
    first = int(tensor.storage_offset())
    return first, first + int(sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=True)))


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have an element of memory in common."""
    if storage(a) != storage(b) or not a.numel() or not b.numel():
        return False
    if a.dtype != b.dtype:
        return True
    (first_a, last_a), (first_b, last_b) = _range(a), _range(b)
    if last_a < first_b or last_b < first_a:
        return False
    if last_a - first_a + 1 == a.numel() and first_a <= first_b:  # a has no holes
        return True
    covered = torch.zeros(max(last_a, last_b) + 1, dtype=torch.bool)
    covered.as_strided(a.size(), a.stride(), first_a).fill_(True)
    return bool(covered.as_strided(b.size(), b.stride(), first_b).any())


class Memory:
    """The variables that were bound to tensors, weakly held."""

    def __init__(self) -> None:
        self._users: dict[int, list[weakref.ref[Proxy]]] = {}
        self._linked: dict[int, dict[int, None]] = {}  # by memory: what is the same one at other sizes, perhaps
        self._kept: dict[int, StorageWeakRef] = {}  # lets go of the data, and no other memory gets the identity of one that is linked

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

    def link(self, one: Proxy, other: Proxy) -> None:
        """Note that two variables may have one memory at other sizes or layouts than the example's."""
        a, b = self._keep(one.example), self._keep(other.example)
        if not a or not b:
            return
        self._linked.setdefault(a, {})[b] = None
        self._linked.setdefault(b, {})[a] = None

    def _keep(self, tensor: torch.Tensor) -> int:
        """The identity of a tensor's memory, which stays its own when that is gone."""
        key = storage(tensor)
        if key and key not in self._kept:
            self._kept[key] = StorageWeakRef(tensor.untyped_storage())
        return key

    def kin(self, proxy: Proxy) -> list[Proxy]:
        """The other live variables that have, or may have, the memory of this one."""
        keys, todo = dict[int, None](), [storage(proxy.example)]
        while todo:
            if (key := todo.pop()) not in keys:
                keys[key] = None
                todo.extend(self._linked.get(key, ()))
        return [p for key in keys for p in self.users(key) if p is not proxy]
