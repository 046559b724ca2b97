"""What becomes of a module that the model calls: a leaf, or followed, or a leaf because it cannot be followed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qcompiler.errors import Where, out_of_memory
from qcompiler.inputs.kinds import ORIGINAL, is_compiled
from qcompiler.ops.functional import stochastic_depth
from qcompiler.trace import places
from qcompiler.trace.drop_paths import dropped_share
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.leaf_calls import Call, LeafCalls, is_torch
from qcompiler.trace.mode import NAME, Modes, Training
from qcompiler.trace.proxy import Args, Kwargs, first_proxy
from qcompiler.trace.reasons import origin, reason
from qcompiler.trace.recording import Mark, Recording
from qcompiler.trace.regions import Regions

NO_PART = "; the statement cannot stay float on its own: "
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True)
class TraceOptions:
    """What a trace was told of modules.

    `is_leaf(module, path)`: it stays one call. `decompose` maps module classes (to a function of the module and its arguments) and
    functions (to a function of the same arguments) to what is traced in their place. `strict`: what cannot be followed is an error.
    `trains`: the graph is to be trained, so it computes with parameters and reads `training` when it runs, instead of once while it is
    traced.
    """

    is_leaf: Callable[[nn.Module, str], bool]
    decompose: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    strict: bool = False
    trains: bool = False


def is_hooked(module: nn.Module) -> bool:
    return any(getattr(module, name, None) for name in _HOOKS)


class ModuleCalls:
    """The module calls of one trace. `try_part(error)`: raise where a statement may stay float, else say why none can."""

    def __init__(
        self, recorder: Recording, options: TraceOptions, leaves: LeafCalls, regions: Regions, try_part: Callable[[Exception], str]
    ) -> None:
        self._recorder, self.options, self._leaves, self._regions, self._try_part = recorder, options, leaves, regions, try_part
        self.modes = Modes(options.trains)
        self.kept: dict[str, str] = {}  # modules that have to stay leaves, with the reason
        self.restore: Callable[[nn.Module], object] = lambda root: None  # undo what a failed attempt left on modules

    def call(self, module: nn.Module, original: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        """What the user's code gets for a call of a module."""
        if is_compiled(module):  # followed as the module that it was made of
            return self.call(module._modules[ORIGINAL], original, args, kwargs)  # type: ignore[arg-type]
        self._recorder.at_event()
        path = self._recorder.paths.get(id(module))
        if path is None:
            return original(module, *args, **kwargs)
        return self._of_model(Call(module, path, original, args, kwargs))

    def _of_model(self, call: Call) -> object:
        module, path = call.module, call.path
        replacement = None if is_hooked(module) else self.options.decompose.get(type(module))
        traced = first_proxy((call.args, call.kwargs)) is not None
        if traced and replacement is None and not is_hooked(module) and self.options.is_leaf(module, path):
            return self._leaves.record(call, known=True)
        if replacement is not None:
            return self._follow(call, functools.partial(replacement, module))
        if traced and path in self.kept:
            self._recorder.remarks.append(TraceRemark("leaf", Where(module_path=path), self.kept[path]))
            return self._leaves.record(call, known=False)
        if isinstance(module, torch.jit.ScriptModule):
            self._recorder.remarks.append(TraceRemark("leaf", Where(module_path=path), "a scripted module cannot be followed"))
            return self._leaves.record(call, known=False)
        if traced and self.options.trains and not is_torch(module) and (share := self._dropped_share(call)) is not None:
            flag = Training(module.training, f"{path}.{NAME}", lambda: None)
            return self._recorder.record("call_function", stochastic_depth, call.args, {"p": share, "mode": "row", NAME: flag})
        with self._regions.without_state(module):
            return self._follow(call, functools.partial(call.original, module))

    def _dropped_share(self, call: Call) -> float | None:
        """The share of samples that a module drops in training, if that is all it does with its one argument."""
        if len(call.args) != 1 or call.kwargs:
            return None
        self._recorder.paused += 1
        try:
            return dropped_share(call.module)
        finally:
            self._recorder.paused -= 1

    def _follow(self, call: Call, function: Callable[..., object]) -> object:
        """Trace into a module; where that fails, go back and keep it as a leaf."""
        recorder, module, path = self._recorder, call.module, call.path
        mark, opened = recorder.mark(), len(self._regions.open)
        recorder.scopes.append((path, type(module).__name__))
        flagged = self.enter(module, path)
        try:
            result = function(*call.args, **call.kwargs)
            recorder.at_event(len(recorder.scopes) - 1)
            return result
        except Exception as error:
            if self.options.strict or getattr(error, "qc_final", False) or out_of_memory(error) is not None:
                raise
            self.give_up(error, path, mark, self._try_part(error))
            self.restore(module)
            del self._regions.open[opened:]
        finally:
            if flagged:
                self.modes.leave(module)
            recorder.scopes.pop()
        return self._leaves.record(call, known=False)

    def enter(self, module: nn.Module, path: str) -> bool:
        """Flag a module that is followed from here on; whether there was something to do."""
        return self.modes.enter(module, path, functools.partial(self._branched, module, path))

    def _branched(self, module: nn.Module, path: str) -> None:
        """The user's code asks a module whether it trains. (torch's own modules do for reasons that change no value.)"""
        if self._recorder.paused or is_torch(module):
            return
        file, line = places.user_line(sys._getframe(2), places.BOUNDARY)
        mode = "training" if int(vars(module)["training"]) else "evaluation"
        text = f"a branch on `training` was followed as in {mode}: the graph has this branch in both modes"
        remark = TraceRemark("training-branch", Where(module_path=path, source=places.spell(file, line)), text)
        if remark not in self._recorder.remarks:
            self._recorder.remarks.append(remark)

    def give_up(self, error: Exception, path: str, mark: Mark, no_part: str = "") -> None:
        """Go back to a mark, with a remark on what could not be followed."""
        self._recorder.rollback(mark)
        text = reason(error) + (NO_PART + no_part if no_part else "")
        self._recorder.remarks.append(TraceRemark("leaf", Where(module_path=path, source=origin(error)), text))
