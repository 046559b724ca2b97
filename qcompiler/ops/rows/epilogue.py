"""Linear and conv2d with what follows them as one op: nobody writes them so, quantized modules are made of them."""

from __future__ import annotations

from qcompiler.ops import functional as Q
from qcompiler.ops import macs
from qcompiler.ops.example import IMAGE, Example
from qcompiler.ops.rows.weighted import ROWS_OF_8, B, W, X
from qcompiler.ops.spec import Family, Op, Output, Param

LINEAR = {"weight": (6, 8), "bias": (6,)}

ROWS = (
    Op(
        name="linear_leaky_relu", fn=Q.linear_leaky_relu, signature="x weight bias=None negative_slope=0.01", params=(X, W, B),
        output=Output.OWN, macs=macs.linear, family=Family.EPILOGUE, example=Example((ROWS_OF_8,), LINEAR, {"negative_slope": 0.2}),
    ),
    Op(
        name="linear_tanh", fn=Q.linear_tanh, signature="x weight bias=None", params=(X, W, B), output=Output.OWN, macs=macs.linear,
        family=Family.EPILOGUE, example=Example((ROWS_OF_8,), LINEAR),
    ),
    Op(
        name="conv2d_add", fn=Q.conv2d_add, signature="x weight bias other stride=1 padding=0 dilation=1 groups=1",
        params=(X, W, B, Param("other")), output=Output.OWN, takes_bounds=True, macs=macs.conv, family=Family.EPILOGUE, dims=2,
        example=Example((IMAGE, (2, 6, 3, 3)), {"weight": (6, 8, 3, 3), "bias": (6,)}, {"stride": 2, "padding": 1}),
    ),
)  # fmt: skip
