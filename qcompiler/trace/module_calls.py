"""What becomes of a module that the model calls: a leaf, or followed, or a leaf because it cannot be followed."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qcompiler.errors import QCompilerError, TraceError, Where, out_of_memory
from qcompiler.inputs.kinds import ORIGINAL, is_compiled
from qcompiler.trace import places
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.holding import BOUNDARY
from qcompiler.trace.mode import Modes, evaluated
from qcompiler.trace.nested import map_nested
from qcompiler.trace.proxy import Proxy, first_proxy
from qcompiler.trace.reasons import origin, reason
from qcompiler.trace.state import untouched
from qcompiler.trace.zero_states import with_zero_states

if TYPE_CHECKING:
    from qcompiler.trace.tracer import Tracer

NO_PART = "; the statement cannot stay float on its own: "
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True)
class Rules:
    """What a trace was told of modules. `is_leaf(module, path)`: it stays one call; `decompose`: what is traced in place of a class or
    of a function; `strict`: what cannot be followed is an error; `trains`: `training` is read at each call."""

    is_leaf: Callable[[nn.Module, str], bool]
    decompose: Mapping[Callable[..., Any], Callable[..., Any]]
    strict: bool = False
    trains: bool = False


@dataclass(frozen=True)
class Call:
    """One call of a module: what nn.Module does with it, and its arguments."""

    module: nn.Module
    path: str
    original: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def is_hooked(module: nn.Module) -> bool:
    return any(getattr(module, name, None) for name in _HOOKS)


def is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


class ModuleCalls:
    """The module calls of one tracer."""

    def __init__(self, tracer: Tracer, rules: Rules) -> None:
        self._tracer, self.rules, self.modes = tracer, rules, Modes(rules.trains)
        self.kept: dict[str, str] = {}  # modules that have to stay leaves, with the reason
        self.leaves: list[str] = []  # paths of the leaves that run the user's code
        self.replacements: dict[str, nn.Module] = {}  # copies of in-place leaf modules that are not in place
        self.explicit_states = False  # recurrent layers that are given no state are given zeros
        self.restore: Callable[[nn.Module], object] = lambda root: None  # undo what a failed attempt left on modules

    def call(self, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the user's code gets for a call of a module."""
        if is_compiled(module):  # followed as the module that it was made of
            return self.call(module._modules[ORIGINAL], original, args, kwargs)  # type: ignore[arg-type]
        self._tracer.at_event()
        path = self._tracer.paths.get(id(module))
        if path is None:
            return original(module, *args, **kwargs)
        return self._of_model(Call(module, path, original, args, kwargs))

    def _of_model(self, call: Call) -> object:
        module, path = call.module, call.path
        replacement = None if is_hooked(module) else self.rules.decompose.get(type(module))
        traced = first_proxy((call.args, call.kwargs)) is not None
        if traced and replacement is None and not is_hooked(module) and self.rules.is_leaf(module, path):
            return self._leaf(call, known=True)
        if replacement is not None:
            return self._follow(call, functools.partial(replacement, module))
        if traced and path in self.kept:
            self._tracer.remarks.append(TraceRemark("leaf", Where(module_path=path), self.kept[path]))
            return self._leaf(call, known=False)
        if isinstance(module, torch.jit.ScriptModule):
            self._tracer.remarks.append(TraceRemark("leaf", Where(module_path=path), "a scripted module cannot be followed"))
            return self._leaf(call, known=False)
        with self._tracer.without_state(module):
            return self._follow(call, functools.partial(call.original, module))

    def _follow(self, call: Call, function: Callable[..., object]) -> object:
        """Trace into a module; where that fails, go back and keep it as a leaf."""
        tracer, module, path = self._tracer, call.module, call.path
        mark, depth, opened = tracer.mark(), len(tracer.decomposing), len(tracer.regions)
        tracer.scopes.append((path, type(module).__name__))
        flagged = self.enter(module, path)
        try:
            result = function(*call.args, **call.kwargs)
            tracer.at_event(len(tracer.scopes) - 1)
            return result
        except Exception as error:
            if self.rules.strict or getattr(error, "qc_final", False) or out_of_memory(error) is not None:
                raise
            self.give_up(error, path, mark, tracer.try_part(error))
            self.restore(module)
            del tracer.decomposing[depth:], tracer.regions[opened:]
        finally:
            if flagged:
                self.modes.leave(module)
            tracer.scopes.pop()
        return self._leaf(call, known=False)

    def enter(self, module: nn.Module, path: str) -> bool:
        """Flag a module that is followed from here on; whether there was something to do."""
        return self.modes.enter(module, path, functools.partial(self._branched, module, path))

    def _branched(self, module: nn.Module, path: str) -> None:
        """The user's code asks a module whether it trains. (torch's own modules do for reasons that change no value.)"""
        if self._tracer.paused or is_torch(module):
            return
        file, line = places.user_line(sys._getframe(2), BOUNDARY)
        mode = "training" if int(vars(module)["training"]) else "evaluation"
        text = f"a branch on `training` was followed as in {mode}: the graph has this branch in both modes"
        remark = TraceRemark("training-branch", Where(module_path=path, source=places.spell(file, line)), text)
        if remark not in self._tracer.remarks:
            self._tracer.remarks.append(remark)

    def give_up(self, error: Exception, path: str, mark: Any, no_part: str = "") -> None:
        """Go back to a mark, with a remark on what could not be followed."""
        self._tracer.rollback(mark)
        text = reason(error) + (NO_PART + no_part if no_part else "")
        self._tracer.remarks.append(TraceRemark("leaf", Where(module_path=path, source=origin(error)), text))

    def _leaf(self, call: Call, known: bool) -> object:
        """One call_module node; the module runs on the examples."""
        module, args, kwargs = call.module, call.args, call.kwargs
        self._tracer.scopes.append((call.path, type(module).__name__))
        if not is_torch(module):
            self.leaves.append(call.path)
        elif self.explicit_states:
            args, kwargs = with_zero_states(module, args, kwargs)
        try:
            return self._recorded(Call(module, call.path, call.original, args, kwargs), known and is_torch(module))
        except QCompilerError as error:
            error.qc_final = not known and not isinstance(error, TraceError)  # type: ignore[attr-defined]
            raise
        finally:
            self._tracer.scopes.pop()

    def _recorded(self, call: Call, pure: bool) -> object:
        """`pure`: a module of torch's, which changes no argument but the first, and that only if it is in place."""
        tracer, module, args, kwargs = self._tracer, call.module, call.args, call.kwargs
        changed = args[0] if pure and getattr(module, "inplace", False) is True and args else None
        runs = self._not_in_place(module, call.path) if changed is not None else module
        if pure:
            with evaluated(runs):
                values = map_nested(tracer.running.concrete, args), map_nested(tracer.running.concrete, kwargs)
                example = self._run(runs, call.original, *values)
        else:
            example = self._run_unknown(call)
        make = functools.partial(tracer.add_node, "call_module", call.path, args, kwargs, example)
        if type(changed) is Proxy:
            tracer.check_state(changed.example)
            tracer.mutate(changed, make(), example)
            return changed
        return tracer.results.wrap(make, example, "boundary")

    def _not_in_place(self, module: nn.Module, path: str) -> nn.Module:
        if path not in self.replacements:
            self.replacements[path] = copied = copy.copy(module)
            copied.inplace = False  # type: ignore[assignment]
        return self.replacements[path]

    def _run(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module on examples and leave what it keeps as it was."""
        run, tracer = functools.partial(original, module), self._tracer
        if not module.training and is_torch(module):
            return tracer.running.on_examples(run, args, kwargs)
        tracer.paused += 1
        try:
            with untouched(module):
                return tracer.running.on_examples(run, args, kwargs)
        finally:
            tracer.paused -= 1

    def _run_unknown(self, call: Call) -> Any:
        """Run a module that may change its arguments: those that it does are copied first, in the graph too."""
        found: list[tuple[Proxy, torch.Tensor]] = []

        def copied(value: Any) -> Any:
            if type(value) is not Proxy or not value.is_tensor:
                return self._tracer.running.concrete(value)
            value_copy = value.example.clone()
            found.append((value, value_copy))
            return value_copy

        values, options = map_nested(copied, call.args), map_nested(copied, call.kwargs)
        versions = [value._version for _, value in found]
        example = self._run(call.module, call.original, values, options)
        for (proxy, value), version in zip(found, versions, strict=True):
            if value._version != version:
                before = self._tracer.add_node("call_method", "clone", (proxy,), {}, value)
                self._tracer.mutate(proxy, before, value)
        return example
