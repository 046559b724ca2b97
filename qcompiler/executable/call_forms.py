"""Several ways to call one model, each with a graph of its own over the same weights; a call is told by its form which one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from qcompiler.errors import ConfigError, InputError
from qcompiler.executable import Executable
from qcompiler.executable.arguments import Argument, arguments_of_graph
from qcompiler.executable.form_parts import TABLES, found_in, share_modules
from qcompiler.executable.states import assignments
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.kinds import refuse_kinds
from qcompiler.ir.check_state import assigns, check_state
from qcompiler.ir.form import likeness, misfit
from qcompiler.ir.items import PLACES, Absent, DictItems, ListItems
from qcompiler.observers.watch import Watch

WEIGHTS = "weight_fake_quants"  # where a graph that is trained holds those of its weights
FORMS = "call_forms"  # what the forms are called on the module, and in its state_dict where they differ


def arguments_of(module: nn.Module) -> tuple[Argument, ...]:
    """The arguments of a graph, or of a converted module, in the order of the forward."""
    if isinstance(module, Executable):
        return module._arguments()
    assert isinstance(module, fx.GraphModule)
    return arguments_of_graph(module.graph)


def fit(arguments: Sequence[Argument], args: tuple[object, ...], kwargs: Mapping[str, object]) -> int | str:
    """How much a call is like the example of a form, if it has that form; else why it has not, in one clause."""
    names = [argument.name for argument in arguments]
    if len(args) > len(names):
        return f"{len(args)} arguments by position"
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names or name in given:
            return f"{name} is not one of its arguments" if name not in names else f"{name} is given twice"
        given[name] = value
    alike = 0
    for argument in arguments:
        if argument.name not in given and not argument.optional:
            return f"{argument.name} is missing"
        value = given.get(argument.name, argument.default)
        if (why := misfit(argument.form_for(value), value, argument.name)) is not None:
            return why
        alike += likeness(argument.form, value)
    return alike


class CallForms(nn.Module):
    """One module of several forms, in `call_forms`; the state_dict has what they share once, under the user's names."""

    __jit_unused_properties__ = ["__jit_ignored_attributes__"]

    def __init__(self, forms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.call_forms = nn.ModuleList(forms)
        self._arguments = [arguments_of(form) for form in forms]
        self.training = any(form.training for form in forms)
        self._ties, self._tied_at = ties(forms), assignments()
        self.register_load_state_dict_post_hook(_tie_again)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        share_packs(list(self.call_forms))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CallForms:
        """`.to(...)`: what the forms share stays shared."""
        super()._apply(fn, recurse)
        _tie_again(self)
        return self

    def __getattr__(self, name: str) -> Any:
        """The user's modules and tensors, as in a model of one form."""
        forms = self.__dict__.get("_modules", {}).get(FORMS)
        found = found_in(list(forms), name) if forms is not None else None
        return super().__getattr__(name) if found is None else found

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        """A tensor of the user's is assigned to the first form that has one of that name; those that share it follow."""
        forms = self.__dict__.get("_modules", {}).get(FORMS, ())
        holder = next((form for form in forms if any(name in vars(form)[table] for table in TABLES[:2])), None)
        super().__setattr__(name, value) if holder is None else setattr(holder, name, value)

    def _follow(self) -> None:
        """Ties what was assigned to the first form to the others."""
        first, self.__dict__["_tied_at"] = self.call_forms[0], assignments()
        for number, path, kind, name in self._ties:
            tied = vars(self.call_forms[number].get_submodule(path))[kind].get(name)
            if tied is not vars(first.get_submodule(path))[kind].get(name):
                _tie_again(self)
                return

    def choose(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> int:
        """The number of the form that a call has; of several, the one whose example is most like it, in sizes and numbers.

        Raises InputError that lists the forms for a call that has none.
        """
        try:
            found = [fit(arguments, args, kwargs) for arguments in self._arguments]
        except RuntimeError:  # of a tensor without sizes
            refuse_kinds((args, kwargs), "an input")
            raise
        fitting = [i for i, score in enumerate(found) if isinstance(score, int)]
        if not fitting:
            lines = [f"  {i}. {self.spelled(i)}: {why}" for i, why in enumerate(found)]
            text = f"the call has none of the {len(found)} forms that the model was prepared for:\n" + "\n".join(lines)
            raise InputError(text, code="call-form", hint="call it in one of these forms, or prepare it with this one as well")
        return max(fitting, key=lambda i: (found[i], -i))

    def spelled(self, index: int) -> str:
        """A form as messages show it: `(x: torch.float32[2, 8], mask=None)`."""
        texts = [f"{a.name}={a.form}" if a.form.kind == "value" else f"{a.name}: {a.form}" for a in self._arguments[index]]
        return f"({', '.join(texts)})"

    def forward(self, *args: Any, **kwargs: Any) -> object:
        if self.__dict__.get("_tied_at") != assignments():
            self._follow()
        index = self.choose(args, kwargs)
        try:
            return self.call_forms[index](*args, **kwargs)
        except InputError as error:
            error.add_note(f"this call was taken for form {index}, {self.spelled(index)}")
            raise

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The tensors of the first form under the user's names, and what others have of their own under `call_forms.<number>.`"""
        if args:  # the old way to call it
            old = dict(zip(("destination", "prefix", "keep_vars"), args, strict=False))
            return self.state_dict(**{"destination": destination, "prefix": prefix, "keep_vars": keep_vars, **old})
        state = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        for key in [key for key in state if key.startswith(f"{prefix}{FORMS}.")]:
            number, _, name = key.removeprefix(f"{prefix}{FORMS}.").partition(".")
            value = state.pop(key)
            first = state.get(prefix + name)
            if number == "0":
                state[prefix + name] = value
            elif first is None or not _equal(first, value):
                state[key] = value
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        used = []
        for number, form in enumerate(self.call_forms):
            for name in form.state_dict():
                own = f"{prefix}{FORMS}.{number}.{name}"
                if own not in state_dict and prefix + name in state_dict:
                    state_dict[own] = state_dict[prefix + name]
                    used.append(prefix + name)
        for key in dict.fromkeys(used):
            del state_dict[key]
        check_state(self, state_dict, prefix, assigns(local_metadata))  # of all forms, before one is changed
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        raise ConfigError("torch.jit cannot choose among the forms of a call", code="script-forms",
                          hint=f"script one of them: torch.jit.script(model.{FORMS}[0])")  # fmt: skip

    def extra_repr(self) -> str:
        return "\n".join(f"{i}: {self.spelled(i)}" for i in range(len(self._arguments)))


class _FormsOfItems(CallForms):
    """The places of its children are those of the forms."""

    def _child(self, key: str) -> Any:
        found = found_in(list(self.call_forms), vars(self)[PLACES][key])
        return Absent() if found is None else found


class FormsOfList(_FormsOfItems, ListItems):
    """Forms of a model that is a Sequential."""


class FormsOfDict(_FormsOfItems, DictItems):
    """Forms of a model that is a ModuleDict."""


def _class_for(form: nn.Module) -> type[CallForms]:
    return FormsOfList if isinstance(form, ListItems) else FormsOfDict if isinstance(form, DictItems) else CallForms


def _equal(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    return a is b or (a.dtype is b.dtype and a.shape == b.shape and a.device == b.device and torch.equal(a, b))


def ties(forms: Sequence[nn.Module]) -> list[tuple[int, str, str, str]]:
    """Of the tensors that a form has from the first one: number of the form, path of the module, its table, name."""
    first = {id(held) for _, table, name in _tables(forms[0]) if (held := table[name]) is not None}
    found = []
    for number, form in enumerate(forms[1:], 1):
        for path, table, name in _tables(form):
            kind = "_parameters" if isinstance(table[name], nn.Parameter) else "_buffers"
            found += [(number, path, kind, name)] if id(table[name]) in first else []
    return found


def _tie_again(made: CallForms, *_: object) -> None:
    first = made.call_forms[0]
    for number, path, kind, name in made._ties:
        vars(made.call_forms[number].get_submodule(path))[kind][name] = vars(first.get_submodule(path))[kind][name]
    share_packs(list(made.call_forms))


def share_packs(forms: Sequence[nn.Module]) -> None:
    """Builds converted forms anew: what equal tensors are packed into is one object."""
    converted = [form for form in forms if isinstance(form, Executable)]
    for form in converted:
        form._share(converted[0])


def share(forms: Sequence[nn.Module]) -> None:
    """Lets all forms hold one tensor where they have equal ones under one name; what observers hold stays their own."""
    first = {f"{path}.{name}".lstrip("."): table[name] for path, table, name in _tables(forms[0])}
    for form in forms[1:]:
        for path, table, name in _tables(form):
            held = first.get(f"{path}.{name}".lstrip("."))
            if held is not None and type(held) is type(table[name]) and _equal(held, table[name]):
                table[name] = held
    _share_weight_fake_quants(forms)
    for form in forms[1:]:
        share_modules(forms[0], form)
    share_packs(forms)


def _share_weight_fake_quants(forms: Sequence[nn.Module]) -> None:
    """In training a weight is rounded by one fake quantizer in all forms: it may learn its scale."""
    first: dict[str, nn.Module] = {}
    for form in forms:
        for node in form.graph.nodes if isinstance(form, fx.GraphModule) else ():
            weight = _weight_of(node)
            if weight is not None:
                owner, _, name = str(node.target).rpartition(".")
                own = form.get_submodule(str(node.target))
                module = first.setdefault(weight, own)
                form.get_submodule(owner)._modules[name] = module if type(module) is type(own) else own


def _weight_of(node: fx.Node) -> str | None:
    """The name of the weight that a node's fake quantizer rounds: its own argument, or that of the op which it is handed to."""
    if node.op not in ("call_module", "get_attr") or not str(node.target).startswith(f"{WEIGHTS}."):
        return None
    reader = node if node.op == "call_module" else next(iter(node.users), None)
    read = [n for n in reader.all_input_nodes if n.op == "get_attr" and n is not node] if reader is not None else []
    return str(read[0].target) if read else None


def _tables(module: nn.Module) -> Iterator[tuple[str, dict[str, object], str]]:
    """Path, table and name of each tensor of a module that is no observer's."""
    watched = {id(part) for watch in module.modules() if isinstance(watch, Watch) for part in watch.modules()}
    for path, part in module.named_modules():
        if id(part) not in watched:
            for table in (part._parameters, part._buffers):
                yield from ((path, table, name) for name in list(table) if table[name] is not None)


def join(forms: Sequence[nn.Module], stage: str, attributes: Mapping[str, object]) -> CallForms:
    """The module of several forms over one set of weights, with the user's attributes. `stage`: what checks.MARK says of it."""
    share(forms)
    made = _class_for(forms[0])(forms)
    if PLACES in vars(forms[0]):
        vars(made)[PLACES] = vars(forms[0])[PLACES]
    for name, value in attributes.items():
        if not hasattr(made, name):
            setattr(made, name, value)
    setattr(made, MARK, stage)
    return made


def forms_of(model: object) -> list[Any]:
    """The forms of a model, or the model alone where it has one form."""
    return list(model.call_forms) if isinstance(model, CallForms) else [model]
