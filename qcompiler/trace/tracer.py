"""Follows a model: which calls become nodes, which modules become leaves."""

from __future__ import annotations

import copy
import functools
import operator
import sys
import weakref
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn

from qcompiler.errors import InputError, QCompilerError, TraceError, Where
from qcompiler.inputs.kinds import ORIGINAL, is_compiled
from qcompiler.trace import places
from qcompiler.trace.float_parts import FloatParts
from qcompiler.trace.given_numbers import repeated, settled
from qcompiler.trace.guards import TraceRemark, guard_bool
from qcompiler.trace.holding import BOUNDARY
from qcompiler.trace.mode import Modes, Training, evaluated
from qcompiler.trace.pieces import SAME_OP
from qcompiler.trace.proxy import Method, Proxy, first_proxy
from qcompiler.trace.reasons import origin, reason
from qcompiler.trace.recorder import map_nested, storage
from qcompiler.trace.session import TraceMode
from qcompiler.trace.spelling import AUGMENTED, spelling
from qcompiler.trace.state import untouched
from qcompiler.trace.zero_states import with_zero_states

RANDOM = frozenset((torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like,
                    torch.bernoulli, torch.normal, torch.multinomial, torch.poisson))  # fmt: skip
_CONVERSIONS = frozenset(("to", "float", "type_as", "cpu", "type"))
_PRODUCTS = (operator.mul, operator.imul)
NO_PART = "; the statement cannot stay float on its own: "
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Tracer(FloatParts):
    """A recorder that is fed by the calls of one model's forward."""

    def __init__(
        self,
        model: nn.Module,
        is_leaf: Callable[[nn.Module, str], bool],
        decompose: Mapping[Callable[..., Any], Callable[..., Any]],
        strict: bool,
        trains: bool = False,
    ) -> None:
        super().__init__(model)
        self.modes = Modes(trains)
        self.leaf_rule = is_leaf
        self.decompose = decompose
        self.strict = strict
        self.mode = TraceMode(self)
        self.replacements: dict[str, nn.Module] = {}  # copies of in-place leaf modules that are not in place
        self._decomposing: list[Any] = []

    # ---- torch functions, operators, methods

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Where the operators of fx.Proxy end."""
        return self.call(kind, target, args, kwargs)

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType | None) -> Any:
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

    def promotion(self, value: Any) -> Any:
        """What stands for a plain tensor that was changed by traced values."""
        held = self.promoted.get(id(value)) if isinstance(value, torch.Tensor) else None
        return held[1] if held is not None and not held[1].node._erased else value

    def _without_proxies(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in RANDOM:
            return self.record("call_function", func, args, kwargs)
        name = getattr(func, "__name__", "")
        changes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name in AUGMENTED
        if changes and name != "requires_grad_" and args and isinstance(args[0], torch.Tensor):
            self.check_state(args[0])
        result = func(*map_nested(_plain, tuple(args)), **map_nested(_plain, kwargs))
        if self.modes.wanted and not changes and self._trains(args, kwargs) and _is_computed(func, result):
            return self.call(*spelling(func, args), kwargs)
        return result

    def _trains(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a parameter is among the arguments. One that is frozen now may be trained later."""
        found = False

        def look(value: Any) -> Any:
            nonlocal found
            found = found or (isinstance(value, nn.Parameter) and id(value) in self._names)

        map_nested(look, (tuple(args), kwargs))
        return found

    def call(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call, in the form that keeps the graph free of side effects and sizes named."""
        self.at_event()
        if (name := target if op == "call_method" else getattr(target, "__name__", "")) in SAME_OP:
            op, target = "call_method", SAME_OP[name]
        function = getattr(torch.Tensor, target, None) if op == "call_method" else target
        function = getattr(function, "__wrapped__", function) if op == "call_method" else function  # the session's own wrapper
        replacement = self.decompose.get(function) if function is not None and function not in self._decomposing else None
        if replacement is not None and (result := self._decomposed(function, replacement, args, kwargs)) is not NotImplemented:
            return result
        args, kwargs = settled(self, target, args, kwargs)
        if target in _PRODUCTS and (listed := repeated(self, args)) is not NotImplemented:
            return listed
        if op == "call_method" and target in _CONVERSIONS and self._converts_nothing(target, args, kwargs):
            return args[0]
        special = _SPECIAL.get(target)
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
        return only_format or self.execute("call_method", target, args, kwargs) is args[0].example

    def _decomposed(self, key: Any, replacement: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._decomposing.append(key)
        try:
            with self.mode:
                return replacement(*args, **kwargs)
        finally:
            self._decomposing.pop()

    def attribute(self, owner: Any, name: str, *default: Any) -> Any:
        """`owner.name` of a traced tensor, or of a number made from sizes, which becomes concrete."""
        if not isinstance(owner, Proxy):
            return self.record("call_function", getattr, (owner, name), {})
        if not owner.is_tensor:
            return getattr(self.fix(owner, f"`{name}`"), name)
        if name == "shape":
            return self.sizes(owner)
        if name == "nbytes":
            return self.sizes(owner).numel() * owner.example.itemsize
        if callable(getattr(torch.Tensor, name, None)):
            return Method(owner, name)
        if name in ("T", "mT") and owner.example.dim() >= 2:
            dims = list(range(owner.example.dim()))
            return self.call("call_method", "permute", (owner, dims[::-1] if name == "T" else [*dims[:-2], dims[-1], dims[-2]]), {})
        with torch._C.DisableTorchFunction():
            value = getattr(owner.example, name, *default)
        return self.record("call_function", getattr, (owner, name), {}) if isinstance(value, torch.Tensor) else value

    def size(self, owner: Any, dim: Any = None) -> Any:
        """`owner.size()` and `owner.size(dim)`."""
        sizes = self.sizes(owner)
        return sizes if dim is None else sizes[dim]

    def to_list(self, owner: Proxy) -> Any:
        """`owner.tolist()`: a list of numbers of the graph, as long as the example's."""
        if not owner.example.dim():
            return owner.item()
        hits = self.hit_list(owner)
        return [self.to_list(one) for one in owner.unbind(0)] if hits is None else hits

    def assertion(self, condition: Any, message: str = "") -> None:
        """`torch._assert`: a guard where the condition is about sizes, a call where it is about data."""
        if isinstance(condition, torch.Tensor):
            self.add_node("call_function", torch._assert, (condition, str(message)), {}, None)
        elif not condition.example:
            raise InputError(str(message) or "an assertion of the model fails", where=self.error("").where)
        else:
            self.add_node("call_function", guard_bool, (condition, True, str(message)), {}, None)

    # ---- modules

    def call_module(self, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module that the model calls: a leaf, or followed, or a leaf because it cannot be followed."""
        if is_compiled(module):  # followed as the module that it was made of
            return self.call_module(module._modules[ORIGINAL], original, args, kwargs)  # type: ignore[arg-type]
        self.at_event()
        path = self.paths.get(id(module))
        hooked = any(getattr(module, name, None) for name in _HOOKS)
        replacement = None if hooked else self.decompose.get(type(module))
        if path is None:
            return original(module, *args, **kwargs)
        traced = first_proxy((args, kwargs)) is not None
        if traced and replacement is None and not hooked and self.leaf_rule(module, path):
            return self.leaf(module, path, original, args, kwargs, known=True)
        if replacement is not None:
            return self.follow(module, path, original, functools.partial(replacement, module), args, kwargs)
        if traced and path in self.kept:
            self.remarks.append(TraceRemark("leaf", Where(module_path=path), self.kept[path]))
            return self.leaf(module, path, original, args, kwargs, known=False)
        if isinstance(module, torch.jit.ScriptModule):
            self.remarks.append(TraceRemark("leaf", Where(module_path=path), "a scripted module cannot be followed"))
            return self.leaf(module, path, original, args, kwargs, known=False)
        with self.without_state(module):
            return self.follow(module, path, original, functools.partial(original, module), args, kwargs)

    def follow(
        self,
        module: nn.Module,
        path: str,
        original: Callable[..., Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace into a module; where that fails, go back and keep it as a leaf."""
        mark, depth, opened = self.mark(), len(self._decomposing), len(self.regions)
        self.scopes.append((path, type(module).__name__))
        flagged = self.modes.enter(module, path, functools.partial(self._branched, module, path))
        try:
            result = function(*args, **kwargs)
            self.at_event(len(self.scopes) - 1)
            return result
        except Exception as error:
            if self.strict or getattr(error, "qc_final", False):
                raise
            self._give_up(error, path, mark, self.try_part(error))
            self.restore_modules(module)
            del self._decomposing[depth:], self.regions[opened:]
        finally:
            if flagged:
                self.modes.leave(module)
            self.scopes.pop()
        return self.leaf(module, path, original, args, kwargs, known=False)

    def _branched(self, module: nn.Module, path: str) -> None:
        """The user's code asks a module whether it trains. (torch's own modules do for reasons that change no value.)"""
        if self.paused or type(module).__module__.startswith("torch.nn."):
            return
        file, line = places.user_line(sys._getframe(2), BOUNDARY)
        mode = "training" if int(vars(module)["training"]) else "evaluation"
        text = f"a branch on `training` was followed as in {mode}: the graph has this branch in both modes"
        remark = TraceRemark("training-branch", Where(module_path=path, source=places.spell(file, line)), text)
        if remark not in self.remarks:
            self.remarks.append(remark)

    def _give_up(self, error: Exception, path: str, mark: Any, no_part: str = "") -> None:
        self.rollback(mark)
        text = reason(error) + (NO_PART + no_part if no_part else "")
        self.remarks.append(TraceRemark("leaf", Where(module_path=path, source=origin(error)), text))

    def leaf(
        self,
        module: nn.Module,
        path: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        known: bool,
    ) -> Any:
        """One call_module node; the module runs on the examples."""
        self.scopes.append((path, type(module).__name__))
        if not _is_torch(module):
            self.leaves.append(path)
        elif self.explicit_states:
            args, kwargs = with_zero_states(module, args, kwargs)
        try:
            pure = known and _is_torch(module)
            changed = args[0] if pure and getattr(module, "inplace", False) is True and args else None
            runs = self._not_in_place(module, path) if changed is not None else module
            if pure:
                with evaluated(runs):
                    example = self._run(runs, original, map_nested(self.concrete, args), map_nested(self.concrete, kwargs))
            else:
                args, kwargs, example = self._run_unknown(module, original, args, kwargs)
            make = functools.partial(self.add_node, "call_module", path, args, kwargs, example)
            if type(changed) is Proxy:
                self.check_state(changed.example)
                self.mutate(changed, make(), example)
                return changed
            return self.wrap(make, example, "boundary")
        except QCompilerError as error:
            error.qc_final = not known and not isinstance(error, TraceError)  # type: ignore[attr-defined]
            raise
        finally:
            self.scopes.pop()

    def _not_in_place(self, module: nn.Module, path: str) -> nn.Module:
        if path not in self.replacements:
            self.replacements[path] = copied = copy.copy(module)
            copied.inplace = False  # type: ignore[assignment]
        return self.replacements[path]

    def _run(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module on examples and leave what it keeps as it was."""
        run = functools.partial(original, module)
        if not module.training and _is_torch(module):
            return self.on_examples(run, args, kwargs)
        self.paused += 1
        try:
            with untouched(module):
                return self.on_examples(run, args, kwargs)
        finally:
            self.paused -= 1

    def _run_unknown(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """Run a module that may change its arguments: those that it does are copied first, in the graph too."""
        found: list[tuple[Proxy, torch.Tensor]] = []

        def copied(value: Any) -> Any:
            if type(value) is not Proxy or not value.is_tensor:
                return self.concrete(value)
            value_copy = value.example.clone()
            found.append((value, value_copy))
            return value_copy

        values, options = map_nested(copied, args), map_nested(copied, kwargs)
        versions = [value._version for _, value in found]
        example = self._run(module, original, values, options)
        for (proxy, value), version in zip(found, versions, strict=True):
            if value._version != version:
                before = self.add_node("call_method", "clone", (proxy,), {}, value)
                self.mutate(proxy, before, value)
        return args, kwargs, example

    def call_wrapped(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function marked with torch.fx.wrap: followed, or one call where that fails."""
        if first_proxy((args, kwargs)) is None:
            return function(*args, **kwargs)
        mark = self.mark()
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if getattr(error, "qc_final", False):
                raise
            self._give_up(error, self.scopes[-1][0] if self.scopes else "", mark)
        example = self.execute("call_function", function, args, kwargs)
        return self.wrap(lambda: self.add_node("call_function", function, args, kwargs, example), example, "boundary")

    def run_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Follow the root's forward; the frames inside this call are the model's."""
        self.scopes.append(("", type(module).__name__))
        flagged = self.modes.enter(module, "", functools.partial(self._branched, module, ""))
        try:
            hooked = any(getattr(module, name, None) for name in _HOOKS)
            function: Callable[..., Any] = module._wrapped_call_impl if hooked else module.forward
            result = function(*args, **kwargs)
            self.at_event(0)
            self.check_parts()
            return result
        except Exception as error:
            no_part = self.try_part(error) if not self.strict else ""
            if isinstance(error, QCompilerError):
                error.message += NO_PART + no_part if no_part else ""
                raise
            where, text = Where(module_path="", source=origin(error)), reason(error) + (NO_PART + no_part if no_part else "")
            raise TraceError(text, where=where, hint="make the part that cannot be followed a submodule") from error
        finally:
            if flagged:
                self.modes.leave(module)
            self.scopes.pop()


_SPECIAL: dict[Any, Callable[..., Any]] = {
    getattr: Tracer.attribute,
    torch._assert: Tracer.assertion,
    operator.setitem: Tracer.set_item,
    "size": Tracer.size,
    "is_same_size": lambda tracer, owner, other: owner.shape == other.shape,
    torch.is_same_size: lambda tracer, owner, other: owner.shape == other.shape,
    "tolist": Tracer.to_list,
    "bool": lambda tracer, owner, **kwargs: tracer.call("call_method", "to", (owner, torch.bool), kwargs),  # TorchScript has no `bool()`
    "requires_grad_": lambda tracer, owner, *args, **kwargs: owner,
}


def _plain(value: Any) -> Any:
    return int(value) != 0 if type(value) is Training else value


def _is_computed(func: Any, result: Any) -> bool:
    """Whether a function of parameters makes values that change when these are trained: tensors, or several (chunk, split, max)."""
    name = getattr(func, "__name__", "")
    if name == "requires_grad_" or (name == "__get__" and func.__self__.__name__ not in ("T", "mT", "H", "mH", "data")):
        return False
    results = result if isinstance(result, (tuple, list)) else (result,)
    return all(isinstance(r, torch.Tensor) for r in results) and any(r.is_floating_point() for r in results)


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
