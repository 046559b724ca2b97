"""What prepare_fx returns: the OBSERVED graph as a module that is called with calibration data."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from qcompiler.ambient import call_is_plain, plain_call, widened
from qcompiler.compile.journal import Journal
from qcompiler.compile.settings import Settings
from qcompiler.errors import ConfigError, InputError, UnsupportedOpError, Where
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.input_text import described, first_sentence, how_to_give, refuses_inputs, signature
from qcompiler.inputs.kinds import refuse_kind
from qcompiler.ir.attributes import attribute
from qcompiler.ir.check_state import guard_loading
from qcompiler.ir.form import CONTAINERS, Form, as_number, misfit
from qcompiler.ir.graph_module import OwnGraphModule
from qcompiler.ir.items import PLACES, SCOPES, DictItems, ListItems, give_items
from qcompiler.ir.names import NAMES, keep_names
from qcompiler.ir.types import Value, value_of
from qcompiler.ir.verify import where
from qcompiler.observers.watch import Watch
from qcompiler.ops.state_nodes import held_names, set_held
from qcompiler.ops.table import OPS
from qcompiler.prepared.decide_again import Fused
from qcompiler.prepared.float_state import FloatState
from qcompiler.prepared.given_numbers import Numbers
from qcompiler.prepared.graph_pickle import Data, from_data, to_data
from qcompiler.qat.ops import training_table

HELD = ("_modules", "_parameters", "_buffers", "training", "_non_persistent_buffers_set")
STATE = "qcompiler"  # gm.meta key -> State
KEPT = "_user_preserved_attributes"  # gm.meta key of torch.fx: attributes that copies keep


@dataclass
class State:
    """What convert needs to know of the prepare before it."""

    settings: Settings
    journal: Journal
    name: str
    user_attributes: dict[str, object]
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # what the int8 values are checked on
    before: FloatState = field(default_factory=FloatState)  # what the float model had kept between calls
    fused: Fused = field(default_factory=Fused)  # where the decisions begin
    weights: dict[str, str] = field(default_factory=dict)  # checksums of the float model's; none where others were loaded
    numbers: Numbers = field(default_factory=Numbers)  # what calls gave for arguments that are one number

    def saved(self) -> State:
        """The state without what cannot be written; ConfigError for op rows of the user's own, which are code."""
        settings = self.settings
        if settings.table.rows != (training_table(OPS) if settings.trains else OPS).rows:
            raise ConfigError("a model prepared with op rows of your own cannot be pickled", code="pickle-table",
                              hint="save its state_dict; prepare again and load that")  # fmt: skip
        journal = replace(self.journal, records=[])
        return replace(self, settings=settings.saved(), journal=journal, example=self.example if settings.trains else None)

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return self  # copies of a prepared module hold the same settings; convert works on copies of what it adds to


def state_of(module: object) -> State | None:
    state: State | None = getattr(module, "meta", {}).get(STATE) if isinstance(module, fx.GraphModule) else None
    return state


def required_state(prepared: object) -> State:
    """The state of what prepare_fx returned. Raises ConfigError for anything else."""
    state = state_of(prepared)
    if state is not None and getattr(prepared, MARK, None) == "prepared":
        return state
    if getattr(prepared, MARK, None) == "converted":
        raise ConfigError("this model is already converted", code="already-converted")
    if getattr(prepared, MARK, None) == "prepared" and not isinstance(prepared, fx.GraphModule):
        raise ConfigError("quantization.prepare made this module, not prepare_fx", code="not-prepared",
                          hint="qcompiler.quantization.convert(prepared) is its convert")  # fmt: skip
    raise ConfigError("convert_fx needs the module that prepare_fx returned", code="not-prepared",
                      hint="prepared = prepare_fx(model, mapping, inputs); calibrate(prepared, data); convert_fx(prepared)")  # fmt: skip


class PreparedModule(OwnGraphModule):
    """A GraphModule whose copies have the user's modules (a BatchNorm is found by its class, a frozen one stays frozen), not plain
    ones with the same tensors, and whose pickles have the graph with its notes, so that they convert. A call that torch refuses
    raises InputError with the node and the example inputs.
    """

    def __call__(self, *args: object, **kwargs: object) -> Any:
        state = state_of(self)
        if (state is not None and state.settings.trains) or call_is_plain():
            return self._call(*args, **kwargs)
        args, kwargs = widened((args, kwargs))
        with plain_call():
            return self._call(*args, **kwargs)

    def _call(self, *args: object, **kwargs: object) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            if not refuses_inputs(error):
                raise
            raise failed_call(self, error) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedModule:
        copied: PreparedModule = super().__deepcopy__(memo)  # type: ignore[assignment]
        for name in ("_modules", "_buffers"):
            vars(copied)[name].update(copy.deepcopy(vars(self)[name], memo))
        _check_inputs(copied)  # torch.fx drops hooks
        copied.register_load_state_dict_pre_hook(_fit_states)
        copied.register_load_state_dict_post_hook(_forget_weights)
        guard_loading(copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        read = (str(node.target) for node in self.graph.nodes if node.op == "get_attr")  # a lone BatchNorm's momentum among them
        held = {name: vars(self)[name] for name in (*HELD, *(name for name in read if name in vars(self)))}
        return _loaded, (held, to_data(self.graph), self.meta.get(NAMES, {}), self.meta[STATE].saved())


class PreparedList(ListItems, PreparedModule):
    """A prepared Sequential or ModuleList."""


class PreparedDict(DictItems, PreparedModule):
    """A prepared ModuleDict."""


KINDS = {None: PreparedModule, "list": PreparedList, "dict": PreparedDict}


def _loaded(held: dict[str, object], nodes: Data, names: dict[str, str], state: State) -> fx.GraphModule:
    root = nn.Module()
    vars(root).update(held)
    gm = OwnGraphModule(root, from_data(nodes))
    for name in HELD[:3]:
        vars(gm)[name].update(held[name])
    keep_names(gm, names)
    table = training_table(OPS) if state.settings.trains else OPS
    return as_prepared(gm, replace(state, settings=state.settings.with_(table=table)))


def as_prepared(gm: fx.GraphModule, state: State) -> fx.GraphModule:
    """Marks the graph module, gives it the user's attributes, and checks the inputs of every call."""
    gm.meta[STATE] = state
    attributes = {MARK: "prepared"} | {name: value for name, value in state.user_attributes.items() if not hasattr(gm, name)}
    for name, value in attributes.items():
        setattr(gm, name, value)
    kind = give_items(gm, SCOPES, gm.meta.get(NAMES))
    type(gm).__bases__ = (KINDS[kind],)  # torch.fx makes a class for each instance: this one is the graph's own
    gm.meta[KEPT] = attributes | ({PLACES: vars(gm)[PLACES]} if kind else {})
    _check_inputs(gm)
    gm.register_load_state_dict_pre_hook(_fit_states)
    gm.register_load_state_dict_post_hook(_forget_weights)
    guard_loading(gm)
    return gm if state.settings.trains else gm.eval()


def _forget_weights(gm: Any, incompatible: Any) -> None:
    """What is loaded may come from another float model, and is what that kept."""
    state: State = gm.meta[STATE]
    gm.meta[STATE] = replace(state, weights={}, before=state.before.again(gm))


def _fit_states(gm: Any, state_dict: dict[str, object], prefix: str, *args: Any) -> None:
    """States take any shape. Spare observers may be missing: they were not looked at before what was saved."""
    for path, module in gm.named_modules():
        if isinstance(module, Watch) and module.is_spare:
            for name, value in module.state_dict(prefix=f"{prefix}{path}.").items():
                state_dict.setdefault(name, value)
    for name in held_names(gm):
        given, held = state_dict.get(prefix + name), attribute(gm, name)
        if isinstance(given, torch.Tensor) and given.dtype == held.dtype and given.shape != held.shape:
            set_held(held, given)


def _check_inputs(gm: fx.GraphModule) -> None:
    inputs = [(str(n.target), value_of(n), bool(n.args)) for n in gm.graph.nodes if n.op == "placeholder"]
    state = state_of(gm)
    gm.register_forward_pre_hook(InputCheck(inputs, observes=state is None or not state.settings.trains), with_kwargs=True)


def failed_call(prepared: Any, error: Exception) -> InputError:
    """A torch error inside a prepared module, as one that names the node and what was expected."""
    lines, nodes = getattr(prepared, "_lineno_map", None) or {}, list(prepared.graph.nodes)
    first, index = int(getattr(prepared, "_prologue_start", 0)), None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "forward" and trace.tb_frame.f_locals.get("self") is prepared:
            index = lines.get(trace.tb_lineno - first)
        trace = trace.tb_next
    place = where(nodes[index]) if index is not None and index < len(nodes) else Where()
    check = next((hook for hook in prepared._forward_pre_hooks.values() if isinstance(hook, InputCheck)), None)
    expected = f"; the example inputs were {check.signature()}" if check is not None else ""
    return InputError(f"{type(error).__name__}: {first_sentence(error)}{expected}", code="input-shape", where=place,
                      hint="does the float model take this input?")  # fmt: skip


def user_attributes(model: nn.Module) -> dict[str, object]:
    """The plain attributes that the user's __init__ set: neither tensors, nor modules, nor nn.Module's own."""
    own = set(nn.Module().__dict__) | {MARK}
    return {k: v for k, v in model.__dict__.items() if k not in own and not k.startswith("_") and not callable(v)}


def _text(value: Value) -> str:
    return f"{value.dtype}{list(value.shape)}" if value.shape is not None else str(value.form or "")


class InputCheck:
    """Pre-hook: InputError with expected and actual where a call does not fit what was traced."""

    def __init__(self, inputs: list[tuple[str, Value, bool]], observes: bool = True) -> None:
        self.inputs = inputs
        self.observes = observes  # values: a model in training may be moved to a device that has none, or be given parallel tensors

    def signature(self) -> str:
        return signature((name, _text(v)) for name, v, _ in self.inputs)

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        names = [name for name, _, _ in self.inputs]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        missing = [name for name, _, optional in self.inputs if name not in given and not optional]
        unknown = [name for name in kwargs if name not in names]
        if len(args) > len(names) or missing or unknown:
            raise InputError(
                f"expected the inputs {self.signature()}, got {len(args)} positional and {sorted(kwargs) or 'no'} named", code="inputs"
            )
        if (state := state_of(module)) is not None:
            state.numbers.note(given)
        for name, value, _ in self.inputs:
            if isinstance(x := given.get(name), torch.Tensor) and self.observes:
                refuse_kind(f"input {name}", x)
            if value.shape is not None or name in given:
                self._check(name, value, x)
        forms = {name: value.form for name, value, _ in self.inputs if name in given}
        numbers = {name: form for name, form in forms.items() if form is not None and form.kind == "number"}
        return self._plain(numbers, args, kwargs) if numbers else None

    def _plain(
        self, numbers: dict[str, Form], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """The arguments with numbers of NumPy, and tensors of one element where a number was traced, as Python's."""

        def plain(name: str, x: Any) -> Any:
            return as_number(x, type(numbers[name].value)) if name in numbers else x

        named = zip((name for name, _, _ in self.inputs), args, strict=False)
        return tuple(plain(name, x) for name, x in named), {name: plain(name, x) for name, x in kwargs.items()}

    def _check(self, name: str, value: Value, x: Any) -> None:
        if value.shape is None:
            form = value.form
            form = replace(form, name="") if form is not None and form.kind == "number" else form  # a guard compares
            if form is not None and form.kind in (*CONTAINERS, "number") and (text := misfit(form, x, name)) is not None:
                raise InputError(f"input {text}", code="input-shape")
            return
        if isinstance(x, torch.Tensor) and x.is_complex() and value.dtype is not x.dtype:
            raise UnsupportedOpError(f"input {name} is complex: expected {self.signature()}", code="complex", hint="give real tensors")
        if not isinstance(x, torch.Tensor) or x.dim() != len(value.shape) or x.dtype is not value.dtype:
            text = f"input {name} does not fit: expected {self.signature()}, got {described(x)}"
            raise InputError(text, code="input-shape", hint=how_to_give(x, value.dtype))
