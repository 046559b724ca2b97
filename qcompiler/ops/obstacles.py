"""Why an op stays float: a stable code, which programs can tell apart, beside a text for people."""

from __future__ import annotations

from typing import NamedTuple

CODES = {
    "no-int8-form": "no row of the op table has an int8 form of it",
    "other-argument": "the op has one, but not with the argument named",
    "whole-module": "it is called as a whole module, which is not looked into",
    "float-statement": "a statement of the model that runs as it stands, since what it does depends on data",
    "qconfig-none": "its qconfig is None",
    "float-weights": "its qconfig leaves weights float, and it has some",
    "float-activations": "its qconfig leaves activations float",
    "keep-float": "convert_fx(keep_float=...) names it",
    "not-float32": "it does not compute float32 values, or an input is not float32",
    "computed-operand": "an operand is a number that is computed at run time",
    "computed-setting": "a setting is computed at run time",
    "computed-weight": "its weight is computed at run time",
    "computed-bias": "its bias is computed at run time",
    "assigned-into": "values are assigned into its result",
    "holds-inf": "a constant operand holds inf or NaN",
    "leaves-range": "its result may lie outside the range of its input",
    "float-input": "its input, or all its inputs, are float",
    "float-result": "it copies the float result that an int8 op hands out",
    "float-part": "a part of the tuple that it hands out stays float",
    "float-readers": "no int8 op uses its result: only results of the model, or ops that stay float",
    "float-users": "only ops that compute in float use its result",
    "steep-users": "only ops that make small values large, such as sqrt and log, use its result",
    "unlike-divisors": "it divides channels by constants of unlike size, of which the steps that they share leave hardly anything of some",
    "result": "it is a result of the model, whose small values the steps of its fixed range would make 0",
    "unlike-parts": "its parts differ so much in range that their common steps leave hardly anything of one",
    "lost-rows": "a normalization brings its rows to one size, and the steps that they share leave hardly anything of a small one",
    "lost-average": "it is a mean of values that cancel, of which the steps of its input leave hardly anything",
    "lost-cut": "an op behind it keeps a small part of its range, of which its steps leave hardly anything",
    "no-weights": "its qconfig quantizes weights alone, and it has none",
    "uncalibrated": "no calibration data reached it",
    "input-vanishes": "8 bits would round most of its input to zero, as calibration showed",
    "slower-than-float": "at its size int8 is slower than float, by the committed times",
    "no-kernel": "the back end has no kernel that computes it",
    "backend-config": "the backend config does not allow it",
}


class Obstacle(NamedTuple):
    """Why one op stays float. `code`: a key of CODES."""

    code: str
    text: str


UNCALIBRATED = Obstacle("uncalibrated", "no calibration data reached it")
COMPUTED_WEIGHT = Obstacle("computed-weight", "its weight is computed at run time")
COMPUTED_BIAS = Obstacle("computed-bias", "its bias is computed at run time")
FLOAT_WEIGHTS = Obstacle("float-weights", "its qconfig leaves weights float")
FLOAT_ACTIVATIONS = Obstacle("float-activations", "its qconfig leaves activations float")
FLOAT_INPUT = Obstacle("float-input", "its input is float")  # of an op that is int8 only behind int8 values
FLOAT_INPUTS = Obstacle("float-input", "all its inputs are float")
FLOAT_PART = Obstacle("float-part", "a part of the tuple that it hands out stays float")
FLOAT_RESULT = Obstacle("float-result", "it copies a float result")
