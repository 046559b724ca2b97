"""Rows are checked when they are registered: each planted mistake is refused with what is wrong; the built-in rows pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import ConfigError
from qcompiler.ir.types import QParams
from qcompiler.ops.check_row import check_row, try_row
from qcompiler.ops.example import Example
from qcompiler.ops.example_call import call_text, canonical_call
from qcompiler.ops.spec import Family, ModuleForm, Op, Output, Param, Role, Spelling
from qcompiler.ops.table import OPS, Table
from qcompiler.qat.ops import training_table

ROWS = list(training_table(OPS).rows.values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_built_in_row_is_complete_and_does_what_it_says(row: Op) -> None:
    assert row.family is not Family.OTHER and row.example is not None
    check_row(row)
    try_row(row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.draws({})], ids=lambda row: row.name)
def test_an_op_that_draws_says_so_in_training(row: Op) -> None:
    assert row.example is not None
    try_row(replace(row, example=replace(row.example, attributes={**row.example.attributes, "training": True}), output=Output.OWN))


def test_rows_of_one_family_and_dimension() -> None:
    """What was read from names before stands in the rows."""
    for row in ROWS:
        named = row.settled.name[-2:] in ("1d", "2d", "3d") or row.name == "conv2d_add"
        assert (row.dims is not None) == named, row.name


def plain(x: Tensor, k: int = 2) -> Tensor:
    return x * k


def bounded(x: Tensor, other: Tensor, *, bounds: Any = None) -> Tensor:
    return x - other if bounds is None else (x - other).clamp(*bounds)


def standardized(x: Tensor, weight: Tensor, bias: Tensor | None = None, **settings: Any) -> Tensor:
    return F.conv2d(x, weight / weight.std(), bias, **settings)


PLAIN = Op(name="plain", fn=plain, signature="x k=2", params=(Param("x"),), output=Output.OWN, example=Example())
PAIR = Op(name="pair", fn=bounded, signature="x other", params=(Param("x"), Param("other")), output=Output.OWN,
          takes_bounds=True, example=Example(((2, 3), (2, 3))))  # fmt: skip
SIGNED = QParams(2 / 256, 128, 0, 255, torch.uint8)
BREACHES: dict[str, tuple[Op, str]] = {
    "params and signature": (replace(PLAIN, params=(Param("y"),)), "its signature begins with \\['x'\\], its params are \\['y'\\]"),
    "params in another order": (replace(PAIR, params=PAIR.params[::-1]), "its signature begins with"),
    "an argument twice": (replace(PLAIN, signature="x k=2 k=3"), "names an argument twice"),
    "no such argument": (replace(PLAIN, signature="x k=2 depth=1"), "its function takes no 'depth'"),
    "another default": (replace(PLAIN, signature="x k=3"), "'k' is 3 where it is left out, in the function 2"),
    "bounds": (replace(PLAIN, takes_bounds=True), "its function has no argument of that name"),
    "a spelling": (replace(PLAIN, spellings=(Spelling("plain", "input:x factor"),)), ".plain\\(\\) gives \\['factor'\\]"),
    "an implied attribute": (replace(PLAIN, spellings=(Spelling("plain", "input:x", {"n": 1}),)), "gives \\['n'\\]"),
    "a module's tensor": (replace(PLAIN, modules=(ModuleForm(nn.PReLU, {"slope": "weight"}),)), "as PReLU gives \\['slope'\\]"),
    "a module's live": (replace(PLAIN, modules=(ModuleForm(nn.Dropout, live={"training": "training"}),)), "gives \\['training'\\]"),
    "fixed without qparams": (replace(PLAIN, output=Output.FIXED), "a fixed result has `fixed` qparams"),
    "qparams without fixed": (replace(PLAIN, fixed=SIGNED), "a fixed result has `fixed` qparams"),
    "same as what": (replace(PLAIN, output=Output.SAME, params=(Param("x", Role.BIAS),)), "needs an activation as its first"),
    "a join of one": (replace(PLAIN, output=Output.JOIN), "a join takes a list of activations"),
    "a clamp of its own": (replace(PLAIN, clamp=lambda attributes: (0.0, None)), "are said of results on their input's scale"),
    "an average of its own": (replace(PLAIN, averages=lambda attributes: True), "are said of results on their input's scale"),
    "single values of two": (replace(PAIR, takes_bounds=False, elementwise=True), "takes one activation"),
    "bounds on a copy": (replace(PAIR, output=Output.SAME), "has a result of its own"),
    "the axis of no weight": (replace(PLAIN, weight_axis=1), "said of ops with a weight"),
    "a weight without products": (replace(PAIR, params=(Param("x"), Param("other", Role.WEIGHT))), "how many multiply-accumulates"),
    "a bias commutes": (replace(PAIR, params=(Param("x"), Param("other", Role.BIAS)), commutes=lambda kwargs: True), "are activations"),
    "four dimensions": (replace(PLAIN, dims=4), "dims is 1, 2 or 3"),
    "an example of another op": (replace(PLAIN, example=Example(attributes={"kernel_size": 3})), "its example gives \\['kernel_size'\\]"),
    "a parameter that is none": (replace(PLAIN, example=Example(tensors={"k": (3,)})), "its example gives \\['k'\\]"),
    "half an example": (replace(PAIR, example=Example(((2, 3),))), "its example leaves out \\['other'\\]"),
    "an example of other rank": (replace(PLAIN, dims=1, example=Example()), "no input of 1 spatial dimensions"),
    # what shows when the example runs
    "it fails": (replace(PAIR, example=Example(((2, 3), (4, 5)))), "its example fails: RuntimeError"),
    "integers": (replace(PLAIN, fn=lambda x: x.long(), signature="x"), "its result is no float tensor"),
    "infinite": (replace(PLAIN, fn=lambda x: x / 0, signature="x"), "not finite"),
    "it draws": (replace(PLAIN, fn=lambda x: x + torch.rand(1), signature="x"), "draws random numbers"),
    "it draws nothing": (replace(PLAIN, draws=lambda attributes: True), "and draws none"),
    "it leaves the range": (replace(PLAIN, output=Output.FIXED, fixed=SIGNED), "leaves the fixed range -1 to 1"),
    "it makes values": (replace(PLAIN, output=Output.SAME), "has values that its input has not"),
    "it averages": (replace(PLAIN, fn=lambda x: x.mean(1), signature="x", output=Output.SAME), "has values that its input has not"),
    "it is no average": (replace(PLAIN, output=Output.SAME, averages=lambda attributes: True), "has values that its input has not"),
    "neighbours": (replace(PLAIN, fn=lambda x: x.cumsum(0), signature="x", elementwise=True), "no function of single values"),
    "another shape": (replace(PLAIN, fn=lambda x: x.flatten(), signature="x", elementwise=True), "no function of single values"),
    "it does not commute": (replace(PAIR, commutes=lambda attributes: True), "its operands do not commute"),
    "a convolution of a normalized weight": (
        replace(OPS.rows["conv2d"], name="standardized", spellings=(), modules=(), takes_bounds=False, fn=standardized),
        "is convolution, and its result is not linear in weight and bias",
    ),
    "bounds do nothing": (replace(PAIR, fn=lambda x, other, *, bounds=None: x - other), "not the clamp of what it is"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_a_row_that_contradicts_itself_is_refused(name: str) -> None:
    row, text = BREACHES[name]
    table = Table()
    with pytest.raises(ConfigError, match=text) as caught:
        table.add(row)
    assert caught.value.code == "bad-row" and f"{row.name!r}" in str(caught.value) and not table.rows


@pytest.mark.parametrize("row", [PLAIN, PAIR, replace(PLAIN, example=None)], ids=["plain", "pair", "without an example"])
def test_a_right_row_is_taken(row: Op) -> None:
    table = Table()
    table.add(row)
    assert table.rows == {row.name: row}
    assert table.copy().rows == table.rows


def test_trying_a_row_draws_nothing_from_the_stream_of_the_process() -> None:
    before = torch.random.get_rng_state()
    Table().add(PLAIN)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_example_of_a_row_is_the_same_whatever_others_draw() -> None:
    row = OPS.rows["conv2d"]
    assert row.example is not None
    first, _ = canonical_call(row, row.example)
    torch.rand(5)
    canonical_call(OPS.rows["linear"], OPS.rows["linear"].example)  # type: ignore[arg-type]
    again, attributes = canonical_call(row, row.example)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and attributes == dict(row.example.attributes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conv1d", "conv1d(x[2,8,6], weight[6,8,3], bias[6], stride=2, padding=1, groups=1, dilation=1)"),
        ("cat", "cat([[2,8,6,6], [2,8,6,6]], dim=1)"),
        ("add", "add(x[2,8,6,6], other[2,8,6,6], alpha=2)"),
        ("embedding", "embedding(weight[10,8], indices=int[2,3])"),
        ("rnn_cell", "rnn_cell(x[2,8], weights=[[6,8], [6,6]], biases=[[6], [6]])"),
    ],
)
def test_an_example_is_noted_as_a_call(name: str, text: str) -> None:
    assert call_text(OPS.rows[name]) == text


def by_hand(call: Callable[..., Tensor], row: str) -> None:
    args, attributes = canonical_call(OPS.rows[row], OPS.rows[row].example)  # type: ignore[arg-type]
    assert torch.equal(OPS.rows[row].fn(*args, **attributes), call(*args, **attributes))


def test_a_canonical_call_is_the_call_of_the_function() -> None:
    by_hand(F.conv2d, "conv2d")
    by_hand(lambda x, other, alpha: torch.add(x, other, alpha=alpha), "add")
    by_hand(torch.cat, "cat")
