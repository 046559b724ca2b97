"""Random calls of single kernels in child processes: the short form of `python -m tests.fuzz_kernels`."""

from __future__ import annotations

import pytest
import torch

from qcompiler.backends.torch.site import ENGINES
from tests import fuzz_kernels
from tests.fuzz_kernels import Finding, fuzz
from tests.random_float_kernels import FloatDraw
from tests.random_kernels import FAMILIES, draw

AVAILABLE = [e for e in ENGINES if e in torch.backends.quantized.supported_engines]


def test_no_kernel_is_wrong() -> None:
    assert [str(found) for found in fuzz(100, 11, AVAILABLE)] == []


@pytest.mark.skipif("x86" not in AVAILABLE, reason="x86 packs convolutions with oneDNN")
def test_no_convolution_is_wrong_below_amx() -> None:
    assert [str(found) for found in fuzz(80, 12, ["x86"], "AVX512_CORE_VNNI", "conv")] == []


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_draw_is_the_same_each_time(family: str) -> None:
    first, second = draw(3, 5, family), draw(3, 5, family)
    assert str(first) == str(second)
    assert all(torch.equal(a, b) for a, b in zip(_codes(first), _codes(second), strict=True))


def _codes(drawn) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    if isinstance(drawn, FloatDraw):
        return [t.int_repr() if t.is_quantized else t for call in drawn.calls for t in call if t is not None]
    return [x.int_repr() for case in (drawn.case, *drawn.later) for x in fuzz_kernels.inputs(case.args)]


def test_a_crash_is_a_finding_and_the_next_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself, on an engine whose fourth call ends the process: the variable is read by the child."""
    monkeypatch.setenv("FUZZ_CRASHES_AT", "3")
    found = list(fuzz(6, 0, AVAILABLE[:1], family="copy"))
    assert [(f.number, f.problem) for f in found] == [(3, "signal 11")]
    assert isinstance(found[0], Finding) and draw(0, 3, "copy").case.op in found[0].call


def test_a_call_that_hangs_is_a_finding_and_the_next_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_HANGS_AT", "2")
    monkeypatch.setenv("FUZZ_SECONDS", "5")
    found = list(fuzz(4, 0, AVAILABLE[:1], family="copy"))
    assert [(f.number, f.problem) for f in found] == [(2, "signal 14")]
