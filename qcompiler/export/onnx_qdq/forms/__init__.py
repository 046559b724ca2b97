"""The ONNX form of each op, by the name of its row, and of calls of torch that have no row (float_calls.py names these)."""

from qcompiler.export.onnx_qdq.forms import (
    arithmetic,
    attention,
    creation,
    functions,
    norms,
    pads,
    pieces,
    pools,
    recurrent,
    resize,
    scatter,
    shapes,
    tables,
    weighted,
)
from qcompiler.export.onnx_qdq.site import Form

FORMS: dict[str, Form] = {
    **weighted.FORMS, **pads.FORMS, **arithmetic.FORMS, **functions.FORMS, **norms.FORMS, **pools.FORMS, **resize.FORMS, **shapes.FORMS,
    **pieces.FORMS, **tables.FORMS, **attention.FORMS, **creation.FORMS, **recurrent.FORMS, **scatter.FORMS,
}  # fmt: skip

__all__ = ["FORMS"]
