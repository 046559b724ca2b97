"""Where elements stand: argmax, argmin, topk and sorts, on every instruction set and in networks of one region; rows at such places."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import InputError
from tests import native_float_oracle as reference
from tests.native_abi import Kernels, known
from tests.native_nets import Through, check_equal_bits, conv, converted, example, region_of, steps_apart
from tests.test_native_export import build
from tests.test_native_floats import Array, Memory, floats, operand, tensor

ARGMAX, ARGMIN, DESCENDING, ASCENDING = range(4)


def rows(length: int, kind: str) -> Array:
    """Six rows with ties."""
    rng = np.random.default_rng(length)
    if kind == "codes":
        return rng.integers(100, 104, (2, 3, length), dtype=np.uint8)
    x = np.rint(floats(2, 3, length, seed=length))
    x[0, 0, rng.integers(length)], x[1, 1, :: max(1, length // 3)] = np.nan, np.inf
    return np.where(x == 1, np.float32(-0.0), x).astype(np.float32)


@pytest.mark.parametrize("kind", ["codes", "floats"])
@pytest.mark.parametrize("length", [1, 2, 21, 256, 257, 1000])
def test_places_in_rows(kernels: Kernels, length: int, kind: str) -> None:
    x, work = Memory(rows(length, kind)), known(np.zeros(6 * length, np.uint64))
    wide = Memory(np.repeat(x.array[..., None], 3, -1))  # the same rows, their elements apart
    values = (x.array.astype(np.float32) - np.float32(9)) * np.float32(0.5) if kind == "codes" else x.array
    for given in (operand(x.array, 0.5, 9), operand(wide.array[..., 1], 0.5, 9)):
        for op, first in ((ARGMAX, np.argmax), (ARGMIN, np.argmin)):
            y = Memory(np.full((2, 3, 1), 9, np.float32))
            kernels("order", 3, x=given, y=tensor(y.array), op=op)
            np.testing.assert_array_equal(y.array[..., 0], first(values, -1))
            assert y.untouched()
        for op in (DESCENDING, ASCENDING):
            for count in {1, min(5, length), length}:
                y, z = Memory(np.zeros((2, 3, count), np.float32)), Memory(np.zeros((2, 3, count), np.float32))
                kernels("order", 3, x=given, y=tensor(y.array), work=work.ctypes.data, op=op)
                expected = reference.order(values, op == DESCENDING)[..., :count]
                np.testing.assert_array_equal(y.array, expected)
                kernels("elements", 2, x=given, at=operand(y.array), y=tensor(z.array))
                np.testing.assert_array_equal(z.array, np.take_along_axis(values, expected, -1))
                assert y.untouched() and z.untouched()


def test_the_reference_sorts_as_torch_does() -> None:
    x = rows(300, "floats")
    for largest in (False, True):
        made = torch.sort(torch.from_numpy(x), dim=-1, descending=largest, stable=True)
        np.testing.assert_array_equal(reference.order(x, largest), made.indices.numpy())


def test_whole_numbers_of_floats(kernels: Kernels) -> None:
    x, y = Memory(np.array([[0, 1, 2.0**24], [7, 255, 3]], np.float32)), Memory(np.zeros((2, 3), np.int64))
    kernels("int64", 2, x=operand(x.array), y=tensor(y.array))
    np.testing.assert_array_equal(y.array, x.array.astype(np.int64))
    assert y.untouched()


def segmented(m: Any, x: Tensor) -> Tensor:
    return F.interpolate(m[1](m[0](x)), scale_factor=2, mode="bilinear").argmax(1)  # type: ignore[no-any-return]


def labelled(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = m[1](m[0](x).mean((2, 3)))
    return y, y.argmax(-1, keepdim=True), torch.argmin(y)


def along_others(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m[1](m[0](x))
    return y.argmax(2), (m[0](x) * 2).argmin(3, keepdim=True)


def largest(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = m[1](m[0](x).mean((2, 3))).softmax(-1)
    values, places = y.topk(3)
    return values, places, y.topk(2, dim=1, largest=False)[1]


def with_values(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = m[1](m[0](x))
    most = y.max(1)
    return most.values, most.indices, y.flatten(1).min(dim=-1)[1]


def in_order(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = m[0](x).flatten(2)
    values, places = torch.sort(y, -1, descending=True)
    return m[1](values.unflatten(-1, (1, -1))), places, y.argsort(1)


def looked_up(m: Any, x: Tensor) -> Tensor:
    """The nearest row of a table."""
    y = m[0](x).flatten(2).transpose(1, 2)
    far = (y.pow(2).sum(-1, keepdim=True) - 2 * y @ m[1].weight.t()) + m[1].weight.pow(2).sum(-1)
    near = far.argmin(-1)
    return m[2](m[1](near)) + (near == 3).float()[..., None]  # type: ignore[no-any-return]


def as_many_as_there_are(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m[1](m[0](x)).flatten(1)
    return tuple(y.topk(min(40, y.shape[1]), 1))  # type: ignore[return-value]


def in_batches(m: Any, x: Tensor) -> Tensor:
    return m[1](m[0](x).mean((2, 3))).topk(2, dim=0, largest=False)[1]  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[..., Any], Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "segmented": (segmented, lambda: [conv(3, 8), nn.Conv2d(8, 21, 1)], (2, 3, 9, 8)),
    "labelled": (labelled, lambda: [conv(3, 8), nn.Linear(8, 10)], (3, 3, 6, 6)),
    "along others": (along_others, lambda: [conv(3, 8), nn.Conv2d(8, 5, 1)], (2, 3, 7, 9)),
    "largest": (largest, lambda: [conv(3, 8), nn.Linear(8, 10)], (3, 3, 6, 6)),
    "in batches": (in_batches, lambda: [conv(3, 8), nn.Linear(8, 10)], (3, 3, 6, 6)),
    "with values": (with_values, lambda: [conv(3, 8), nn.Conv2d(8, 5, 1)], (2, 3, 7, 9)),
    "in order": (in_order, lambda: [conv(3, 8), nn.Conv2d(8, 5, 1)], (2, 3, 5, 6)),
    "looked up": (looked_up, lambda: [conv(3, 8), nn.Embedding(16, 8), nn.Linear(8, 5)], (2, 3, 6, 6)),
    "as many as there are": (as_many_as_there_are, lambda: [conv(3, 8), nn.Conv2d(8, 5, 1)], (2, 3, 7, 9)),
}


def made(name: str) -> tuple[Any, Any, Tensor]:
    forward, layers, shape = NETS[name]
    torch.manual_seed(1)
    x = example(shape)
    return (*converted(Through(forward, *layers()), x), x)


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("name", NETS)
def test_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, graph, x = made(name)
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    shape = tuple(x.shape)
    for given in (x, x[: 1 if name != "in batches" else 2], example((shape[0], 3, shape[2] + 2, shape[3] + 1))):
        assert max(steps_apart(module, graph, given).values()) <= 1
        with torch.no_grad():
            results, expected = flat(module(given)), flat(graph(given))
        for a, b in zip(results, expected, strict=True):
            assert a.dtype is b.dtype and a.shape == b.shape and a.is_contiguous()
        check_equal_bits(module, given, results, monkeypatch)


def test_places_are_those_of_what_is_handed_out() -> None:
    module, _, x = made("labelled")
    y, most, least = module(x)
    assert torch.equal(most, y.argmax(-1, keepdim=True)) and torch.equal(least, y.argmin())
    module, _, x = made("largest")
    values, places, _ = module(x)
    assert bool((values.diff() <= 0).all()) and places.unique().numel() > 1


def test_places_that_a_size_does_not_have() -> None:
    module, _, x = made("in batches")
    with pytest.raises(InputError, match="2 places of 1 elements"):
        module(x[:1])


def test_a_table_with_fewer_rows_than_places() -> None:
    """A place beyond the table must not become a row of it: torch, which looks, takes the example; a larger size is an error."""
    layers = conv(3, 8), nn.Embedding(9, 8), nn.Linear(8, 5)
    forward = lambda m, x: m[2](m[1](m[0](x).mean((2, 3)).argmax(-1)))  # noqa: E731
    module, _ = converted(Through(forward, conv(3, 10), *layers[1:]), example((2, 3, 6, 6)))
    assert any("its table has 9 rows" in remark.text for remark in qcompiler.remarks(module))
    wide = lambda m, x: m[2](m[1](m[0](x).mean((1, 2)).argmax(-1)))  # noqa: E731
    module, _ = converted(Through(wide, *layers), example((2, 3, 6, 6)))
    region_of(module)
    with pytest.raises(InputError, match="a place among 10 elements may lie outside of a table of 9 rows"):
        module(example((2, 3, 6, 12)))


def test_the_program_hands_out_whole_numbers(tmp_path: Path) -> None:
    module, _, x = made("labelled")
    folder = qcompiler.export_c(module, tmp_path / "c", name="labels")
    program = build(folder, "labels")
    (folder / "x").write_bytes(x.numpy().tobytes())
    subprocess.run([program, folder / "labels.weights", folder / "x", "1", "0", folder / "y"], check=True, capture_output=True)
    y, most, least = module(x)
    expected = y.numpy().tobytes() + most.numpy().tobytes() + least.numpy().tobytes()
    assert (folder / "y").read_bytes() == expected
    assert "result 1: [1], whole numbers: an array of int64_t" in (folder / "labels.h").read_text()


def test_the_operator_gives_whole_numbers() -> None:
    module, _, x = made("largest")
    exported = torch.export.export(module, (x,))
    for one, other in zip(exported.module()(x), module(x), strict=True):
        assert torch.equal(one, other) and one.dtype is other.dtype


def test_rows_that_a_table_does_not_have_are_an_error() -> None:
    """Positions that the size gives, beyond the table: the float model refuses them."""
    forward = lambda m, x: m[2](m[0](x) + m[1](torch.arange(x.shape[1])[None]))  # noqa: E731
    module, _ = converted(Through(forward, nn.Linear(8, 8), nn.Embedding(6, 8), nn.Linear(8, 4)), example((2, 5, 8)))
    region_of(module)
    assert module(example((2, 6, 8))).shape == (2, 6, 4)
    with pytest.raises(InputError, match="rows 0 to 6 of a table of 6 rows"):
        module(example((2, 7, 8)))


WHOLE: dict[str, Callable[[Tensor], Any]] = {
    "sort": lambda n: tuple(n.sort(descending=True)),
    "topk": lambda n: tuple(n.topk(2)),
    "max": lambda n: tuple(n.max(0)),
    "argsort": lambda n: (n.argsort(), n[n.argsort()]),
    "turned": lambda n: (n.sort()[0].flip(0), n.sort()[1]),
}


@pytest.mark.parametrize("case", WHOLE)
def test_whole_numbers_in_order_are_whole_numbers(case: str) -> None:
    """Of sizes alone, such as lengths that a packed sequence is ordered by: they came out as floats."""
    forward = lambda m, x: (m[1](m[0](x)), *WHOLE[case](torch.arange(x.size(1)) % 3))  # noqa: E731
    module, _ = converted(Through(forward, nn.Linear(8, 8), nn.Linear(8, 4)), x := example((2, 5, 8)))
    for given in (x, example((2, 7, 8))):
        for found, expected in zip(module(given)[1:], forward([nn.Identity()] * 2, given)[1:], strict=True):
            assert found.dtype is torch.int64 and torch.equal(found, expected)
