"""What a forward leaves on its modules and their objects is seen, and taken back: a trace does not change the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from qcompiler.trace.containers import Content, content, refill
from qcompiler.trace.find_slots import Walk
from qcompiler.trace.memory import storage
from qcompiler.trace.slots import MISSING, Holder
from qcompiler.trace.watched import Watched

Place = tuple[int, Any]  # number of a holder, and a key in it

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_Snapshot = tuple[nn.Module, dict[str, Any], list[tuple[object, Content]]]


def _snapshot(module: nn.Module) -> _Snapshot:
    """A module's attributes, and the contents of those that are plain containers."""
    containers: list[tuple[object, Content]] = [
        (value, content(value)) for value in vars(module).values() if isinstance(value, (dict, list, set))
    ]
    return module, dict(vars(module)), containers


def _restore(snapshot: _Snapshot) -> None:
    module, attributes, containers = snapshot
    now = vars(module)
    if len(now) != len(attributes) or any(now.get(name) is not value for name, value in attributes.items()):
        now.clear()
        now.update(attributes)
    for container, before in containers:
        refill(container, before)


def _copy_of(holder: Holder) -> Content | None:
    return content(holder.value) if holder.kind in ("dict", "list", "set") else None


class Places:
    """All places where a model can keep state, with what stands there before the first call."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        walk = Walk(model)
        self.holders: list[Holder] = walk.holders
        self._watched, self._caches = walk.watched, [(holder, key, holder.get(key), plain) for holder, key, plain in walk.caches]
        self._plain = {id(plain) for *_, plain in self._caches}
        self.before = [{key: holder.get(key) for key in holder.places()} for holder in self.holders]
        self._contents = [_copy_of(holder) for holder in self.holders]
        parameters = {storage(parameter) for parameter in model.parameters()}
        self._memory: dict[int, Place] = {}
        self.shared: dict[Place, None] = {}  # places whose memory another one has, too
        self._aliases = {(number, key): (value, value.detach()) for number, values in enumerate(self.before)
                         for key, value in values.items() if type(value) is torch.Tensor}  # fmt: skip
        self._hooks: list[tuple[Any, Content]] = []  # of modules, as the last call that was followed to its end left them
        self.is_later = False  # whether the next call finds what an earlier one left
        self._names: dict[Place, str] = {}
        self._taken = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
        for number, values in enumerate(self.before):
            for key, value in values.items():
                memory = storage(value) if isinstance(value, torch.Tensor) else 0
                if memory and memory not in parameters and self._memory.setdefault(memory, (number, key)) != (number, key):
                    self.shared[self._memory[memory]] = None

    def changed(self) -> dict[Place, Any]:
        """The places that hold another object than before, with what they hold now."""
        found: dict[Place, Any] = {}
        for number, (holder, before) in enumerate(zip(self.holders, self.before, strict=True)):
            for key in dict.fromkeys([*before, *holder.places()]):
                now = holder.get(key)
                if now is not before.get(key, MISSING) and id(now) not in self._plain:
                    found[number, key] = now
        names = dict.fromkeys(self.holders[number].name(key) for number, key in found)
        return {place: now for place, now in found.items() if not self._is_left(place, names)}

    def _is_left(self, place: Place, names: Mapping[str, object]) -> bool:
        """Whether what holds a place was itself replaced by another object, so that no later call finds it."""
        holder = self.holders[place[0]]
        if holder.kind == "cell":
            return False
        parts = holder.path[len(holder.owner) :].strip(".").split(".") if holder.path != holder.owner else []
        return any(".".join([*filter(None, [holder.owner]), *parts[: i + 1]]) in names for i in range(len(parts)))

    def repointed(self) -> list[Place]:
        """The places whose tensors `set_` gave other memory: torch tells nobody of that."""
        return [place for place, (tensor, alias) in self._aliases.items() if storage(tensor) != storage(alias)]

    def changed_things(self) -> list[Watched]:
        """What holds no values of a graph, and is not as it was before the first call."""
        return [watched for watched in self._watched if watched.changed()]

    @contextlib.contextmanager
    def without_caches(self) -> Iterator[None]:
        """Functions of the user's that keep their results compute them."""
        try:
            for holder, key, _, plain in self._caches:
                holder.set(key, plain)
            yield
        finally:
            for holder, key, value, _ in self._caches:
                holder.set(key, value)

    def of_memory(self, tensor: torch.Tensor) -> Place | None:
        """The place of a plain tensor that uses the same memory."""
        return self._memory.get(storage(tensor))

    def first(self, place: Place) -> Any:
        """What the first call finds at a place."""
        number, key = place
        value = self.before[number].get(key, MISSING)
        return self.holders[number].default(key) if value is MISSING else value

    def put(self, place: Place, value: object) -> None:
        self.holders[place[0]].set(place[1], value)

    def get(self, place: Place) -> Any:
        return self.holders[place[0]].get(place[1])

    def name(self, place: Place) -> str:
        """The dotted name of a place; not that of a module or parameter, which a global may have."""
        if place not in self._names:
            name = self.holders[place[0]].name(place[1])
            while name in self._taken:
                name += "_"
            self._taken.add(name)
            self._names[place] = name
        return self._names[place]

    def list_of(self, place: Place) -> str:
        """The name of the list that a place is in, or of the place."""
        holder = self.holders[place[0]]
        return holder.path if holder.kind == "list" else self.name(place)

    def owner(self, place: Place) -> str:
        """Path of the module that leads to a place."""
        return self.holders[place[0]].owner

    def is_buffer(self, place: Place) -> bool:
        holder = self.holders[place[0]]
        return holder.kind == "dict" and holder.of is None and holder.path == holder.owner

    @contextlib.contextmanager
    def parameters_kept(self, changed: list[str]) -> Iterator[None]:
        """Give parameters their data back, in the end, and note the names of those whose values forward replaced (`p.data = ...`)."""
        before = [(name, parameter, parameter.data) for name, parameter in self.model.named_parameters()]
        try:
            yield
        finally:
            with torch._C.DisableTorchFunction():
                for name, parameter, data in before:
                    if storage(parameter) != storage(data):
                        if not torch.equal(parameter.data, data):
                            changed.append(name)
                        parameter.data = data

    def put_hooks(self) -> None:
        """A later call finds the hooks that an earlier one registered, as it finds the flag that keeps it from registering them again."""
        for registry, held in self._hooks if self.is_later else ():
            refill(registry, held)

    def note_hooks(self) -> None:
        registries = (vars(module).get(name) for module in self.model.modules() for name in _HOOKS)
        self._hooks = [(registry, content(registry)) for registry in registries if registry is not None]

    def restore(self, owner: str = "") -> None:
        """Bring back what stood in the holders of a module and of those in it."""
        for watched in self._watched:
            watched.restore()
        for place in self.repointed():
            tensor, alias = self._aliases[place]
            with torch._C.DisableTorchFunction(), torch.no_grad():
                tensor.set_(alias)  # type: ignore[call-overload]
        for holder, before, held in zip(self.holders, self.before, self._contents, strict=True):
            if owner and holder.owner != owner and not holder.owner.startswith(f"{owner}."):
                continue
            if held is not None:
                refill(holder.value, held)
                continue
            for key in dict.fromkeys([*before, *holder.places()]):
                if holder.get(key) is not before.get(key, MISSING):
                    holder.set(key, before.get(key, MISSING))


@contextlib.contextmanager
def kept_state(model: nn.Module, places: Places) -> Iterator[Callable[[nn.Module], None]]:
    """Restore every module's attributes in the end; gives what restores those of a module, and of those in it, at once."""
    snapshots = {id(module): _snapshot(module) for module in model.modules()}
    paths = {id(module): path for path, module in model.named_modules()}

    def restore(root: nn.Module) -> None:
        for module in root.modules():
            if id(module) in snapshots:
                _restore(snapshots[id(module)])
        places.restore(paths.get(id(root), ""))

    places.put_hooks()
    try:
        yield restore
        places.note_hooks()
    finally:
        for snapshot in snapshots.values():
            _restore(snapshot)
        places.restore()


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Calls inside the block leave no trace in a model: neither in its attributes and buffers nor in what they lead to."""
    places = Places(model)
    snapshots = [_snapshot(module) for module in model.modules()]
    plain = [value for values in places.before for value in values.values() if isinstance(value, torch.Tensor)]
    held = {id(tensor): (tensor, tensor.detach(), tensor.clone()) for tensor in (*model.buffers(), *plain)}
    try:
        yield
    finally:
        for snapshot in snapshots:
            _restore(snapshot)
        places.restore()
        with torch.inference_mode(False), torch.no_grad():
            for tensor, alias, value in held.values():
                if storage(tensor) != storage(alias) or tensor.shape != value.shape:
                    tensor.set_(alias)  # type: ignore[call-overload]
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
