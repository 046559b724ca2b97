"""What a forward keeps in places that no attribute of its modules leads to, and what no graph can carry."""

from __future__ import annotations

import functools
import itertools
import queue
import random
import threading
import types
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.debug import compute_sqnr
from qcompiler.errors import TraceError

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def zeros() -> Tensor:
    return torch.zeros(1, 8)


class Sum:
    """An object that keeps a sum."""

    def __init__(self) -> None:
        self.h = zeros()

    def __call__(self, y: Tensor) -> Tensor:
        self.h = self.h + y
        return self.h


class OfClass:
    h, items = zeros(), {"h": zeros()}
    made: Any = None

    @classmethod
    def step(cls, y: Tensor) -> Tensor:
        cls.h = cls.h + y
        return cls.h

    @staticmethod
    def plain(y: Tensor) -> Tensor:
        OfClass.h = OfClass.h + y
        return OfClass.h

    @classmethod
    def single(cls) -> Any:
        cls.made = cls.made or Sum()
        return cls.made


MODULE: Any = types.ModuleType("a_module_of_the_users")
LOCAL = threading.local()
CONTEXT: ContextVar[Tensor] = ContextVar("CONTEXT")
QUEUE: queue.Queue[Tensor] = queue.Queue()


def default(s: Any, x: Tensor, kept: list[Tensor] = [zeros()]) -> Tensor:  # noqa: B006, B008
    kept[0] = kept[0] + s.linear(x)
    return kept[0]


def keyword_default(s: Any, x: Tensor, *, kept: dict[str, Tensor] = {"h": zeros()}) -> Tensor:  # noqa: B006, B008
    kept["h"] = kept["h"] + s.linear(x)
    return kept["h"]


def step(y: Tensor) -> Tensor:
    step.h = step.h + y  # type: ignore[attr-defined]
    return step.h  # type: ignore[attr-defined, no-any-return]


def of_global_class(s: Any, x: Tensor) -> Tensor:
    OfClass.h = OfClass.h + s.linear(x)
    return OfClass.h


def of_a_dict_of_a_class(s: Any, x: Tensor) -> Tensor:
    OfClass.items["h"] = OfClass.items["h"] + s.linear(x)
    return OfClass.items["h"]


def of_a_module(s: Any, x: Tensor) -> Tensor:
    MODULE.h = MODULE.h + s.linear(x)
    return MODULE.h  # type: ignore[no-any-return]


def of_a_thread(s: Any, x: Tensor) -> Tensor:
    LOCAL.h = LOCAL.h + s.linear(x)
    return LOCAL.h  # type: ignore[no-any-return]


def of_a_context(s: Any, x: Tensor) -> Tensor:
    CONTEXT.set(CONTEXT.get() + s.linear(x))
    return CONTEXT.get()


def of_a_user_dict(s: Any, x: Tensor) -> Tensor:
    s.held["h"] = s.held["h"] + s.linear(x)
    return s.held["h"]  # type: ignore[no-any-return]


def add_to(kept: list[Tensor], y: Tensor) -> Tensor:
    kept[0] = kept[0] + y
    return kept[0]


Forward = Callable[[Any, Tensor], Tensor]
CARRIED: dict[str, tuple[Forward, Callable[[], object]]] = {
    "an argument's default": (default, lambda: None),
    "a keyword's default": (keyword_default, lambda: None),
    "a function's attribute": (lambda s, x: step(s.linear(x)), lambda: None),
    "a class that a global names": (of_global_class, lambda: None),
    "a dict of such a class": (of_a_dict_of_a_class, lambda: None),
    "a class method": (lambda s, x: OfClass.step(s.linear(x)), lambda: None),
    "a static method": (lambda s, x: OfClass.plain(s.linear(x)), lambda: None),
    "the one object of a class": (lambda s, x: OfClass.single()(s.linear(x)), lambda: None),
    "a module of Python": (of_a_module, lambda: None),
    "a thread's": (of_a_thread, lambda: None),
    "a context variable": (of_a_context, lambda: None),
    "a dict of the standard library": (of_a_user_dict, lambda: UserDict(h=zeros())),
    "a bound method's object": (lambda s, x: s.held(s.linear(x)), lambda: Sum().__call__),
    "a partial's argument": (lambda s, x: s.held(s.linear(x)), lambda: functools.partial(add_to, [zeros()])),
}


@pytest.fixture(autouse=True)
def as_at_first() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    default.__defaults__[0][0], keyword_default.__kwdefaults__["kept"]["h"] = zeros(), zeros()  # type: ignore[index]
    OfClass.h, OfClass.items["h"], OfClass.made = zeros(), zeros(), None
    step.h, MODULE.h, LOCAL.h = zeros(), zeros(), zeros()  # type: ignore[attr-defined]
    CONTEXT.set(zeros())
    while not QUEUE.empty():
        QUEUE.get()
    QUEUE.put(zeros())


class Kept(nn.Module):
    def __init__(self, forward: Forward, held: object = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.held, self.function = nn.Linear(8, 8), held, forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))  # type: ignore[no-any-return]


@torch.no_grad()
def calls(model: nn.Module, count: int = 3) -> list[Tensor]:
    results = [model(X).clone() for _ in range(count)]
    forget()
    return results


@pytest.mark.parametrize("name", CARRIED)
def test_it_is_carried_and_the_model_as_it_was(name: str) -> None:
    forward, held = CARRIED[name]
    wanted = calls(Kept(forward, held()).eval())
    model = Kept(forward, held()).eval()
    module = qc.quantize(model, [X], progress=False)
    assert any(remark.code == "state" for remark in qc.remarks(module))
    for found in (calls(model), calls(module), calls(module)[:0]):
        assert all(type(y) is Tensor and compute_sqnr(want, y) > 30 for want, y in zip(wanted, found, strict=False))


def moved(s: Any, x: Tensor) -> Tensor:
    s.held[0] += 1.0
    return s.linear(x) * float(s.held[0])  # type: ignore[no-any-return]


def in_a_weak_dict(s: Any, x: Tensor) -> Tensor:
    s.held[s.linear] = s.held.get(s.linear, 0) + s.linear(x)
    return s.held[s.linear]  # type: ignore[no-any-return]


THINGS: dict[str, tuple[Forward, Callable[[], object]]] = {
    "ndarray": (moved, lambda: np.zeros(1)),
    "Random": (lambda s, x: s.linear(x) * s.held.random(), lambda: random.Random(0)),
    "Generator": (lambda s, x: s.linear(x) * float(s.held.random()), lambda: np.random.default_rng(0)),
    "RandomState": (lambda s, x: s.linear(x) * float(s.held.rand()), lambda: np.random.RandomState(0)),
    "list_iterator": (lambda s, x: s.linear(x) * next(s.held), lambda: iter([1.0] * 9)),
    "count": (lambda s, x: s.linear(x) * next(s.held), lambda: itertools.count(1)),
    "WeakKeyDictionary": (in_a_weak_dict, weakref.WeakKeyDictionary),
}


@pytest.mark.parametrize("name", THINGS)
def test_what_no_graph_can_hold(name: str) -> None:
    forward, held = THINGS[name]
    with pytest.raises(TraceError, match=rf"changes `held` \({name}\)") as raised:
        qc.quantize(Kept(forward, held()).eval(), [X], progress=False)
    assert raised.value.hint


@pytest.mark.parametrize("name", ["ndarray", "Random", "Generator", "RandomState"])
def test_a_part_that_changes_it_goes_on_doing_so(name: str) -> None:
    forward, held = THINGS[name]
    torch.manual_seed(1)
    model = Outer(Kept(forward, held())).eval()
    module = qc.quantize(model, [X, X * 4], progress=False)
    assert any(r.code == "leaf" and f"`inner.held` ({name})" in r.text for r in qc.remarks(module))
    model.inner.held = held()  # calibration called the float part of the compiled model, not this one
    wanted, found = calls(model), calls(module)
    assert not torch.equal(found[0], found[1]) and len(wanted) == len(found)


def from_a_queue(s: Any, x: Tensor) -> Tensor:
    h = QUEUE.get()
    QUEUE.put(h + s.linear(x))
    return h + s.linear(x)  # type: ignore[no-any-return]


def test_a_place_that_nobody_knows() -> None:
    """The second trace meets what the first one left there."""
    with pytest.raises(TraceError, match="kept where the trace does not find it") as raised:
        qc.quantize(Kept(from_a_queue).eval(), [X], progress=False)
    assert raised.value.hint


# ---- functions that keep their results


@functools.cache
def ramp(n: int) -> Tensor:
    return torch.arange(n).float()[:, None] / n


class Table:
    @staticmethod
    @functools.lru_cache(maxsize=2)
    def of(n: int) -> Tensor:
        return torch.ones(n, n).tril()

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def row(self, n: int) -> Tensor:
        return torch.ones(n, 1) * 2


CACHED: dict[str, Forward] = {
    "a function": lambda s, x: s.linear(x) + ramp(x.shape[0]),
    "a static method": lambda s, x: Table.of(x.shape[0]) @ s.linear(x),
    "a method": lambda s, x: s.linear(x) * s.held.row(x.shape[0]),
}


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("name", CACHED)
def test_a_cache_gets_no_traced_values(name: str, filled: bool) -> None:
    for function in (ramp, Table.of, Table.row):
        function.cache_clear()
    model = Kept(CACHED[name], Table()).eval()
    if filled:
        model(X)
    for _ in range(2):
        data = [X, torch.cat([X, X * 0.5])]
        module = qc.quantize(model, data, progress=False)
        for x in data:
            assert type(model(x)) is Tensor and compute_sqnr(model(x), module(x)) > 25
    assert isinstance(ramp, functools._lru_cache_wrapper)


# ---- sources of random numbers of the whole process


@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: float(np.random.rand()), lambda: random.choice([1.0, 2.0])])
@pytest.mark.parametrize("trains", [False, True])
def test_a_number_that_python_drew_has_a_remark(draw: Callable[[], float], trains: bool) -> None:
    model = Kept(lambda s, x: s.linear(x) * draw())  # type: ignore[no-any-return]
    prepared = qc.prepare_qat_fx(model.train(), None, (X,)) if trains else qc.prepare_fx(model.eval(), None, (X,))
    assert [r.code for r in qc.remarks(prepared)].count("python-random") == 1
    quiet = qc.prepare_fx(Kept(lambda s, x: s.linear(x)).eval(), None, (X,))
    assert "python-random" not in [r.code for r in qc.remarks(quiet)]
