"""One run of a model's forward under the tracer, with some of what it keeps between calls given as values of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qcompiler.errors import TraceError, Where
from qcompiler.ir.types import SOURCE, VALUE, Source, Value
from qcompiler.ops.state import read_state, write_state
from qcompiler.ops.state_nodes import NUMBERS, is_read
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.memory import storage
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.outputs import add_output
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.session import session
from qcompiler.trace.slots import MISSING, leaves, nested
from qcompiler.trace.state import Place, Places, kept_state
from qcompiler.trace.state_reads import depends_on_data
from qcompiler.trace.tracer import Tracer
from qcompiler.trace.watched import Watched, random_numbers

DRAWS = ("forward draws from Python's `random` or numpy's: in what is compiled a number that it drew is the same at each call, in modules "
         "and statements that stay as they are it is drawn anew; torch.rand draws anew everywhere")  # fmt: skip


class StateFound(BaseException):
    """Raised where forward changes a plain tensor of the model in place: it has to be traced as a state. (No `except Exception` of
    the user's code takes it.)"""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.place = place


@dataclass(frozen=True)
class Start:
    """What stands in the model before a call. `carried`: places whose tensors are states, with an example of what they hold; of those in
    `numbers` numbers are states, too. `given`: what stands at other places. `watched`: places whose values in the end are noted, where
    recurrent layers that are given no state get zeros."""

    carried: Mapping[Place, object]
    numbers: Mapping[Place, object] = field(default_factory=dict)
    given: Mapping[Place, object] = field(default_factory=dict)
    watched: Iterable[Place] | None = None


@dataclass
class Attempt:
    """What one run of forward did, as the tracer's graph says it, with the writes of states in the end.

    `left`: what stands at each place that it changed, with examples in place of traced values. `data`: those places whose new value
    depends on data. `ends`: by name of a state its value in the end. `unstable`: carried places that hold something of
    another structure in the end.
    """

    tracer: Tracer
    start: Start
    given: Mapping[Place, Any] = field(default_factory=dict)
    left: dict[Place, Any] = field(default_factory=dict)
    data: list[Place] = field(default_factory=list)
    held: dict[str, fx.Node] = field(default_factory=dict)
    ends: dict[str, Any] = field(default_factory=dict)
    in_place: list[Place] = field(default_factory=list)  # carried places whose tensors were changed in place
    unstable: dict[Place, str] = field(default_factory=dict)
    shared: list[Place] = field(default_factory=list)  # places that have memory in common in the end
    repointed: list[Place] = field(default_factory=list)  # places whose tensors got other memory
    things: list[Watched] = field(default_factory=list)  # what it changed that no graph can carry
    parameters: list[str] = field(default_factory=list)  # names of parameters that forward replaced the data of
    results: Any = None
    moved: list[str] = field(default_factory=list)  # states that change their shape


def is_state(value: object) -> bool:
    return isinstance(value, (torch.Tensor, bool, int, float))


def run(tracer: Tracer, places: Places, start: Start, forward: Callable[[Tracer], object]) -> Attempt:
    """Trace one call of forward."""
    carried, made = start.carried, Attempt(tracer, start, given=start.given)

    def found(tensor: torch.Tensor) -> None:
        place = places.of_memory(tensor)
        if place is not None:
            raise StateFound(place)

    tracer.found_state = found
    kept = places.parameters_kept(made.parameters), session(tracer), places.without_caches()
    with kept[0], kept[1], kept[2], kept_state(tracer.model, places) as restore:
        tracer.modules.restore = restore
        for place, value in sorted(start.given.items(), key=_order):
            places.put(place, value)
        tracer.paused += 1  # nothing of this is the model's
        opened = {place: _opened(made, places.name(place), carried[place], place in start.numbers) for place in carried}
        read = {place: leaves(value, places.name(place)) for place, value in opened.items()}  # before forward adds to a list
        for place, value in sorted(opened.items(), key=_order):
            places.put(place, value)
        tracer.paused -= 1
        before = random_numbers()
        result = forward(tracer)
        tracer.paused += 1
        if random_numbers() != before:
            tracer.remarks.append(TraceRemark("python-random", Where(module_path=""), DRAWS))
        _close(made, places, read, start.watched or ())
        made.results = nested(lambda _, leaf: _example(leaf), result, "")
        add_output(tracer, result)
    return made


def _order(item: tuple[Place, object]) -> tuple[int, int]:
    (number, key), _ = item
    return number, key if isinstance(key, int) else 0


def _opened(made: Attempt, name: str, value: object, numbers: bool) -> object:
    """A carried value with a read of the state in place of each tensor (and number) in it."""

    def read(path: str, leaf: object) -> Any:
        if not isinstance(leaf, torch.Tensor) and not (numbers and type(leaf) in NUMBERS):
            return leaf
        return _read(made, path, leaf)

    return nested(read, value, name)


def _read(made: Attempt, name: str, value: Any) -> Proxy:
    tracer, is_tensor = made.tracer, isinstance(value, torch.Tensor)
    if name in tracer.held:
        raise TraceError(f"forward keeps two values between calls that have the name {name!r}", where=Where(module_path=""))
    function, dtype = (read_state, None) if is_tensor else NUMBERS[type(value)][::2]
    example = value.detach().clone() if is_tensor else torch.tensor(value, dtype=dtype)
    held = tracer.graph.create_node("get_attr", name)
    held.meta[VALUE], held.meta[SOURCE] = Value.of(example), Source(None, None, "", "")
    tracer.held[name], made.held[name] = example, held
    example = example.clone() if is_tensor else value
    node = tracer.add_node("call_function", function, (Proxy(held, tracer, example),), {}, example)
    return tracer.bind(node, example)


def _close(made: Attempt, places: Places, opened: Mapping[Place, dict[str, object]], watched: Iterable[Place]) -> None:
    """Note what the call left, and write the states that it changed."""
    tracer = made.tracer
    changed = {place: nested(lambda _, leaf: tracer.calls.promotion(leaf), value, "") for place, value in places.changed().items()
               if not owned(places.owner(place), tracer.leaves)}  # fmt: skip
    for place, value in changed.items():
        made.left[place] = MISSING if value is MISSING else nested(lambda _, leaf: _example(leaf), value, "")
        if place not in opened and any(type(v) is Proxy and depends_on_data(v.node) for v in leaves(value, "").values()):
            made.data.append(place)
    made.shared, made.repointed = _shared(changed), places.repointed()
    made.things = [thing for thing in places.changed_things() if not owned(thing.owner, tracer.leaves)]
    for place, before in opened.items():
        if not owned(places.owner(place), tracer.leaves):
            _write(made, place, before, leaves(changed[place], places.name(place)) if place in changed else before)
    for place in watched:
        if place not in opened and place in changed and changed[place] is not MISSING:
            found = leaves(changed[place], places.name(place))
            made.ends |= {path: tracer.create_arg(leaf) for path, leaf in found.items() if is_state(leaf) and not _is_stale(leaf)}


def _is_stale(value: object) -> bool:
    return type(value) is Proxy and value.stale is not None


def _shared(changed: Mapping[Place, Any]) -> list[Place]:
    found: dict[int, Place] = {}
    shared: dict[Place, None] = {}
    for place, value in changed.items():
        for leaf in leaves(value, "").values() if value is not MISSING else ():
            if type(leaf) is Proxy and leaf.is_tensor and found.setdefault(storage(leaf.example), place) != place:
                shared |= {place: None, found[storage(leaf.example)]: None}
    return list(shared)


def owned(owner: str, paths: list[str]) -> bool:
    """Whether a module is one of these, or in one."""
    return any(owner == path or owner.startswith(f"{path}.") or path == "" for path in paths)


def _example(value: Any) -> Any:
    if type(value) is Opaque:
        return value.example
    if type(value) is Proxy:
        return value.example.detach().clone() if value.is_tensor else value.example
    return value


def _write(made: Attempt, place: Place, old: dict[str, object], new: dict[str, object]) -> None:
    """Write the states of a place, by name what was read and what is there in the end."""
    if list(old) != list(new):
        made.unstable[place] = "changes its structure from call to call"
        return
    for path, read in old.items():
        if type(read) is not Proxy:
            continue
        if not is_read(read.node):
            made.in_place.append(place)
        end = new[path]
        problem = _misfit(read, end)
        if problem is not None:
            made.unstable[place] = problem
            return
        made.ends[path] = _end(made, path, read, end)


def _misfit(read: Proxy, end: Any) -> str | None:
    if read.is_tensor != isinstance(end, torch.Tensor) or not is_state(end):
        return "is a tensor at one call and none at the next"
    if _is_stale(end):
        return "is changed in place through a view of another form"
    value = _example(end)
    if read.is_tensor and value.dtype != read.example.dtype:
        return f"is {read.example.dtype} at one call and {value.dtype} at the next"
    return None if read.is_tensor or type(value) is type(read.example) else "is a number of another type at the next call"


def _end(made: Attempt, path: str, read: Proxy, end: object) -> object:
    """What a state holds in the end; a write where that is not what was read."""
    tracer, held = made.tracer, made.held[path]
    value = tracer.create_arg(end)
    unchanged = isinstance(value, fx.Node) and value.args[:1] == (held,)
    if not unchanged:
        function = write_state if read.is_tensor else NUMBERS[type(read.example)][1]
        tracer.add_node("call_function", function, (Proxy(held, tracer, None), end), {}, None)
    if read.is_tensor and _example(end).shape != tracer.held[path].shape:
        made.moved.append(path)
    return value
