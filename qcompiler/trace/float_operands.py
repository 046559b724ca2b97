"""How the arguments of code that nobody follows lie in memory, where how its result lies counts: as in the example.

int8 values lie otherwise than the float model's, and such code may give what lies as its argument does.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

from torch import fx

from qcompiler.ir.types import SOURCE, VALUE, value_of
from qcompiler.ops.reference import lay_out
from qcompiler.trace.layouts import strides_in
from qcompiler.trace.questions import Question
from qcompiler.trace.relied import Relied
from qcompiler.trace.tracer import Tracer


def lay_out_operands(tracer: Tracer, made: fx.Node, fact: Relied) -> Iterator[Question]:
    """Let the call that made a tensor get its arguments as they lie in the example; what a call has to be asked for that."""
    call = made
    while call.target is operator.getitem and value_of(call.args[0]).shape is None:  # type: ignore[arg-type]
        call = call.args[0]  # type: ignore[assignment]
    for operand in call.all_input_nodes:
        shape = value_of(operand).shape
        if operand.op == "get_attr" or (shape is None and operand in (*tracer.counted, *tracer.numbers)) or shape == ():
            continue
        order = order_in(tracer, operand)
        if shape is None or not lies_in(tracer, operand, order):
            raise fact.unknown()
        if operand.target is lay_out:
            continue
        with tracer.graph.inserting_before(call):
            laid = tracer.graph.call_function(lay_out, (operand, order))
        laid.meta[VALUE], laid.meta[SOURCE] = operand.meta[VALUE], call.meta[SOURCE]
        if operand in tracer.strides:
            tracer.strides[laid] = tracer.strides[operand]
        call.replace_input_with(operand, laid)
        yield Question(operand, "order", tuple(("", dim) for dim in order), True, fact.source, always=True)


def strides_of(tracer: Tracer, node: fx.Node) -> Sequence[int] | None:
    """Those of the example of a value; None where it lies in order."""
    if node in tracer.given:
        example = tracer.given[node][1]
        return None if example.is_contiguous() else example.stride()
    return tracer.strides.get(node)


def order_in(tracer: Tracer, node: fx.Node) -> list[int]:
    """The dimensions of the example of a value from the outermost to the innermost."""
    dims, strides = range(len(value_of(node).shape or ())), strides_of(tracer, node)
    return list(dims) if strides is None else sorted(dims, key=lambda dim: (-strides[dim], dim))


def lies_in(tracer: Tracer, node: fx.Node, order: Sequence[int]) -> bool:
    """Whether the example of a value lies in memory without gaps, in this order."""
    shape = value_of(node).shape or ()
    if node in tracer.given:
        return list(tracer.given[node][1].stride()) == strides_in(order, shape)
    strides = strides_of(tracer, node)
    return strides is None or list(strides) == strides_in(order, shape)
