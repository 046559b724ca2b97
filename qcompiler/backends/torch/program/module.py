"""CompiledModule: what convert returns, an nn.Module whose forward is straight-line source on bound kernels and packs."""

from __future__ import annotations

import functools
import inspect
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor, fx, nn

from qcompiler.ambient import call_is_plain, in_plain_torch, plain_call, widened
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.bind import Bound, bind, resolve
from qcompiler.backends.torch.program.build import Built, build
from qcompiler.backends.torch.program.check_load import check_names, check_sums
from qcompiler.backends.torch.program.drawing import program_nodes
from qcompiler.backends.torch.program.emit import Dialect, Emitter
from qcompiler.backends.torch.program.once import quantized_engine, run_once
from qcompiler.backends.torch.program.pack_store import PackStore
from qcompiler.backends.torch.program.program import Program, is_name
from qcompiler.backends.torch.program.scopes import DictScope, ListScope, Scope, place
from qcompiler.backends.torch.program.script import (
    attach_script,
    listed,
    refuse_classes,
    refuse_hidden,
    refuse_statements,
    script_attributes,
    unscriptable,
)
from qcompiler.backends.torch.program.steps import steps_of_program
from qcompiler.backends.torch.site import VNNI, host_isa
from qcompiler.errors import ConfigError, InputError, Where
from qcompiler.executable import Executable, Payload
from qcompiler.executable.arguments import Argument, form_of
from qcompiler.executable.states import STATES, KeepsState, mark_states
from qcompiler.executable.steps import Steps
from qcompiler.executable.tensors import find, find_submodule, keep_dtypes
from qcompiler.files.dtypes import DTYPES
from qcompiler.inputs.fingerprint import WEIGHTS
from qcompiler.inputs.input_text import described, first_sentence, how_to_give, refuses_inputs, signature
from qcompiler.inputs.kinds import refuse_kinds
from qcompiler.ir.check_qparams import HINT, scale_fault, zero_point_fault
from qcompiler.ir.check_state import assigns, check_state
from qcompiler.ir.form import as_number, misfit
from qcompiler.ir.items import DictItems, ListItems, give_items
from qcompiler.ops.float_statements import given_back, held, statement_of
from qcompiler.ops.records import Maker

T = TypeVar("T", bound=type)
STORE = "_pack_store"  # of packs that several modules share
OWN = frozenset({STORE, "lowered", "_program", "_engine", "_externals", "_built", "_bound", STATES})
NONSENSE = (AttributeError, LookupError, NameError, ArithmeticError)  # from a statement of a program that nobody compiled


class OtherCPUWarning(UserWarning):
    """A module runs on a CPU whose kernels overflow where those that it was compiled for do not."""


class CompiledModule(KeepsState, Executable):
    """An int8 program as a module. Made by `compile_graph` or `assemble`, whose result is a subclass named after the user's.

    All tensors are buffers under the user's names, activation parameters included, so state_dict is complete. Packs and the
    source follow from them: they are rebuilt by load_state_dict, copying and unpickling, and by `rebuild()` after tensors
    were changed in place. forward changes nothing of the module but what the user's forward keeps between calls (`program.states`):
    without such state it may run in many threads.
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
        if not call_is_plain():
            args, kwargs = widened((args, kwargs))
            with plain_call():
                return self._call(*args, **kwargs)
        return self._call(*args, **kwargs)

    def _call(self, *args: object, **kwargs: object) -> Any:
        if torch._C._get_tracing_state() is not None and self.program.is_native:
            raise _no_script()
        if torch._C._get_tracing_state() is not None and self.program.states:
            raise ConfigError("torch.jit.trace would fix what this module keeps between calls: " + ", ".join(self.program.states),
                              code="jit-trace", hint="torch.jit.script(module) keeps it")  # fmt: skip
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            if isinstance(error, TypeError):
                self._check_arguments(args, kwargs)
            place = self._failed_at(error)
            if place is None or not (refuses_inputs(error) or isinstance(error, NONSENSE)):
                raise
            if "quantized.engine is" in str(error):  # said by kernels that look at the engine of the moment
                hint = f'set torch.backends.quantized.engine = "{self.engine}" before the call'
                raise ConfigError(str(error), code="engine", where=place, hint=hint) from error
            raise self._misfit(error, place, args, kwargs) from error

    def _misfit(self, error: Exception, place: Where, args: tuple[object, ...], kwargs: Mapping[str, object]) -> InputError:
        """What a kernel raised, in terms of the inputs: their sizes are to blame unless they are the example's."""
        refuse_kinds((args, kwargs), "an input")
        inputs = self.program.inputs
        given = dict(zip((i.name for i in inputs), args, strict=False)) | dict(kwargs)
        text, hint = f"{type(error).__name__}: {first_sentence(error)}", "does the float model take this input?"
        sizes = {name: tuple(value.shape) for name, value in given.items() if isinstance(value, Tensor)}
        if any(i.shape is not None and sizes.get(i.name, i.shape)[1:] != i.shape[1:] for i in inputs):
            got = signature((name, described(value)) for name, value in given.items())
            text = f"the inputs {got} do not fit; the model was made with {signature((i.name, str(i)) for i in inputs)}"
            hint = "give the sizes of the example, or, where the float model takes these inputs, prepare it with them"
        return InputError(text, code="input-shape", where=place, hint=hint)

    def _check_arguments(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        try:
            inspect.signature(type(self).forward).bind(self, *args, **kwargs)
        except TypeError as error:
            signature = f"{self.program.name}{self.program.signature()}"
            raise InputError(f"{signature}: {error}", code="input-arguments", hint="call it as the float model is called") from None

    def _failed_at(self, error: BaseException) -> Where | None:
        """The statement of forward that raised, with the module and line it comes from; None where another module's code did."""
        forward = self._bound.forward.__code__
        last = None
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code is forward:
                last = self.code.splitlines()[line - 1].strip()
            elif last is not None and "qcompiler" not in frame.f_code.co_filename and "torch" not in frame.f_code.co_filename:
                return None
        return Where(node=last) if last is not None else None

    def _reject(self, name: str, value: object) -> NoReturn:
        """Called by generated source when an input has not the type or rank of the example."""
        refuse_kinds(value, f"input {name}")
        i = next(i for i in self.program.inputs if i.name == name)
        text = f"input {name!r} must be a torch.{i.dtype} tensor of {i.rank} dimensions, as {i}, got {described(value)}"
        raise InputError(text, code="input-type", hint=how_to_give(value, DTYPES.get(str(i.dtype))))

    def _number(self, name: str, value: object) -> int | float:
        """Called by generated source for an argument that the example gave as a number."""
        i = next(i for i in self.program.inputs if i.name == name)
        found = as_number(value, i.number or float)
        if found is None:
            raise InputError(f"input {name!r} must be a number ({i}), got {described(value)}", code="input-type")
        return found

    def _check_parts(self, name: str, value: object) -> None:
        """Called by generated source for an argument that is a container: InputError naming the part that is not as in the example."""
        i = next(i for i in self.program.inputs if i.name == name)
        if i.form is not None and (text := misfit(i.form, value, name)) is not None:
            raise InputError(f"input {text}", code="input-type")

    @in_plain_torch
    def rebuild(self) -> None:
        """Packs weights and makes forward anew from the module's tensors. OtherCPUWarning where this CPU's sums may overflow."""
        program = self.program
        self._check_qparams()
        _note_other_cpu(program.isa, self.engine)
        by_shape = program.by_shape(self.engine)
        with quantized_engine(self.engine):  # what is fast at one shape alone is each module's own
            packs = run_once(program, lambda path: find(self, path), *self._qparams(), self.__dict__.get(STORE), by_shape)
        emitter = Emitter(program, *self._qparams(), Dialect.BOUND, by_shape)
        emitter.hidden = own_names()
        bound = bind(emitter, packs, lambda path: find(self, path), self.engine, self._resolve)
        for name in self.__dict__.get("_built", ()):
            self.__dict__.pop(name, None)
        attributes = script_attributes(emitter, packs, lambda path: find(self, path))
        attributes["_script"] = bound.forward.__code__.co_filename  # of this build alone
        self.__dict__.update(attributes, _built=tuple(attributes), _bound=bound)
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
        return tuple(Argument(i.name, form_of(i.form, i.dtype, i.shape), i.optional, i.default) for i in self.program.inputs)

    def _steps(self) -> Steps:
        return steps_of_program(self, self.program, self.engine, self._qparams(), self._resolve)

    def _nodes(self) -> list[dict[str, Any]]:
        return program_nodes(self, self.program)

    def _payload(self) -> Payload:
        program = self.program
        statements = {name: statement_of(self.__dict__["_externals"].get(name)) for name in program.externals}
        sources = {name: statement.source for name, statement in statements.items() if statement is not None}
        data = {"engine": self.engine, "program": program.to_data()}
        return Payload(data, program.leaves + program.externals, program.records, sources)

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

    def _check_qparams(self) -> None:
        """Raises ConfigError for activation parameters that no quantized tensor has: they stand in the source as numbers."""
        names = self.program.scales_name, self.program.zero_points_name
        scales, zero_points = (self._buffers[n] for n in names)
        assert scales is not None and zero_points is not None
        text = scale_fault(scales) or ("" if zero_points.dtype is torch.int64 else f"zero points are int64, not {zero_points.dtype}")
        text = text or zero_point_fault(zero_points, torch.uint8)
        if text:
            raise ConfigError(f"{names[0]}, {names[1]}: {text}", code="qparams", hint=HINT)

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
        for name in ("_program", "_engine", "_built", "_bound", "lowered", STORE):
            state.pop(name, None)
        state["_externals"] = {name: held(function) for name, function in state["_externals"].items()}
        return _empty, (self.program.to_json(), self.engine), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__["_externals"] = {name: given_back(function) for name, function in state["_externals"].items()}
        index_containers(self)
        self.rebuild()

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        import copy

        made = _empty(self.program, self.engine)
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__reduce__()[2], memo))
        return made

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """What torch.jit leaves out: its packs hold the weights.

        torch.jit asks before it looks at forward, so here is where that gets its TorchScript spelling: most modules never need it.
        """
        if self.program.is_native:
            raise _no_script()
        refuse_hidden(self, self.program.leaves)
        refuse_statements(self.program, self.__dict__["_externals"])
        refuse_classes({name: self.__dict__["_externals"][name] for name in self.program.externals})
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


def _empty(program: Program | str, engine: str) -> CompiledModule:
    program = Program.from_json(program) if isinstance(program, str) else program
    title = program.name if is_name(program.name) else "CompiledModule"
    cls = type(title, (CompiledModule,), {"__module__": CompiledModule.__module__, "__doc__": CompiledModule.__doc__})
    module: CompiledModule = object.__new__(cls)
    nn.Module.__init__(module)
    module.__dict__.update(lowered=None, _program=program, _engine=engine, _externals={}, _built=())
    module._load_state_dict_post_hooks[-1] = _after_load
    return module


def _no_script() -> ConfigError:
    return ConfigError("torch.jit knows no native regions", code="native-script", hint='export_c writes C; backend="torch" can be scripted')


def _after_load(module: CompiledModule, incompatible: object) -> None:
    module.__dict__.pop(WEIGHTS, None)
    module.rebuild()


def _note_other_cpu(isa: str, engine: str) -> None:
    """Warns where full 8-bit activations were safe on the CPU that was compiled for, and are not on this one."""
    if isa in VNNI and host_isa() not in VNNI and engine != "qnnpack":
        text = (f"this module was compiled for CPUs with VNNI ({isa}), which this one lacks: sums may overflow in 16 bits, with errors "
                'in the results. Compile it with isa="avx2" for both')  # fmt: skip
        warnings.warn(text, OtherCPUWarning, stacklevel=4)


def assemble(built: Built, engine: str) -> CompiledModule:
    """The module of a program and what it runs on; tensors become its buffers as they are."""
    program = built.program
    module = _empty(program, engine)
    module.__dict__["_externals"] = dict(built.externals)
    for path in sorted(built.leaves):
        place(module, path, built.leaves[path])
    for path, tensor in built.tensors.items():
        place(module, path, tensor)
    module._buffers[program.scales_name] = torch.tensor(built.scales, dtype=torch.float64)
    module._buffers[program.zero_points_name] = torch.tensor(built.zero_points, dtype=torch.int64)
    module.train(False)
    module.rebuild()
    return module


def compile_graph(
    gm: fx.GraphModule,
    *,
    name: str | None = None,
    engine: str | None = None,
    isa: str = "",
    user_attributes: Mapping[str, object] | None = None,
) -> CompiledModule:
    """The CompiledModule of a LOWERED graph, named `name`, packed for `engine` (default: torch's current one). `isa`: the
    instruction set that it was lowered for.

    Tensors are copied; float leaf modules are shared with the graph. Raises QCompilerError naming a node that no program can hold.
    """
    module = assemble(build(gm, name, isa), engine or torch.backends.quantized.engine)
    module.__dict__["lowered"] = gm
    for key, value in (user_attributes or {}).items():
        if not hasattr(CompiledModule, key) and key not in module.__dict__:
            setattr(module, key, value)
    index_containers(module)
    return module
