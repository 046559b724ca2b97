"""The calls of a model's forward: which become nodes, and in what form."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.fx.node import Target

from qcompiler.ops.functional import to_format
from qcompiler.trace import places
from qcompiler.trace.drop_paths import in_mode
from qcompiler.trace.fixed_sizes import name_of
from qcompiler.trace.function_mode import TraceMode
from qcompiler.trace.given_numbers import repeated, settled
from qcompiler.trace.holding import Holding
from qcompiler.trace.memory import stamp
from qcompiler.trace.mode import Training
from qcompiler.trace.module_calls import TraceOptions
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.nested import any_nested, map_nested
from qcompiler.trace.pieces import SAME_OP
from qcompiler.trace.proxy import Args, Kwargs, Proxy, first_proxy
from qcompiler.trace.recording import Recording
from qcompiler.trace.running import Running
from qcompiler.trace.special_calls import SPECIAL
from qcompiler.trace.spelling import AUGMENTED, spelling, under_torch_names
from qcompiler.trace.views import note_views

RANDOM = frozenset((torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like,
                    torch.bernoulli, torch.normal, torch.multinomial, torch.poisson))  # fmt: skip
_CONVERSIONS = frozenset(("to", "float", "type_as", "cpu", "type"))
_PRODUCTS = (operator.mul, operator.imul)


class Calls:
    """The torch functions, operators and methods that one model calls."""

    def __init__(self, recorder: Recording, options: TraceOptions, running: Running, mutations: Mutations, holding: Holding) -> None:
        self._recorder, self._options, self._running, self._mutations, self._holding = recorder, options, running, mutations, holding
        self.mode = TraceMode(recorder)
        self.decomposing: list[object] = []  # what is being followed in place of a class or a function

    def dispatch(self, func: Any, args: Args, kwargs: Kwargs, frame: FrameType | None) -> object:
        """Every torch function that the model calls."""
        self._holding.revoke(frame)
        self._recorder.at_event()
        if func is torch._assert:
            self._holding.forget_words(places.user_frame(frame))
        if self._recorder.promoted:
            args, kwargs = map_nested(self.promotion, tuple(args)), map_nested(self.promotion, kwargs)
        if first_proxy(args) is None and first_proxy(kwargs) is None:
            result = self._without_proxies(func, args, kwargs)
            if not places.is_own(frame):
                self._recorder.attributes.note_constant((args, kwargs), result)
            return result
        if getattr(func, "__name__", "") == "__set__":
            raise self._recorder.error("an attribute of a tensor is assigned a traced value")
        return self.call(*spelling(func, args), kwargs)

    def promotion(self, value: object) -> object:
        """What stands for a plain tensor that was changed by traced values."""
        held = self._recorder.promoted.get(id(value)) if isinstance(value, torch.Tensor) else None
        return held[1] if held is not None and not held[1].node._erased else value

    def _without_proxies(self, func: Any, args: Args, kwargs: Kwargs) -> object:
        if func in RANDOM:
            return self._recorder.record("call_function", func, args, kwargs)
        name = getattr(func, "__name__", "")
        changes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name in AUGMENTED
        if changes and name != "requires_grad_" and args and isinstance(args[0], torch.Tensor):
            self._mutations.check_state(args[0])
        result = func(*map_nested(_plain, tuple(args)), **map_nested(_plain, kwargs))
        if self._options.trains and not changes and self._trains(args, kwargs) and _is_computed(func, result):
            return self.call(*spelling(func, args), kwargs)
        return result

    def _trains(self, args: Args, kwargs: Kwargs) -> bool:
        """Whether a parameter is among the arguments."""
        return any_nested(self._recorder.attributes.is_parameter, (tuple(args), kwargs))

    def call(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> Any:
        """Record a call, in the form that keeps the graph free of side effects and sizes named."""
        self._recorder.at_event()
        if (name := target if op == "call_method" else getattr(target, "__name__", "")) in SAME_OP:
            op, target = "call_method", SAME_OP[name]
        function = _unwrapped(getattr(torch.Tensor, target, None)) if isinstance(target, str) else target
        args, kwargs = under_torch_names(function, args, kwargs)
        replacement = self._options.decompose.get(function) if function is not None and function not in self.decomposing else None
        if replacement is not None and (result := self._decomposed(function, replacement, args, kwargs)) is not NotImplemented:
            return result
        args, kwargs = settled(self._recorder, target, args, kwargs)
        args, kwargs = in_mode(self._recorder, function, args, kwargs) if self._options.trains else (args, kwargs)
        if target in _PRODUCTS and (listed := repeated(self._recorder, args)) is not NotImplemented:
            return listed
        if isinstance(target, str) and target in _CONVERSIONS and self._converts_nothing(target, args, kwargs):
            return self._in_format(args[0], kwargs)
        special = SPECIAL.get(target)
        if special is not None:
            return special(self._recorder, *args, **kwargs)
        if getattr(function, "__name__", "").startswith("as_strided"):
            raise self._recorder.error("as_strided, which reads memory by its address: write it with views, unfold or indexing")
        if name == "view" and len(args) == 2 and isinstance(args[1], torch.dtype):
            raise self._recorder.error("view(dtype), which reads the bits of a tensor, and an int8 value has others")
        if kwargs.get("out") is not None:
            raise self._recorder.error("a call with `out=`")
        if self._mutations.is_in_place(op, target, args, kwargs):
            plain = self._mutations.out_of_place(op, target, args, kwargs)
            if plain is not None:
                return self._mutations.update(*plain)
            if isinstance(target, str):
                return self._mutations.update_clone(target, args, kwargs)
        result = self._unchanging(op, target, args, kwargs)
        note_views(result, op, target, args, kwargs, self._recorder.memory)
        return result

    def _unchanging(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> object:
        """Record a call that changes nothing; error where it does all the same."""
        stamps: list[tuple[torch.Tensor, object]] = []

        def look(value: object) -> object:
            if type(value) is Proxy and value.is_tensor:
                stamps.append((value.example, stamp(value.example)))
            return value

        map_nested(look, (tuple(args), kwargs))
        result = self._recorder.record(op, target, args, kwargs)
        if any(stamp(example) != before for example, before in stamps):
            raise self._recorder.error(f"{name_of(target)}, which changes a tensor in place as its name does not say")
        return result

    def _in_format(self, tensor: Proxy, kwargs: Kwargs) -> object:
        """A conversion to a memory format alone: a copy, or the tensor itself where it has it."""
        layout = kwargs.get("memory_format", torch.preserve_format)
        return tensor if layout is torch.preserve_format else self.call("call_function", to_format, (tensor, layout), {})

    def _converts_nothing(self, target: str, args: Args, kwargs: Kwargs) -> bool:
        """Whether a conversion gives the tensor back that it was called on, which may be none of the graph's, as in
        `torch.tensor(3).type_as(x)`; a memory format changes no value.
        """
        kwargs = {key: value for key, value in kwargs.items() if key != "memory_format"}
        only_format = target == "to" and len(args) == 1 and not kwargs
        given = args[0].example if type(args[0]) is Proxy else args[0]
        return only_format or self._running.execute("call_method", target, args, kwargs) is given

    def _decomposed(self, key: object, replacement: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        self.decomposing.append(key)
        try:
            with self.mode:
                return replacement(*args, **kwargs)
        finally:
            self.decomposing.pop()


def _plain(value: object) -> object:
    return int(value) != 0 if type(value) is Training else value


def _unwrapped(method: Callable[..., object] | None) -> Callable[..., object] | None:
    """The method itself, which the session has wrapped."""
    return getattr(method, "__wrapped__", method)


def _is_computed(func: Any, result: Any) -> bool:
    """Whether a function of parameters makes values that change when these are trained: tensors, or several (chunk, split, max)."""
    name = getattr(func, "__name__", "")
    if name == "requires_grad_" or (name == "__get__" and func.__self__.__name__ not in ("T", "mT", "H", "mH", "data")):
        return False
    results = result if isinstance(result, (tuple, list)) else (result,)
    return all(isinstance(r, torch.Tensor) for r in results) and any(r.is_floating_point() for r in results)
