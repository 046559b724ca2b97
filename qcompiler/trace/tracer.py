"""Follows a model: which calls become nodes, which modules become leaves."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

from qcompiler.errors import QCompilerError, TraceError, Where, out_of_memory
from qcompiler.trace import places
from qcompiler.trace.float_parts import FloatParts
from qcompiler.trace.given_numbers import repeated, settled
from qcompiler.trace.memory import storage
from qcompiler.trace.mode import Training
from qcompiler.trace.module_calls import NO_PART, ModuleCalls, Rules, is_hooked
from qcompiler.trace.nested import any_nested, map_nested
from qcompiler.trace.pieces import SAME_OP
from qcompiler.trace.proxy import Proxy, first_proxy
from qcompiler.trace.reasons import origin, reason
from qcompiler.trace.session import TraceMode
from qcompiler.trace.special_calls import SPECIAL, attribute
from qcompiler.trace.spelling import AUGMENTED, spelling

RANDOM = frozenset((torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like,
                    torch.bernoulli, torch.normal, torch.multinomial, torch.poisson))  # fmt: skip
_CONVERSIONS = frozenset(("to", "float", "type_as", "cpu", "type"))
_PRODUCTS = (operator.mul, operator.imul)


class Tracer(FloatParts):
    """A recorder that is fed by the calls of one model's forward."""

    def __init__(self, model: nn.Module, rules: Rules) -> None:
        super().__init__(model)
        self.rules = rules
        self.modules = ModuleCalls(self, rules)
        self.mode = TraceMode(self)
        self.decomposing: list[object] = []  # what is being followed in place of a class or a function

    # ---- torch functions, operators, methods

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Where the operators of fx.Proxy end."""
        return self.call(kind, target, args, kwargs)

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType | None) -> object:
        """Every torch function that the model calls."""
        self.revoke(frame)
        self.at_event()
        if func is torch._assert:
            self.forget_words(places.user_frame(frame))
        if self.promoted:
            args, kwargs = map_nested(self.promotion, tuple(args)), map_nested(self.promotion, kwargs)
        if first_proxy(args) is None and first_proxy(kwargs) is None:
            return self._without_proxies(func, args, kwargs)
        if getattr(func, "__name__", "") == "__set__":
            raise self.error("an attribute of a tensor is assigned a traced value")
        return self.call(*spelling(func, args), kwargs)

    def promotion(self, value: object) -> object:
        """What stands for a plain tensor that was changed by traced values."""
        held = self.promoted.get(id(value)) if isinstance(value, torch.Tensor) else None
        return held[1] if held is not None and not held[1].node._erased else value

    def _without_proxies(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if func in RANDOM:
            return self.record("call_function", func, args, kwargs)
        name = getattr(func, "__name__", "")
        changes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name in AUGMENTED
        if changes and name != "requires_grad_" and args and isinstance(args[0], torch.Tensor):
            self.check_state(args[0])
        result = func(*map_nested(_plain, tuple(args)), **map_nested(_plain, kwargs))
        if self.rules.trains and not changes and self._trains(args, kwargs) and _is_computed(func, result):
            return self.call(*spelling(func, args), kwargs)
        return result

    def _trains(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a parameter is among the arguments."""
        return any_nested(self.attributes.is_parameter, (tuple(args), kwargs))

    def call(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call, in the form that keeps the graph free of side effects and sizes named."""
        self.at_event()
        if (name := target if op == "call_method" else getattr(target, "__name__", "")) in SAME_OP:
            op, target = "call_method", SAME_OP[name]
        function = getattr(torch.Tensor, target, None) if op == "call_method" else target
        function = getattr(function, "__wrapped__", function) if op == "call_method" else function  # the session's own wrapper
        replacement = self.rules.decompose.get(function) if function is not None and function not in self.decomposing else None
        if replacement is not None and (result := self._decomposed(function, replacement, args, kwargs)) is not NotImplemented:
            return result
        args, kwargs = settled(self, target, args, kwargs)
        if target in _PRODUCTS and (listed := repeated(self, args)) is not NotImplemented:
            return listed
        if op == "call_method" and target in _CONVERSIONS and self._converts_nothing(target, args, kwargs):
            return args[0]
        special = SPECIAL.get(target)
        if special is not None:
            return special(self, *args, **kwargs)
        if getattr(function, "__name__", "").startswith("as_strided"):
            raise self.error("as_strided, which reads memory by its address: write it with views, unfold or indexing")
        if kwargs.get("out") is not None:
            raise self.error("a call with `out=`")
        if self.is_in_place(op, target, args, kwargs):
            plain = self.out_of_place(op, target, args, kwargs)
            if plain is not None:
                return self.update(*plain)
            if op == "call_method":
                return self.update_clone(target, args, kwargs)
        result = self.record(op, target, args, kwargs)
        if target is operator.getitem and type(result) is type(args[0]) is Proxy and result.is_tensor and args[0].is_tensor:
            result.view_of = (weakref.ref(args[0]), args[1]) if storage(result.example) == storage(args[0].example) else None
        return result

    def _converts_nothing(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a conversion gives the tensor back that it was called on; a memory format changes no value."""
        kwargs = {key: value for key, value in kwargs.items() if key != "memory_format"}
        only_format = target == "to" and len(args) == 1 and not kwargs
        return only_format or self.running.execute("call_method", target, args, kwargs) is args[0].example

    def _decomposed(self, key: object, replacement: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        self.decomposing.append(key)
        try:
            with self.mode:
                return replacement(*args, **kwargs)
        finally:
            self.decomposing.pop()

    def attribute(self, owner: Proxy, name: str) -> object:
        """`owner.name`."""
        return attribute(self, owner, name)

    # ---- functions and forwards as a whole

    def call_wrapped(self, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """A function marked with torch.fx.wrap: followed, or one call where that fails."""
        if first_proxy((args, kwargs)) is None:
            return function(*args, **kwargs)
        mark = self.mark()
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if getattr(error, "qc_final", False):
                raise
            self.modules.give_up(error, self.scopes[-1][0] if self.scopes else "", mark)
        example = self.running.execute("call_function", function, args, kwargs)
        return self.results.wrap(lambda: self.add_node("call_function", function, args, kwargs, example), example, "boundary")

    def run_forward(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Follow the root's forward; the frames inside this call are the model's."""
        self.scopes.append(("", type(module).__name__))
        flagged = self.modules.enter(module, "")
        try:
            function: Callable[..., object] = module._wrapped_call_impl if is_hooked(module) else module.forward
            result = function(*args, **kwargs)
            self.at_event(0)
            self.check_parts()
            return result
        except Exception as error:
            if out_of_memory(error) is not None:
                raise
            no_part = self.try_part(error) if not self.rules.strict else ""
            if isinstance(error, QCompilerError):
                error.message += NO_PART + no_part if no_part else ""
                raise
            where, text = Where(module_path="", source=origin(error)), reason(error) + (NO_PART + no_part if no_part else "")
            raise TraceError(text, where=where, hint="make the part that cannot be followed a submodule") from error
        finally:
            self.regions.clear()  # where it failed: what is called to take things back is no event of theirs
            if flagged:
                self.modules.modes.leave(module)
            self.scopes.pop()


def _plain(value: object) -> object:
    return int(value) != 0 if type(value) is Training else value


def _is_computed(func: Any, result: Any) -> bool:
    """Whether a function of parameters makes values that change when these are trained: tensors, or several (chunk, split, max)."""
    name = getattr(func, "__name__", "")
    if name == "requires_grad_" or (name == "__get__" and func.__self__.__name__ not in ("T", "mT", "H", "mH", "data")):
        return False
    results = result if isinstance(result, (tuple, list)) else (result,)
    return all(isinstance(r, torch.Tensor) for r in results) and any(r.is_floating_point() for r in results)
