"""A file of several call forms: which tensors and modules each form has, and the module of them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qcompiler.backends.torch.program.call_forms import FORMS, CallForms, join
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.program import Program
from qcompiler.errors import ConfigError


def tensors_of_form(program: Program, number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one form under the names that its program has for them: its own, else those of the first form."""
    own, leaves = f"{FORMS}.{number}.", tuple(f"{leaf}." for leaf in program.leaves)
    plain = {name.removeprefix(own): name for name in tensors if name.startswith(own)}
    wanted = {*program.constants, program.scales_name, program.zero_points_name}
    names = [name for name in tensors if not name.startswith(f"{FORMS}.")]
    found = {name: tensors[name] for name in names if name in wanted or (leaves and name.startswith(leaves))}
    return found | {name: tensors[full] for name, full in plain.items()}


def modules_of_form(program: Program, modules: Mapping[str, Any]) -> dict[str, Any]:
    """What of `modules=` one form calls."""
    needed = program.leaves + program.externals + program.records
    return {name: modules[name] for name in needed if name in modules}


def joined(path: str, forms: list[CompiledModule], attributes: Mapping[str, Any], modules: Mapping[str, Any]) -> CallForms:
    """The module of all forms. Raises ConfigError for an entry of `modules=` that none calls."""
    known = {name for form in forms for name in form.program.leaves + form.program.externals + form.program.records}
    if unknown := [name for name in modules if name not in known]:
        raise ConfigError(f"{path}: the saved module has no submodule or function {', '.join(unknown):.2000}", code="load-modules")
    return join(forms, "converted", {name: value for name, value in attributes.items() if not name.startswith("_")})
