"""Functions of single values."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Site


def _float(site: Site) -> ir.Value:
    return site.operand(site.x, site.dtype)


def _plain(op: str) -> Form:
    return lambda site: site.call(op, _float(site))


def _asked(op: str) -> Form:
    """What is asked of floats; integers are asked as float32, of which none is the answer either."""

    def form(site: Site) -> ir.Value:
        dtype = site.x.dtype if site.x.dtype.is_floating_point else torch.float32
        return site.call(op, site.operand(site.x, dtype))

    return form


def _number(site: Site, value: float) -> ir.Value:
    return site.constant(value, site.dtype)


def _made(formula: Callable[[Site, ir.Value, Callable[[float], ir.Value]], ir.Value]) -> Form:
    return lambda site: formula(site, _float(site), lambda value: _number(site, value))


def _with(op: str, **settings: str) -> Form:
    """ONNX's own op, with the settings that it calls otherwise."""
    return lambda site: site.call(op, _float(site), **{theirs: float(site.number(ours)) for theirs, ours in settings.items()})


def clipped(site: Site, value: ir.Value, low: object, high: object) -> ir.Value:
    """max(low, min(high, value)); None leaves a side open."""
    if low == 0 and high is None and site.dtype is torch.float32:
        return site.call("Relu", value)
    ends = [None if end is None else site.operand(end, site.dtype) for end in (low, high)]  # type: ignore[arg-type]
    return value if ends == [None, None] else site.call("Clip", value, *ends)


def clamp(site: Site) -> ir.Value:
    """Tensors as ends broadcast, which Clip does not."""
    value = _float(site)
    for op, name in (("Max", "min"), ("Min", "max")):
        if (end := site.get(name)) is not None:
            value = site.call(op, value, site.operand(end, site.dtype))
    return value


def plain_clamp(site: Site) -> ir.Value:
    ends = (site.get("min"), site.get("max"))
    if any(end is not None and not isinstance(end, (int, float)) for end in ends):
        return clamp(site)
    return clipped(site, _float(site), *ends)


def _log(base: float) -> Form:
    return _made(lambda s, x, n: s.call("Mul", s.call("Log", x), n(1 / math.log(base))))


def _gelu(site: Site) -> ir.Value:
    x = _float(site)
    if site.text("approximate") == "tanh":
        cube = site.call("Mul", site.call("Mul", x, x), x)
        inner = site.call("Add", x, site.call("Mul", cube, _number(site, 0.044715)))
        curve = site.call("Tanh", site.call("Mul", inner, _number(site, math.sqrt(2 / math.pi))))
    else:
        curve = site.call("Erf", site.call("Div", x, _number(site, math.sqrt(2))))
    return site.call("Mul", site.call("Mul", x, site.call("Add", curve, _number(site, 1.0))), _number(site, 0.5))


def _softplus(site: Site) -> ir.Value:
    """log(1 + exp(beta x)) / beta, and x itself above the threshold."""
    x, beta = _float(site), _number(site, float(site.number("beta")))
    wide = site.call("Mul", x, beta)
    made = site.call("Div", site.call("Softplus", wide), beta)
    return site.call("Where", site.call("Greater", wide, _number(site, float(site.number("threshold")))), x, made)


def _mish(s: Site, x: ir.Value, n: Callable[[float], ir.Value]) -> ir.Value:
    return s.call("Mul", x, s.call("Tanh", s.call("Softplus", x)))


def _celu(site: Site) -> ir.Value:
    """alpha * elu(x / alpha), of slope 1 at 0."""
    alpha = float(site.number("alpha"))
    inner = site.call("Elu", site.call("Div", _float(site), _number(site, alpha)), alpha=1.0)
    x = _float(site)
    return site.call("Where", site.call("Greater", x, _number(site, 0.0)), x, site.call("Mul", inner, _number(site, alpha)))


def _prelu(site: Site) -> ir.Value:
    """The slopes lie along the channels."""
    weight, rank = site.tensor("weight"), site.x.rank
    slopes = weight.value
    if rank > 2 and weight.sizes != (1,):
        slopes = site.extents.reshaped(slopes, None, (*weight.sizes, *[1] * (rank - 2)))
    return site.call("PRelu", site.x.value, slopes)


def _softmax(op: str) -> Form:
    def form(site: Site) -> ir.Value:
        dim = site.get("dim")
        if dim is None:
            dim = 0 if site.x.rank in (0, 1, 3) else 1
        return site.call(op, _float(site), axis=site.x.axis(dim))

    return form


def _rounded(site: Site) -> ir.Value:
    """Exact halves go to the even number in both."""
    places = 10.0 ** site.number("decimals") if site.get("decimals") else 1.0
    x = _float(site)
    if places == 1.0:
        return site.call("Round", x)
    return site.call("Div", site.call("Round", site.call("Mul", x, _number(site, places))), _number(site, places))


def _logit(site: Site) -> ir.Value:
    x, eps = _float(site), site.get("eps")
    if eps is not None:
        x = clipped(site, x, float(site.number("eps")), 1 - float(site.number("eps")))
    return site.call("Log", site.call("Div", x, site.call("Sub", _number(site, 1.0), x)))


def _nan_to_num(site: Site) -> ir.Value:
    x, ends = _float(site), torch.finfo(site.dtype)
    names = (("nan", 0.0), ("posinf", ends.max), ("neginf", ends.min))
    nan, high, low = (float(site.number(name)) if site.get(name) is not None else default for name, default in names)
    for sign, value in ((1, high), (0, low)):
        found = site.call("IsInf", x, detect_positive=sign, detect_negative=1 - sign)
        x = site.call("Where", found, _number(site, value), x)
    return site.call("Where", site.call("IsNaN", x), _number(site, nan), x)


def _threshold(site: Site) -> ir.Value:
    x = _float(site)
    above = site.call("Greater", x, _number(site, float(site.number("threshold"))))
    return site.call("Where", above, x, _number(site, float(site.number("value"))))


def _rrelu(site: Site) -> ir.Value:
    """In eval mode the slope is the middle of both ends."""
    return site.call("LeakyRelu", _float(site), alpha=(float(site.number("lower")) + float(site.number("upper"))) / 2)


def _shrink(site: Site, bias: float) -> ir.Value:
    return site.call("Shrink", _float(site), lambd=float(site.number("lambd")), bias=bias)


def _cast(site: Site) -> ir.Value:
    return site.x.value if site.x.dtype is site.dtype else site.graph.cast(site.x.value, site.dtype)


def same(site: Site) -> ir.Value:
    """What does nothing to values."""
    return site.x.value


def dropout(site: Site) -> ir.Value:
    if site.flag("training") and site.get("p") != 0:
        raise NoForm("it draws random numbers")
    return site.x.value


OWN = {
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin",
    "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "erf": "Erf",
    "floor": "Floor", "ceil": "Ceil", "sign": "Sign", "abs": "Abs", "neg": "Neg", "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh",
    "hardswish": "HardSwish", "softsign": "Softsign",
}  # fmt: skip

FORMS: dict[str, Form] = {
    **{name: _plain(op) for name, op in OWN.items()}, "isnan": _asked("IsNaN"), "isinf": _asked("IsInf"),
    "exp2": _made(lambda s, x, n: s.call("Pow", n(2.0), x)),
    "expm1": _made(lambda s, x, n: s.call("Sub", s.call("Exp", x), n(1.0))),
    "log2": _log(2), "log10": _log(10), "log1p": _made(lambda s, x, n: s.call("Log", s.call("Add", x, n(1.0)))),
    "rsqrt": _made(lambda s, x, n: s.call("Reciprocal", s.call("Sqrt", x))),
    "square": _made(lambda s, x, n: s.call("Mul", x, x)),
    "erfc": _made(lambda s, x, n: s.call("Sub", n(1.0), s.call("Erf", x))),
    "trunc": _made(lambda s, x, n: s.call("Mul", s.call("Sign", x), s.call("Floor", s.call("Abs", x)))),
    "frac": _made(lambda s, x, n: s.call("Sub", x, s.call("Mul", s.call("Sign", x), s.call("Floor", s.call("Abs", x))))),
    "hardsigmoid": lambda s: s.call("HardSigmoid", _float(s), alpha=1 / 6, beta=0.5),
    "silu": _made(lambda s, x, n: s.call("Mul", x, s.call("Sigmoid", x))),
    "mish": _made(_mish), "gelu": _gelu, "softplus": _softplus, "leaky_relu": _with("LeakyRelu", alpha="negative_slope"),
    "elu": _with("Elu", alpha="alpha"), "celu": _celu, "prelu": _prelu, "softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"), "clamp": plain_clamp, "round": _rounded, "logit": _logit, "nan_to_num": _nan_to_num,
    "threshold": _threshold, "hardshrink": lambda s: _shrink(s, 0.0), "softshrink": lambda s: _shrink(s, float(s.number("lambd"))),
    "tanhshrink": _made(lambda s, x, n: s.call("Sub", x, s.call("Tanh", x))), "rrelu": _rrelu,
    "selu": lambda s: s.call("Selu", _float(s), alpha=1.6732632423543772, gamma=1.0507009873554805),
    "logsigmoid": _made(lambda s, x, n: s.call("Neg", s.call("Softplus", s.call("Neg", x)))),
    "cast": _cast, **dict.fromkeys(("contiguous", "detach", "identity"), same), "dropout": dropout, "stochastic_depth": dropout,
}  # fmt: skip
