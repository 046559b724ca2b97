"""save: a compiled module to a file."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qcompiler.ambient import caller_level
from qcompiler.artifact.container import chunks
from qcompiler.artifact.foreign import check_name
from qcompiler.artifact.layout import HEADER, OTHER_BACKEND, SEVERAL_FORMS
from qcompiler.errors import ConfigError, QCompilerError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms, forms_of
from qcompiler.files.atomic import atomic_write
from qcompiler.files.dtypes import is_plain
from qcompiler.files.values import to_json
from qcompiler.inputs.checks import MARK
from qcompiler.ir.items import PLACES


class MissingModulesWarning(UserWarning):
    """A saved module calls float submodules or functions that the file cannot hold."""


def save(module: Executable | CallForms, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """`write`, for callers of this room."""
    return write(module, path)


def write(module: Executable | CallForms, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Writes the module to one file, atomically; the names that `load` will need, of which a warning tells."""
    check_converted(module)
    check_name(path)
    needed = tuple(dict.fromkeys(name for form in forms_of(module) for name in form._payload().needs))
    if needed:
        names = ", ".join(needed)
        text = f"{path}: the file cannot hold float submodules and functions of your own: {names}; load it with modules={{name: module}}"
        sources = {name: source for form in forms_of(module) for name, source in form._payload().sources.items()}
        text += "".join(f"\n{name} is a statement of your model, as this function:\n{source}" for name, source in sources.items())
        warnings.warn(text, MissingModulesWarning, stacklevel=caller_level())
    atomic_write(Path(path), _chunks(module))
    return needed


def check_converted(module: object) -> None:
    """Raises ConfigError for anything but a converted module."""
    if not all(isinstance(form, Executable) for form in forms_of(module)):
        eager = getattr(module, MARK, None) == "converted"
        hint = "keep an eager model by its state_dict, torch.save or TorchScript" if eager else "convert_fx first"
        raise ConfigError(f"save takes a converted module of convert_fx, not {type(module).__qualname__}", code="save", hint=hint)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The state_dict's tensors, sorted by name. Raises ConfigError for what a file cannot hold."""
    state = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    for name, tensor in state.items():
        if not is_plain(tensor.dtype) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise ConfigError(f"{name!r} is not a plain tensor on the CPU; a file cannot hold it", code="save")
    return dict(sorted(state.items()))


def _chunks(module: Executable | CallForms) -> Iterator[bytes | memoryview]:
    """The file in order. A tensor's bytes follow the machine, so only little-endian ones write."""
    if sys.byteorder != "little":
        raise ConfigError("saved files are little endian; this machine is not", code="save")
    return chunks(_program(forms_of(module)), tensors_of(module))


def _program(forms: Sequence[Executable]) -> dict[str, object]:
    """The program as data: what the compiler itself writes, and beside it what the back end writes."""
    first, *others = forms
    payload = first._payload().data
    if reserved := HEADER & payload.keys():
        raise ConfigError(
            f"the back end {first._backend} writes {', '.join(sorted(reserved))}, which is the compiler's own", code="backend"
        )
    features = [SEVERAL_FORMS] * bool(others) + [OTHER_BACKEND] * (first._backend != "torch")
    data = {"attributes": _attributes(first), "backend": first._backend, "features": features, "writer": "qcompiler", **payload}
    if others:
        data["forms"] = [{"attributes": _attributes(form), **_differences(form._payload().data, payload)} for form in others]
    return data


def _differences(payload: Mapping[str, object], first: Mapping[str, object]) -> dict[str, object]:
    """What a further form writes that is not as in the first."""
    return {key: value for key, value in payload.items() if key not in first or first[key] != value}


def _attributes(module: Executable) -> dict[str, object]:
    """The user's attributes that are plain data, as JSON."""
    found = {}
    for name in sorted(set(module.__dict__) - {PLACES, *module._own_attributes()}):  # places follow from the note of all containers
        with contextlib.suppress(QCompilerError):
            found[name] = to_json(module.__dict__[name])
    return found
