"""A setting that a call leaves out is the one of the op's row: no C form has defaults of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from qcompiler.backends.native.emit.source import source_of
from qcompiler.backends.native.region import NativeRegion, planned
from qcompiler.backends.native.steps import Region, RegionError
from qcompiler.ops.signature import NO_DEFAULT, parse_signature
from qcompiler.ops.table import OPS
from tests.test_native_unlike_codes import ROWS, Call

FLOAT: Any = ("float",)  # how each activation comes
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def defaults_of(name: str) -> dict[str, Any]:
    """The settings of a row that a call may leave out, tensors apart."""
    row = OPS.rows[name]
    tensors = {param.name for param in row.params}
    entries = [(canonical, default) for _, _, canonical, default in parse_signature(row.signature)]
    return {key: default for key, default in entries if default is not NO_DEFAULT and key not in tensors}


def code_of(name: str, kinds: Any, settings: dict[str, Any]) -> object:
    """All that is made of the example of a row with these settings instead of its own; None where that has no C form."""
    call = Call(OPS.rows[name], kinds)
    step = call.steps.pop()
    inputs = tuple((key, tuple(x.shape)) for key, x in call.inputs.items())
    region = Region(inputs, (*call.steps, replace(step, kwargs=settings)), ("y",))
    try:
        made = source_of(planned(region, call.tensors, call.qparams))
    except (RegionError, KeyError):  # no C form for these operands, or a setting is missing that has no default
        return None
    constants = made.constants
    blocks = [(at, raw.tobytes()) for at, raw in constants.blocks]
    return COMMENT.sub("", made.text), blocks, repr((constants.integers, constants.reals, constants.doubles))


@pytest.mark.parametrize("kinds", [("codes",), ("float",)], ids="-".join)
def test_the_defaults_of_the_c_forms_are_those_of_the_rows(kinds: Any) -> None:
    """Left out or written down, a default makes the same code and constants."""
    compared, other = 0, []
    for name in ROWS:
        call = Call(OPS.rows[name], kinds)
        for key, default in defaults_of(name).items():
            rest = {k: v for k, v in call.steps[-1].kwargs.items() if k != key}
            without, with_default = code_of(name, kinds, rest), code_of(name, kinds, {**rest, key: default})
            if without is None or with_default is None:
                continue
            compared += 1
            if without != with_default:
                other.append((name, key, default))
    assert not other and compared > 80, (compared, other)


def test_an_rms_norm_of_small_values() -> None:
    """torch's eps is 1.2e-7 where none is given: 1e-5 would halve rows of this size."""
    call = Call(OPS.rows["rms_norm"], FLOAT)
    step = replace(call.steps.pop(), kwargs={"normalized_shape": (8,)})
    x = call.inputs["x0"] * 1e-3
    (found,) = NativeRegion(Region((("x0", tuple(x.shape)),), (step,), ("y",)), call.tensors, ())(x)
    weight = call.tensors[0]
    assert torch.allclose(found, torch.rms_norm(x, (8,), weight), rtol=1e-5)
    assert not torch.allclose(found, torch.rms_norm(x, (8,), weight, 1e-5), rtol=0.1)
