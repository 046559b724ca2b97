"""Modules that stay one call: run on the examples, and recorded."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qcompiler.errors import QCompilerError, TraceError
from qcompiler.trace.asking import laid_out
from qcompiler.trace.borrowed import Borrowed
from qcompiler.trace.mode import Training, evaluated
from qcompiler.trace.mutation import Mutations, same_place
from qcompiler.trace.nested import map_nested
from qcompiler.trace.proxy import Args, Kwargs, Proxy
from qcompiler.trace.recording import Recording
from qcompiler.trace.results import Results
from qcompiler.trace.running import Running
from qcompiler.trace.state import untouched
from qcompiler.trace.views import note_views
from qcompiler.trace.watch import Watch, asked_in_script
from qcompiler.trace.zero_states import with_zero_states


@dataclass(frozen=True)
class Call:
    """One call of a module: what nn.Module does with it, and its arguments."""

    module: nn.Module
    path: str
    original: Callable[..., Any]
    args: Args
    kwargs: Kwargs


_AS_METHODS: dict[type, tuple[str, tuple[str, ...]]] = {  # modules that give views: the method, and which settings it takes
    nn.Flatten: ("flatten", ("start_dim", "end_dim")), nn.Unflatten: ("unflatten", ("dim", "unflattened_size")),
}  # fmt: skip
_DROPOUTS = nn.modules.dropout._DropoutNd


def is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


class LeafCalls:
    """The leaves of one trace."""

    def __init__(self, recorder: Recording, running: Running, results: Results, mutations: Mutations, trains: bool) -> None:
        self._trains = trains
        self._recorder, self._running, self._results, self._mutations = recorder, running, results, mutations
        self.replacements: dict[str, nn.Module] = {}  # copies of in-place leaf modules that are not in place
        self.explicit_states = False  # recurrent layers that are given no state are given zeros

    def record(self, call: Call, known: bool) -> object:
        """One call_module node; the module runs on the examples."""
        module, args, kwargs = call.module, call.args, call.kwargs
        self._recorder.scopes.append((call.path, type(module).__name__))
        if not is_torch(module):
            self._recorder.leaves.append(call.path)
        elif self.explicit_states:
            args, kwargs = with_zero_states(module, args, kwargs)
        try:
            return self._recorded(Call(module, call.path, call.original, args, kwargs), known and is_torch(module))
        except QCompilerError as error:
            error.qc_final = not known and not isinstance(error, TraceError)  # type: ignore[attr-defined]
            raise
        finally:
            self._recorder.scopes.pop()

    def _recorded(self, call: Call, pure: bool) -> object:
        """`pure`: a module of torch's, which changes no argument but the first, and that only if it is in place."""
        module, args, kwargs = call.module, call.args, call.kwargs
        changed = args[0] if pure and getattr(module, "inplace", False) is True and args else None
        borrowed = Borrowed(self._recorder, self._running, self._mutations)
        runs = self._not_in_place(module, call.path) if changed is not None else module
        if pure:
            with evaluated(runs):
                values = map_nested(self._running.concrete, args), map_nested(self._running.concrete, kwargs)
                example = self._run(runs, call.original, *values)
        else:
            watch = Watch()
            values = borrowed.copies((args, kwargs))
            example = self._run(module, watch.over(call.original), *values)
            args, kwargs = borrowed.changed((args, kwargs))
            if asked := watch.asked or asked_in_script(module):
                args, kwargs = (map_nested(lambda value: laid_out(self._recorder, value, asked), part) for part in (args, kwargs))
        make = functools.partial(self._recorder.add_node, "call_module", call.path, args, kwargs, example)
        if type(changed) is Proxy:
            self._mutations.check_state(changed.example)
            self._mutations.mutate(changed, make(), example)
            return changed
        result = self._results.wrap(make, example, "boundary")
        if pure:
            self._note_views(module, call.path, result, args)
        else:
            borrowed.note_lent(result)
        return result

    def _note_views(self, module: nn.Module, path: str, result: object, args: Args) -> None:
        """Let the result of a module of torch's that is a view of its first argument, or that very tensor, know it."""
        if type(module) in _AS_METHODS and len(args) == 1:
            name, settings = _AS_METHODS[type(module)]
            settings = tuple(getattr(module, setting) for setting in settings)
            note_views(result, "call_method", name, (*args, *settings), {}, self._recorder.memory)
        elif self._trains and isinstance(module, _DROPOUTS) and module.p > 0:
            flag = Training(module.training, f"{path}.training", lambda: None)
            note_views(result, "call_function", torch.dropout, (*args[:1], module.p, flag), {}, self._recorder.memory)
        elif args and type(result) is Proxy and type(args[0]) is Proxy and same_place(result.example, args[0].example):
            note_views(result, "call_method", "positive", args[:1], {}, self._recorder.memory)

    def _not_in_place(self, module: nn.Module, path: str) -> nn.Module:
        if path not in self.replacements:
            self.replacements[path] = copied = copy.copy(module)
            copied.inplace = False  # type: ignore[assignment]
        return self.replacements[path]

    def _run(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module on examples and leave what it keeps as it was."""
        run = functools.partial(original, module)
        if not module.training and is_torch(module):
            return self._running.on_examples(run, args, kwargs)
        self._recorder.paused += 1
        try:
            with untouched(module):
                return self._running.on_examples(run, args, kwargs)
        finally:
            self._recorder.paused -= 1
