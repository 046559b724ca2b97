"""Types for TorchScript: how it spells an argument, and what it must be told of values that may be None."""

from __future__ import annotations

import typing
from types import NoneType, UnionType

import torch

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.expressions import Expressions
from qcompiler.backends.torch.program.script_floats import sizes_kept, with_floats
from qcompiler.backends.torch.program.statements import Call, Input
from qcompiler.backends.torch.program.surroundings import refusal
from qcompiler.errors import ConfigError
from qcompiler.ir.form import Form
from qcompiler.ir.nested import Ref, walk
from qcompiler.ops.records import Maker, with_types

GUARDS = {bool: "guard_bool", int: "guard_int", float: "guard_float", str: "guard_str"}
KEYS = {str: "str", int: "int"}


class ScriptTypes:
    """What the TorchScript spelling of one program says of types. Raises ConfigError for arguments and results it has no type for."""

    def __init__(self, emitter: Expressions) -> None:
        self.emitter = emitter
        self.forms = {i.name: form for i in emitter.program.inputs if (form := i.form) is not None}  # of the values known so far

    # ---- arguments

    def argument(self, i: Input) -> str:
        """The argument with its type and default."""
        kind = self.kind(i.form, i.name) if i.form is not None else self.default_kind(i)
        if i.optional and i.default is None and not kind.startswith(f"{self.named('Optional')}["):
            kind = f"{self.named('Optional')}[{kind}]"
        return f"{i.name}: {kind}" + (f" = {self.emitter.text(i.default)}" if i.optional else "")

    def default_kind(self, i: Input) -> str:
        """The type of an argument of which its default alone is known."""
        plain = type(i.default) if i.optional else None
        return {bool: "bool", int: "int", float: "float", str: "str"}.get(plain, self.tensor) if plain is not None else self.tensor

    @property
    def tensor(self) -> str:
        return f"{self.emitter.root('torch')}.Tensor"

    def named(self, kind: str) -> str:
        return self.emitter.named(kind, kind)

    def kind(self, form: Form, path: str) -> str:
        """The type of an argument or of a part of one."""
        if form.kind == "tensor":
            return self.tensor
        if form.kind == "number":
            return type(form.value).__name__
        if form.kind == "value":
            return f"{self.named('Optional')}[{self.tensor}]" if form.value is None else type(form.value).__name__
        if form.kind in ("tuple", "named"):
            parts = [self.kind(part, path + step) for part, step in zip(form.parts, form.steps(), strict=True)]
            return f"{self.named('tuple')}[{', '.join(parts) or '()'}]"
        if form.kind == "list":
            return f"{self.named('list')}[{self.common(form, path)}]"
        if form.kind == "dict":
            key = next((text for kind, text in KEYS.items() if all(type(k) is kind for k in form.keys)), None)
            if key is not None:
                return f"{self.named('dict')}[{key}, {self.common(form, path)}]"
        raise unscriptable_argument(path, f"is {form}", "give its tensors as arguments of their own, or in a tuple")

    def common(self, form: Form, path: str) -> str:
        """The one type that all items of a list or dict have."""
        kinds = list(dict.fromkeys(self.kind(part, path + step) for part, step in zip(form.parts, form.steps(), strict=True)))
        optional = f"{self.named('Optional')}[{self.tensor}]"
        if set(kinds) <= {self.tensor, optional}:
            return optional if optional in kinds else self.tensor
        if len(kinds) > 1:
            what = "list" if form.kind == "list" else "dict"
            raise unscriptable_argument(path, f"is a {what} of unlike items, {form}", "give a tuple, or one argument each")
        return kinds[0]

    # ---- statements

    def given(self) -> list[str]:
        """An optional argument that the model was traced with is one; one that was None still is. Then what the call must stand in."""
        read = self.emitter.read()
        optional = [i for i in self.emitter.program.inputs if i.optional and i.default is None and i.name in read]
        known = [f"assert {i.name} is not None" for i in optional
                 if i.dtype or (i.form is not None and (i.form.kind != "value" or i.form.value is not None))]  # fmt: skip
        return known + refusal(self.emitter.program, self.emitter.root)

    def statement(self, call: Call) -> list[str]:
        if call.op.startswith("guard."):
            return self.guard(call)
        if call.op.startswith(registry.RECORD):
            return self.record(call)
        *before, call = sizes_kept(with_floats(call), self.emitter.free)
        part = self.part(call)
        if part is None or call.out is None:
            return [line for one in (*before, call) for line in self.emitter.statement(one)]
        self.forms[call.out] = part
        if part.kind == "tensor" and self.is_optional(call):
            value = self.emitter.expression(call)
            return [f"{call.out} = {self.emitter.root('torch')}.jit._unwrap_optional({value})"]
        return self.emitter.statement(call)

    def part(self, call: Call) -> Form | None:
        """What stands in an argument's container where it is known, of a call that reads an item."""
        owner = self.forms.get(call.args[0].name) if call.args and isinstance(call.args[0], Ref) else None
        if owner is None or call.op != "operator.getitem" or type(call.args[1]) not in (int, str):
            return None
        if owner.kind == "dict":
            return dict(zip(owner.keys, owner.parts, strict=True)).get(call.args[1])
        return owner.parts[call.args[1]] if call.args[1] in range(len(owner.parts)) else None

    def is_optional(self, call: Call) -> bool:
        """Whether an item that is a tensor comes from a list or dict that holds None as well."""
        owner = self.forms[call.args[0].name]
        return owner.kind in ("list", "dict") and any(part.kind == "value" for part in owner.parts)

    def guard(self, call: Call) -> list[str]:
        """A check as TorchScript can make it. Types it checks by itself."""
        value, expected, message = call.args
        name = call.op.removeprefix("guard.")
        if name == "guard":
            if expected is None:
                return [f"assert {self.emitter.text(value)} is None, {self.emitter.text(message + ': expected None')}"]
            name = GUARDS.get(type(expected), "")
        form = self.forms.get(value.name) if isinstance(value, Ref) else None
        text = self.emitter.text(value)
        if name == "guard_length":
            if form is not None and form.kind != "list":
                return []  # the length of a tuple is part of its type
            name, text = "guard_int", f"len({text})"
        elif name == "guard_keys":
            said = self.emitter.text(f"{message}: expected the keys {expected}, in this order")
            test = f"list({text}.keys()) == {self.emitter.text(expected)}" if expected else f"len({text}) == 0"
            return [f"assert {test}, {said}"]
        elif name in ("guard_tree", "guard_member", ""):
            return []
        callee = self.emitter.callee(f"guard.{name}")
        return [f"{callee}({text}, {self.emitter.text(expected)}, {self.emitter.text(message)})"]

    def record(self, call: Call) -> list[str]:
        """A named tuple; TorchScript has no word for objects of other classes."""
        kind, _, values = call.args[:3]
        name = call.op.removeprefix(registry.RECORD)
        if kind != "named":
            raise unscriptable_result(f"of the class {name}", "script a module around it that returns a tuple, or use torch.jit.trace")
        callee = self.emitter.named(f"class {call.op}", name.rpartition(".")[2])  # the class itself, beside what makes it in Python
        self.emitter.kernels[callee] = call.op
        made = f"{callee}({', '.join(map(self.emitter.text, values))})"
        return [f"{call.out} = {made}" if call.out else made]


def unscriptable_argument(path: str, what: str, hint: str) -> ConfigError:
    return ConfigError(f"torch.jit.script has no type for the argument {path}, which {what}", code="script-argument", hint=hint)


def unscriptable_result(what: str, hint: str = "return a tuple or a named tuple") -> ConfigError:
    return ConfigError(f"torch.jit.script has no type for a result {what}", code="script-result", hint=hint)


def check_result(output: object) -> None:
    """Raises ConfigError for a result that is a list or dict of unlike items, as far as the program shows it."""
    if isinstance(output, (list, dict)):
        items = list(output.values()) if isinstance(output, dict) else output
        what = "dict" if isinstance(output, dict) else "list"
        if len({_shape(item) for item in items}) > 1:
            raise unscriptable_result(f"that is a {what} of unlike items")
        if isinstance(output, dict) and not any(all(type(key) is kind for key in output) for kind in (*KEYS, float)):
            raise unscriptable_result("that is a dict whose keys are not all text or all numbers of one type")
    if isinstance(output, slice):
        raise unscriptable_result("that is a slice")
    for item in output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ():
        check_result(item)


def named_class(maker: Maker, names: tuple[str, ...], values: tuple[object, ...]) -> object:
    """The class of a named tuple as TorchScript reads it. Raises ConfigError for a field that it declares as something else, or as Any."""
    known = maker.named(names, values)
    try:
        made = with_types(known)
        hints = typing.get_type_hints(made)
    except Exception as error:  # of any kind: a name that stands elsewhere, which torch.jit does not find either
        raise unscriptable_result(f"of the class {known.__name__}, whose types cannot be read: {type(error).__name__}: {error}") from error
    for name, value in zip(names, values, strict=True):
        if not _declares(declared := hints.get(name, torch.Tensor), value):
            said = str(declared) if typing.get_origin(declared) is not None else getattr(declared, "__name__", str(declared))
            text = f"of the class {known.__name__}, which declares {name} as {said.replace('typing.', '')} and gets another"
            raise unscriptable_result(text)
    return made


def _declares(declared: object, value: object) -> bool:
    """Whether the type that a class declares may be that of the value, as far as the program shows it."""
    origin, inner = typing.get_origin(declared), typing.get_args(declared)
    if declared is typing.Any:
        return False
    if origin in (typing.Union, UnionType):
        return any(_declares(kind, value) for kind in inner)
    if isinstance(value, Ref):
        return True
    if not isinstance(value, (list, tuple, dict)):
        return type(value) is declared or not isinstance(value, (NoneType, bool, int, float, str))
    if origin is not type(value):
        return False
    if isinstance(value, dict):
        return all(type(key) is inner[0] and _declares(inner[1], item) for key, item in value.items())
    if isinstance(value, list):
        return all(_declares(inner[0], item) for item in value)
    return len(inner) == len(value) and all(map(_declares, inner, value))


def _shape(value: object) -> str:
    """What tells unlike items apart before types are known."""
    references = any(isinstance(v, Ref) for v in walk(value))
    return type(value).__name__ if isinstance(value, (list, tuple, dict)) else "value" if references else type(value).__name__
