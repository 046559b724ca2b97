"""The native regions of this process by their constants, and a region's description as text: by these torch's operator finds a region."""

from __future__ import annotations

import json
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from qcompiler.backends.native.steps import Region, RegionError
from qcompiler.files.values import canonical, from_json, to_json

MOST = 2**28  # characters of a description
Ids = tuple[int, ...]


def described(region: Region) -> str:
    """The text from which `region_of_text` makes the region again; without the places, which only those who compare ask for."""
    return canonical(to_json(region.to_data() | {"places": {}}))


def region_of_text(text: str) -> Region:
    """Raises RegionError for text that describes no region."""
    try:
        if len(text) > MOST:
            raise ValueError("too long")
        data = from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RegionError(f"no native region: {error!r:.200}") from None
    return Region.from_data(data)


class Live(Protocol):
    """What a region is found by: its constants, their versions then, and its description."""

    constants: list[Tensor]
    versions: Ids
    description: str


R = TypeVar("R", bound=Live)


class LiveRegions(Generic[R]):
    """The regions of this process by their constants: those of modules, which own them, and those that the operator made."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a tensor may die while it is held, and calls back
        self.found: dict[Ids, list[Callable[[], R | None]]] = {}
        self.dead: deque[tuple[Ids, Callable[[], R | None]]] = deque()  # what died while another thread held the lock

    def add(self, region: R) -> None:
        """A region that lives elsewhere, with its constants."""
        ids, reference = _ids(region.constants), weakref.ref(region)
        with self.lock:
            self._forget_dead()
            if reference in self.found.setdefault(ids, []):
                return
            self.found[ids].append(reference)
        weakref.finalize(region, self._drop, ids, reference).atexit = False

    def keep(self, region: R, constants: Sequence[Tensor]) -> None:
        """A region of the operator's own, which lives as long as all of its constants."""
        ids = _ids(constants)

        def reference() -> R:
            return region

        with self.lock:
            self._forget_dead()
            self.found.setdefault(ids, []).append(reference)
        for tensor in constants:
            weakref.finalize(tensor, self._drop, ids, reference).atexit = False

    def get(self, constants: Sequence[Tensor], description: str) -> R | None:
        """The region that was made of the constants as they are; drops one of the operator's own that was made of others."""
        ids = _ids(constants)
        for reference in list(self.found.get(ids, ())):
            region = reference()
            if region is not None and region.description == description:
                if region.versions == versions(constants):
                    return region
                if not isinstance(reference, weakref.ref):
                    self._drop(ids, reference)
        return None

    def _drop(self, ids: Ids, reference: Callable[[], R | None]) -> None:
        """Called when something died, in any thread at any place: so it waits for no lock, which is held while a region is compiled."""
        self.dead.append((ids, reference))
        if self.lock.acquire(blocking=False):
            try:
                self._forget_dead()
            finally:
                self.lock.release()

    def _forget_dead(self) -> None:
        while self.dead:
            ids, reference = self.dead.popleft()
            left = [other for other in self.found.get(ids, ()) if other is not reference]
            if left:
                self.found[ids] = left
            else:
                self.found.pop(ids, None)


def versions(constants: Sequence[Tensor]) -> Ids:
    """Numbers that change when tensors are changed in place, or get other memory (`.data =`). What is written into their memory past
    torch (`.data.zero_()`, NumPy), or in place into inference tensors, is not seen: no number of torch's tells of it."""
    return tuple(n for t in constants for n in (0 if t.is_inference() else t._version, t.data_ptr()))


def _ids(constants: Sequence[Tensor]) -> Ids:
    return tuple(map(id, constants))
