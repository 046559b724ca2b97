"""Inputs of the wrong kind, dtype or size, at every call that takes some: one error of ours that says what to give instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import qcompiler
from qcompiler import quantization as Q
from qcompiler.backends.torch.program.program import Program
from qcompiler.debug import bisect, compare
from qcompiler.errors import QCompilerError
from qcompiler.inputs.input_text import first_sentence, refuses_inputs
from tests.flow import randn

GOOD = randn(2, 3, 8, 8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()


@functools.cache
def small() -> nn.Module:
    return qcompiler.quantize(net(), [GOOD], progress=False)


def loaded(folder: Path) -> nn.Module:
    qcompiler.save(small(), folder / "net.qc")
    return qcompiler.load(folder / "net.qc")


@functools.cache
def prepared() -> nn.Module:
    return qcompiler.prepare_fx(net(), None, (GOOD,))


@functools.cache
def by_hand() -> nn.Module:
    model = Q.QuantWrapper(net())
    model.qconfig = Q.get_default_qconfig("x86")
    return Q.prepare(model)


CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "quantize": lambda x, _: qcompiler.quantize(net(), [x], progress=False),
    "prepare_fx": lambda x, _: qcompiler.prepare_fx(net(), None, (x,)),
    "calibrate": lambda x, _: qcompiler.calibrate(prepared(), [x]),
    "prepared": lambda x, _: prepared()(x),
    "converted": lambda x, _: small()(x),
    "loaded": lambda x, folder: loaded(folder)(x),
    "compare": lambda x, _: compare(net(), small(), [x]),
    "bisect": lambda x, _: bisect(net(), [x]),
    "eager calibrate": lambda x, _: qcompiler.calibrate(by_hand(), [x]),
    "eager prepared": lambda x, _: by_hand()(x),
}
WRONG: dict[str, tuple[Any, str]] = {
    "array": (GOOD.numpy(), "torch.from_numpy(array)"),
    "array of doubles": (GOOD.numpy().astype(np.float64), "torch.from_numpy(array).float()"),
    "doubles": (GOOD.double(), "x.float()"),
    "halves": (GOOD.half(), "x.float()"),
    "integers": (GOOD.long(), "x.float()"),
    "image": (Image.new("RGB", (8, 8)), "to_tensor"),
    "channels": (GOOD[:, :2], ""),
    "rank": (GOOD[0, 0], ""),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_input(call: str, kind: str, tmp_path: Path) -> None:
    value, hint = WRONG[kind]
    with pytest.raises(QCompilerError) as caught:
        CALLS[call](value, tmp_path)
    text = str(caught.value)
    assert hint in str(caught.value.hint) and len(text.splitlines()) <= 3
    for alien in ("oneDNN", "ONEDNN", "primitive", "expected one of", "dispatch"):
        assert alien not in text
    if kind == "channels" and call in ("converted", "loaded"):
        assert "torch.float32[2, 2, 8, 8]" in text and "torch.float32[2, 3, 8, 8]" in text  # given, and what it was made with


class Mine(ValueError):
    pass


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError("size mismatch"), True), (NotImplementedError("no"), True), (torch.linalg.LinAlgError("singular"), True),
    (Mine("only squares"), False), (KeyError("x"), False), (torch.OutOfMemoryError("CUDA out of memory"), False),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), False),
], ids=repr)  # fmt: skip
def test_which_errors_are_about_inputs(error: Exception, said: bool) -> None:
    """The others reach the user as they were raised, who may wait for them by their class."""
    assert refuses_inputs(error) is said


def test_labels_of_a_loader_may_be_arrays() -> None:
    """They are no arguments of forward."""

    def collate(items: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, Any]:
        return torch.stack([x for x, _ in items]), np.array([y for _, y in items])

    loader: Any = torch.utils.data.DataLoader([(x, 1) for x in GOOD], batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    assert qcompiler.calibrate(qcompiler.prepare_fx(net(), None, (GOOD,)), loader) == 1


def test_an_array_instead_of_batches() -> None:
    with pytest.raises(QCompilerError, match="calibration data: a NumPy array of float32") as caught:
        qcompiler.quantize(net(), GOOD.numpy(), progress=False)
    assert "torch.from_numpy" in str(caught.value.hint)


@pytest.mark.parametrize("call", ["eager calibrate", "eager prepared"])
def test_the_place_in_a_hand_prepared_model(call: str, tmp_path: Path) -> None:
    with pytest.raises(QCompilerError, match="to have 3 channels") as caught:
        CALLS[call](GOOD[:, :2], tmp_path)
    assert caught.value.where.module_path == "module.0"


def test_what_a_file_of_before_does_not_know_is_left_out() -> None:
    program = small().program  # type: ignore[union-attr]
    data = program.to_data()
    assert Program.from_data(data) == program and program.inputs[0].shape == (2, 3, 8, 8)
    del data["inputs"][0]["shape"]
    old = Program.from_data(data)
    assert old.inputs[0].shape is None and str(old.inputs[0]) == "torch.float32[?, ?, ?, ?]"
    for bad in ([1, 2], ["a"] * 4, 3):
        data["inputs"][0]["shape"] = bad
        with pytest.raises(QCompilerError, match="not a program"):
            Program.from_data(data)


def test_an_input_of_another_size_that_fits_is_no_error() -> None:
    assert small()(randn(5, 3, 9, 12)).shape == (5, 4, 7, 10)


def test_a_message_of_the_allocator_begins_with_what_happened() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    assert first_sentence(caught.value).startswith("can't allocate memory: you tried to allocate 400000000000000 bytes")
