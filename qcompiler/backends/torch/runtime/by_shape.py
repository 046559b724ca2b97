"""Sets of packs by the shapes of a call: oneDNN's packs are fast at the shapes and the number of threads of their first call alone.

Such a pack keeps one primitive, made at its first call, and makes another at each call of other shapes or threads, which takes 1.3 to
4 times as long (one thread, 64 channels at 28 x 28: 65 us and 107). Self-contained: code generation copies this into exported files.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import itertools
import threading
from typing import Any

import torch

ENGINE_LOCK = threading.RLock()  # who sets torch's quantized engine for a moment


def unpacked(pack: Any) -> tuple[str, tuple[Any, ...]]:
    """(op, arguments) of another pack of equal contents: `prepacked` makes it, on the same plain weight each time."""
    ops, kind = torch.ops.quantized, pack._type().name()
    if kind == "CellParamsBase":
        _, biases, _, (reduce_range,), packs = pack.__getstate__()[0]
        return "cell", (*map(unpacked, packs), *biases, bool(reduce_range))
    name = {"LinearPackedParamsBase": "linear", "Conv2dPackedParamsBase": "conv2d", "Conv3dPackedParamsBase": "conv3d"}[kind]
    settings = () if name == "linear" else ("stride", "padding", "dilation", "groups")
    return name, (*getattr(ops, f"{name}_unpack")(pack), *(getattr(ops, f"{name}_{setting}")(pack) for setting in settings))


def prepacked(name: str, arguments: tuple[Any, ...]) -> Any:
    """The pack that `unpacked` describes, for the quantized engine of the moment."""
    if name != "cell":
        return getattr(torch.ops.quantized, f"{name}_prepack")(*arguments)
    ih, hh, *rest = arguments
    return torch.ops.quantized.make_quantized_cell_params_dynamic(prepacked(*ih), prepacked(*hh), *rest)


def shapes_of(value: Any) -> Any:
    """The shapes of the tensors in an argument, nested as they are; None for what holds none."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, dict):
        return tuple(map(shapes_of, value.values()))
    return tuple(map(shapes_of, value)) if isinstance(value, (list, tuple)) else None


class PackSet:
    """Packs as attributes; equal results, whichever set a call uses."""

    def __init__(self, packs: dict[str, Any]) -> None:
        self.__dict__.update(packs)
        self._credit = PacksByShape.CREDIT  # calls that may miss before a set that is not used makes room: packing takes 5 to 20 calls
        self._last = 0


class PacksByShape:
    """Called with the shapes of a call's inputs, it gives the set of packs that is fast at them and at torch's number of threads.

    What is met twice gets a set of its own, up to LIMIT of them beside the first one, which serves all others. The plain weights are
    shared, their reordered copies are not: a set takes about the bytes of the int8 weights. Where there are more shapes than sets, the
    one that was used longest ago loses a credit at each call that has none, and makes room at the last. Waits for no other thread.
    """

    LIMIT, CREDIT, REMEMBERED = 4, 64, 64

    def __init__(self, packs: dict[str, Any], engine: str) -> None:
        """`engine`: the quantized engine that packed them."""
        self.engine = engine
        self.first = self.traced = PackSet(packs)
        self.plain: dict[str, Any] = {}  # what all further sets are packed from
        self.sets: dict[Any, PackSet] = {}  # replaced, never changed: calls read it without a lock
        self.met: dict[Any, None] = {}
        self._clock = itertools.count(1)

    def __call__(self, *shapes: Any) -> PackSet:
        key = shapes, torch.get_num_threads()
        found = self.sets.get(key)
        if found is None:
            return self.learn(key)
        found._last = next(self._clock)
        if found._credit < self.CREDIT:
            found._credit += 1
        return found

    def learn(self, key: Any) -> PackSet:
        """The set for a key that has none."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return self.traced  # torch.jit.trace wants packs that are attributes of the module
        if not ENGINE_LOCK.acquire(blocking=False):
            return self.first
        try:
            if not self.sets:
                self.sets = {key: self.first}
            elif key in self.met:
                return self.own(key)
            else:
                self.met = dict.fromkeys([*self.met, key][-self.REMEMBERED :])
            return self.first
        finally:
            ENGINE_LOCK.release()

    def own(self, key: Any) -> PackSet:
        """A new set for a key, if there is room or can be made."""
        sets = dict(self.sets)
        if key in sets:  # another thread was here
            return self.sets[key]
        if len(sets) > self.LIMIT:
            oldest = min((k for k in sets if sets[k] is not self.first), key=lambda k: sets[k]._last)
            sets[oldest]._credit -= 1
            if sets[oldest]._credit > 0:
                return self.first
            del sets[oldest]
        made = self.another()
        if made is None:
            return self.first
        made._last = next(self._clock)
        self.sets = {**sets, key: made}
        return made

    def another(self) -> PackSet | None:
        """A set of new packs. None under an engine of the moment whose kernels ask which it is: it is set aside meanwhile."""
        engine = torch.backends.quantized.engine
        if engine not in (self.engine, "x86", "fbgemm"):
            return None
        with ENGINE_LOCK, torch.inference_mode(False), torch.no_grad():
            torch.backends.quantized.engine = self.engine
            try:
                self.plain = self.plain or {name: unpacked(pack) for name, pack in self.packs().items()}
                return PackSet({name: prepacked(*plain) for name, plain in self.plain.items()})
            finally:
                torch.backends.quantized.engine = engine

    def for_script(self) -> dict[str, Any]:
        """Packs that no call has met, for torch.jit; the first set's where none can be made."""
        self.traced = self.another() or self.first
        return {name: pack for name, pack in vars(self.traced).items() if not name.startswith("_")}

    def packs(self) -> dict[str, Any]:
        """The packs of the first set by name."""
        return {name: pack for name, pack in vars(self.first).items() if not name.startswith("_")}

    def __reduce__(self) -> tuple[Any, ...]:
        return PacksByShape, (self.packs(), self.engine)
