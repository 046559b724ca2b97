"""A file of several call forms: which tensors each form has, and the module of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from qcompiler.errors import ConfigError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import FORMS, CallForms, join


def tensors_of_form(number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one form: those of the first form, and in their place its own."""
    own = f"{FORMS}.{number}."
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{FORMS}.")}
    return found | {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}


def joined(forms: Sequence[Executable], attributes: Mapping[str, object], modules: Mapping[str, object]) -> CallForms:
    """The module of all forms. Raises ConfigError for an entry of `modules=` that none takes."""
    payloads = [form._payload() for form in forms]
    known = {name for payload in payloads for name in payload.needs + payload.takes}
    if unknown := [name for name in modules if name not in known]:
        raise ConfigError(f"the saved module has no submodule or function {', '.join(unknown):.2000}", code="load-modules")
    return join(forms, "converted", {name: value for name, value in attributes.items() if not name.startswith("_")})
