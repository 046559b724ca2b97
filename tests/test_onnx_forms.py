"""Every row of the op table as ONNX: the meaning of its form is that of the row, to a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qcompiler
from qcompiler.export.onnx_qdq.float_calls import _BOTH, _FUNCTIONS, _METHODS
from qcompiler.export.onnx_qdq.forms import FORMS  # behind onnx_runs, which skips without the extra
from qcompiler.ops.spec import Op, Role
from qcompiler.ops.table import OPS
from tests.flow import QUANTIZED
from tests.onnx_runs import prepared, run, session, steps_apart
from tests.test_ops import STATIC, Call, case_of, inputs_of, model_of

WITHOUT = {"lstm_packed", "gru_packed"}  # sequences of different lengths have no op


def call_of(row: Op) -> Any:
    """The canonical call of a row's example."""
    case = case_of(row)

    def make(self: Call, values: list[Tensor]) -> Any:
        left, args = iter(values), []
        for param in row.params:
            if param.role is Role.ACTIVATIONS:
                args.append(values)
            elif param.role is Role.ACTIVATION:
                args.append(next(left))
            elif param.name in case.tensors:
                args.append(getattr(self, param.name))
            else:
                break
        return row.fn(*args, **case.attributes)

    return make


def test_every_row_has_a_form() -> None:
    assert OPS.rows.keys() - FORMS.keys() == WITHOUT
    named = {form for form, _ in (*_FUNCTIONS.values(), *_BOTH.values(), *_METHODS.values())}
    assert named <= FORMS.keys()


@pytest.mark.parametrize("row", STATIC, ids=lambda row: row.name)
def test_a_row(row: Op, tmp_path: Path) -> None:
    """On equal inputs, node by node as the file says, and as ONNX Runtime's kernels compute it."""
    case = case_of(row)
    example = inputs_of(case)
    made = prepared(model_of(row, case, row.fn, call_of(row)), example, prepare_custom_config=QUANTIZED)
    qcompiler.export_onnx(made, tmp_path / "row.onnx", dynamic_shapes={})
    graph = qcompiler.convert_to_reference_fx(made)
    for optimized in (False, True):
        (got,) = run(session(tmp_path / "row.onnx", optimized), example)
        with torch.no_grad():
            expected = graph(*example)
        assert got.shape == expected.shape and got.dtype is expected.dtype
        apart = steps_apart(graph, tmp_path / "row.onnx", example, optimized)
        assert apart and max(apart.values()) <= 1, apart
