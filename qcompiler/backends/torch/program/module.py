"""CompiledModule: what convert returns, an nn.Module whose forward is straight-line source on bound kernels and packs."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, fx, nn

from qcompiler.ambient import call_is_plain, in_plain_torch, plain_call, widened
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.answers import AnswersCalls
from qcompiler.backends.torch.program.bind import Bound, bind, resolve, without_forward
from qcompiler.backends.torch.program.check_load import check_names, check_qparams, check_sums
from qcompiler.backends.torch.program.emit import Emitter
from qcompiler.backends.torch.program.index_inputs import index_inputs
from qcompiler.backends.torch.program.named_constants import name_constants
from qcompiler.backends.torch.program.once import quantized_engine, run_once
from qcompiler.backends.torch.program.other_cpu import note_other_cpu
from qcompiler.backends.torch.program.pack_store import PackStore
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.scopes import DictScope, ListScope, Scope
from qcompiler.backends.torch.program.script import (
    attach_script,
    listed,
    refuse_unscriptable,
    script_attributes,
    unscriptable,
)
from qcompiler.backends.torch.program.spell import Dialect
from qcompiler.backends.torch.program.statements import is_name
from qcompiler.backends.torch.program.steps import steps_of_program
from qcompiler.backends.torch.program.tells import TellsOfItself
from qcompiler.backends.torch.program.watched import WATCHED, FollowsTensors, Watched
from qcompiler.errors import ConfigError
from qcompiler.executable import Executable, Payload
from qcompiler.executable.arguments import Argument, form_of
from qcompiler.executable.states import STATES, KeepsState, mark_states
from qcompiler.executable.steps import Steps
from qcompiler.executable.tensors import find, find_submodule, keep_dtypes
from qcompiler.inputs.fingerprint import WEIGHTS
from qcompiler.ir.check_state import assigns, check_state
from qcompiler.ir.items import DictItems, ListItems, give_items
from qcompiler.ops.float_statements import given_back, held, statement_of
from qcompiler.ops.records import Maker

T = TypeVar("T", bound=type)
STORE = "_pack_store"  # of packs that several modules share
OWN = frozenset({STORE, "lowered", "_program", "_engine", "_externals", "_built", "_bound", WATCHED, STATES})


class CompiledModule(TellsOfItself, AnswersCalls, FollowsTensors, KeepsState, Executable):
    """An int8 program as a module. Made by `compile_graph` or `assemble`, whose result is a subclass named after the user's.

    All tensors are buffers under the user's names, activation parameters included, so state_dict is complete. Packs and the source follow
    from them: they are rebuilt by load_state_dict, copying and unpickling, and by the first call after a tensor was assigned or changed in
    place; a change through `.data`, of which torch does not tell, takes `rebuild()`. forward changes nothing of the module but what the
    user's forward keeps between calls (`program.states`): without such state it may run in many threads.
    """

    if TYPE_CHECKING:  # torch.jit would take annotations for its own
        lowered: fx.GraphModule | None  # the LOWERED graph, where this process made the module; copies go without
        _program: Program
        _engine: str
        _externals: dict[str, object]
        _built: tuple[str, ...]  # attributes that rebuild() makes
        _bound: Bound
    __constants__ = ["_script"]  # torch.jit compiles modules of one class anew where it differs: after rebuild()
    _fixed_dtypes = True
    __jit_unused_properties__ = ["program", "_backend", "engine", "code", "__jit_ignored_attributes__"]

    @property
    def program(self) -> Program:
        return self.__dict__["_program"]  # type: ignore[no-any-return]

    @property
    def _backend(self) -> str:  # type: ignore[override]
        """Programs with native regions are the native back end's; torch runs what lies between."""
        return "native" if self.program.is_native else "torch"

    @property
    def engine(self) -> str:
        """The quantized engine that the weights are packed for."""
        return self.__dict__["_engine"]  # type: ignore[no-any-return]

    @property
    def code(self) -> str:
        """Source of forward, as it runs."""
        return self._bound.source

    def forward(self, *args: Any, **kwargs: Any) -> object:
        raise ConfigError("a CompiledModule is made by compile_graph or artifact.load")

    def __call__(self, *args: object, **kwargs: object) -> Any:
        if torch.compiler.is_compiling():  # what is said of errors needs frames that torch.compile has not
            return super().__call__(*args, **kwargs)
        self._follow()
        if not call_is_plain():
            args, kwargs = widened((args, kwargs))
            with plain_call():
                return self._call(*args, **kwargs)
        return self._call(*args, **kwargs)

    @in_plain_torch
    def rebuild(self) -> None:
        """Packs weights and makes forward anew from the module's tensors. OtherCPUWarning where this CPU's sums may overflow."""
        program = self.program
        check_qparams(self, (program.scales_name, program.zero_points_name))
        note_other_cpu(program.isa, self.engine)
        by_shape, watched = program.by_shape(self.engine), Watched(self, program)
        with quantized_engine(self.engine):  # what is fast at one shape alone is each module's own
            packs = run_once(program, watched.get, self._qparams(), self.__dict__.get(STORE), by_shape)
        name_constants(self, program, packs)
        emitter = Emitter(program, *self._qparams(), Dialect.BOUND, by_shape)
        emitter.hidden = own_names()
        bound = bind(emitter, packs, watched.get, self.engine, self._resolve)
        for name in self.__dict__.get("_built", ()):
            self.__dict__.pop(name, None)
        attributes = script_attributes(emitter, packs, lambda path: find(self, path))
        attributes["_script"] = bound.forward.__code__.co_filename  # of this build alone
        self.__dict__.update(attributes, _built=tuple(attributes), _bound=bound, _watched=watched)
        self._note_states()
        type(self).forward = bound.forward  # type: ignore[method-assign]

    _tensors_changed = rebuild

    def _share(self, first: Executable) -> None:
        """Lets it use the packs of the first form of the call where they are made of the same tensors, in the same way."""
        self.__dict__[STORE] = first.__dict__.setdefault(STORE, PackStore())
        self.rebuild()

    def _attributes_changed(self) -> None:
        index_containers(self)

    def _arguments(self) -> tuple[Argument, ...]:
        indices = index_inputs(self.program)
        forms = [(i, form_of(i.form, i.dtype, i.shape)) for i in self.program.inputs]
        return tuple(Argument(i.name, form, i.optional, i.default, i.name in indices) for i, form in forms)

    def _steps(self) -> Steps:
        return steps_of_program(self, self.program, self.engine, self._qparams(), self._resolve)

    def _payload(self) -> Payload:
        program = self.program
        statements = {name: statement_of(self.__dict__["_externals"].get(name)) for name in program.externals}
        sources = {name: statement.source for name, statement in statements.items() if statement is not None}
        data = {"engine": self.engine, "program": program.to_data()}
        return Payload(data, program.leaves + program.externals, program.records, sources)

    def _outside(self) -> Mapping[str, object]:
        return self.__dict__["_externals"]  # type: ignore[no-any-return]

    def _title(self) -> str:
        return self.program.name

    def _graph(self) -> fx.GraphModule | None:
        return self.__dict__["lowered"]  # type: ignore[no-any-return]

    def _own_attributes(self) -> frozenset[str]:
        return frozenset(nn.Module().__dict__) | set(self.__dict__["_built"]) | OWN

    def _note_states(self) -> None:
        names: dict[str, list[str]] = {}
        for path in self.program.states:
            scopes, _, last = path.rpartition(".")
            names.setdefault(scopes, []).append(last)
        for scopes, own in names.items():
            mark_states(find_submodule(self, scopes), own)

    def _qparams(self) -> tuple[list[float], list[int]]:
        scales, zero_points = (self._buffers[n] for n in (self.program.scales_name, self.program.zero_points_name))
        assert scales is not None and zero_points is not None
        return scales.tolist(), zero_points.tolist()

    def _resizes(self, name: str, value: Tensor) -> bool:
        return name in self.__dict__.get(STATES, ())  # what forward keeps may have another size after each call

    def _check_own(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        check_sums(self.program, self.engine, lambda name: state_dict.get(prefix + name))

    def load_state_dict(self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False) -> object:
        """As nn.Module's, but what does not fit is a ConfigError before any tensor is changed."""
        check_state(self, state_dict, "", assign)  # first: a float checkpoint lacks names, too
        if strict:
            check_names(self.program, list(self.state_dict()), state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, *rest: Any) -> None:
        check_state(self, state_dict, prefix, assigns(local_metadata))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def _resolve(self, op: str) -> Any:
        if op.startswith(registry.EXTERNAL):
            return self.__dict__["_externals"][op.removeprefix(registry.EXTERNAL)]
        if op.startswith(registry.RECORD):
            name = op.removeprefix(registry.RECORD)
            return Maker(name, self.__dict__["_externals"].get(name))
        return resolve(op)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompiledModule:
        """`.to(...)`: kernels exist for the CPU alone and the program fixes its dtypes; raises ConfigError for others."""
        super()._apply(keep_dtypes(fn, "an int8 program"), recurse)
        self.rebuild()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        state = {k: v for k, v in self.__dict__.items() if k not in self.__dict__["_built"]}
        for name in ("_program", "_engine", "_built", "_bound", WATCHED, "lowered", STORE):
            state.pop(name, None)
        state["_externals"] = {name: held(function) for name, function in state["_externals"].items()}
        return empty_module, (self.program.to_json(), self.engine), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__["_externals"] = {name: given_back(function) for name, function in state["_externals"].items()}
        index_containers(self)
        self.rebuild()

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        import copy

        made = empty_module(self.program, self.engine)
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__reduce__()[2], memo))
        return made

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """What torch.jit leaves out: its packs hold the weights.

        torch.jit asks before it looks at forward, so here is where that gets its TorchScript spelling: most modules never need it.
        """
        if self.program.is_native:  # torch.jit.trace alone comes so far: of what it records the tensors are part
            return [name for name in self.__dict__ if name not in nn.Module().__dict__]
        refuse_unscriptable(self, self.program, self.__dict__["_externals"])
        for path, alias in self._bound.emitter.tensors.items():
            if path in self.program.states:  # a script goes its own way from what the module holds now
                self.__dict__[self._bound.emitter.attribute(alias)] = find(self, path).detach().clone()
        if not hasattr(self._bound.forward, "__wrapped__"):
            attach_script(self._bound, self._resolve)
        fresh = self._bound.by_shape.for_script()  # a script is fast at its own first shapes, whatever the module was called with
        self.__dict__.update({self._bound.emitter.attribute(alias): pack for alias, pack in fresh.items()})
        user = set(self.__dict__) - self._own_attributes()
        plain = {name for name in user if isinstance(self.__dict__[name], (bool, int, float, str))}
        # lowered is a module: torch.jit makes nothing of it, but would copy it to its script module if it were ignored
        return [*self._buffers, *unscriptable(self), *(OWN - {"lowered"}), *(user - plain)]

    def __prepare_scriptable__(self) -> CompiledModule:
        """Called by torch.jit.script before it looks at a model that this module is part of."""
        if self.program.is_native:
            raise ConfigError("torch.jit.script knows no native regions", code="native-script",
                              hint='torch.jit.trace takes the module, export_c writes C; backend="torch" can be scripted')  # fmt: skip
        return self

    def __dir__(self) -> list[str]:
        return listed(self)

    def extra_repr(self) -> str:
        program = self.program
        return f"engine={self.engine}, {program.int8_calls} of {len(program.calls)} calls on int8 kernels"


class CompiledList(ListItems, CompiledModule):
    """An int8 Sequential."""


class CompiledDict(DictItems, CompiledModule):
    """An int8 ModuleDict."""


@functools.cache
def own_names() -> frozenset[str]:
    """Names that every compiled module has for itself."""
    return frozenset(dir(CompiledModule)) | OWN


def index_containers(module: CompiledModule) -> None:
    """Makes the user's containers, and the module where it was one, indexable as they were."""
    kind = give_items(module, {Scope: {"list": ListScope, "dict": DictScope}})
    type(module).__bases__ = ({None: CompiledModule, "list": CompiledList, "dict": CompiledDict}[kind],)


def empty_module(program: Program | str, engine: str) -> CompiledModule:
    program = Program.from_json(program) if isinstance(program, str) else program
    title = program.name if is_name(program.name) else "CompiledModule"
    cls = type(title, (CompiledModule,), {"__module__": CompiledModule.__module__, "__doc__": CompiledModule.__doc__})
    module: CompiledModule = object.__new__(cls)
    nn.Module.__init__(module)
    module.__dict__.update(lowered=None, _program=program, _engine=engine, _externals={}, _built=())
    module._load_state_dict_post_hooks[-1] = _after_load
    weakref.finalize(module, without_forward, cls).atexit = False
    return module


def _after_load(module: CompiledModule, incompatible: object) -> None:
    module.__dict__.pop(WEIGHTS, None)
    module.rebuild()
