"""Random calls of single int8 ops: shapes, settings and memory layouts that nobody would write down, by seed and number.

Sizes are small and often 1 or 0, since that is where kernels go wrong. A draw has the call that a site is compiled for and calls of
other sizes that the same program must then answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.torch.bench.cases import Case, Int8, activation, weight
from tests import random_float_kernels
from tests.random_float_kernels import FloatDraw

SIZES = (1, 1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 12)
CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 32)
COPIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("flatten", {"start_dim": 1}),
    ("transpose", {"dim0": 1, "dim1": -1}),
    ("unsqueeze", {"dim": 1}),
    ("squeeze", {}),
    ("select", {"dim": -1, "index": -1}),
    ("contiguous", {}),
    ("flip", {"dims": (-1,)}),
    ("chunk", {"chunks": 2, "dim": 1}),
    ("repeat_interleave", {"repeats": 2, "dim": 1}),
)
ACTS = ("relu", "sigmoid", "tanh", "hardswish", "leaky_relu", "elu", "gelu", "silu", "clamp", "abs", "softmax", "hardsigmoid")


@dataclass(frozen=True)
class Draw:
    """`case` is what the site is made from; `later` are calls with the same parameters and settings and other sizes."""

    case: Case
    later: tuple[Case, ...]

    def __str__(self) -> str:
        return " -> ".join(_text(case) for case in (self.case, *self.later))


def _text(case: Case) -> str:
    return f"{case.op}({', '.join(_argument(a) for a in case.args)}, {case.attributes})"


def _argument(value: Any) -> str:
    if isinstance(value, Int8):
        return f"weight{list(value.values.shape)}/{value.axis}"
    if isinstance(value, list):
        return f"[{', '.join(_argument(v) for v in value)}]"
    return f"{list(value.shape)}/{list(value.stride())}" if isinstance(value, Tensor) else repr(value)


def laid_out(x: Tensor, rng: random.Random) -> Tensor:
    """The same shape in one of the layouts that views, slices and kernels make; values may be others."""
    kind = rng.choice(("", "", "last", "last", "odd", "odd", "turned", "strided", "narrowed", "spread"))
    dims = x.dim()
    if kind in ("last", "odd") and dims > 2 and rng.random() < 0.7:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if kind == "odd":  # dimensions of one element have any stride after a view
        strides = [rng.choice((s, 1, x.numel() or 1, 7)) if size == 1 else s for s, size in zip(x.stride(), x.shape)]
        return torch.as_strided(x, x.shape, strides)
    if kind == "turned" and dims > 1:
        order = rng.sample(range(dims), dims)
        return x.permute(order).contiguous().permute([order.index(d) for d in range(dims)])
    if kind == "strided" and dims and x.shape[-1]:
        return x.repeat_interleave(2, -1)[..., ::2]
    if kind == "narrowed" and dims > 1:
        return torch.cat([x, x], 1)[:, : x.shape[1]]
    if kind == "spread" and dims and x.numel():
        d = rng.randrange(dims)
        return x.narrow(d, 0, 1).expand(x.shape)
    return x


def _activation(shape: tuple[int, ...], rng: random.Random, high: int, scale: float = 0.02) -> Tensor:
    return laid_out(activation(shape, high, scale=scale, zero_point=rng.choice((0, high // 2, high, 3))), rng)


def _like(x: Tensor, shape: tuple[int, ...], rng: random.Random) -> Tensor:
    """Other values of another shape with the qparams of x, which a program knows."""
    return laid_out(activation(shape, 255, scale=x.q_scale(), zero_point=x.q_zero_point()), rng)


def _bounds(rng: random.Random) -> dict[str, Any]:
    return rng.choice(({}, {}, {"bounds": (0.0, None)}, {"bounds": (-0.5, 1.5)}))


def _many(rng: random.Random, choices: tuple[int, ...], dims: int) -> tuple[int, ...]:
    one = rng.choice(choices)
    return (one,) * dims if rng.random() < 0.4 else tuple(rng.choice(choices) for _ in range(dims))


def _batch(rng: random.Random) -> int:
    return rng.choice((1, 1, 2, 2, 3, 0))


Sized = Callable[[], tuple[Any, ...]]


def conv(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    """Convolutions, plain and transposed, of one to three dimensions."""
    dims, transposed = rng.choice((1, 2, 2, 3)), rng.random() < 0.25
    groups = rng.choice((1, 1, 1, 1, 2, 3, 5, 16))
    inputs, outputs = rng.choice(CHANNELS), rng.choice(CHANNELS)
    if rng.random() < 0.2:
        groups, inputs, outputs = rng.choice((3, 8, 16, 33, 104, 128)), 1, rng.choice((1, 1, 2))
    kernel = _many(rng, (1, 1, 2, 3, 3, 3, 5), dims)
    settings: dict[str, Any] = {"groups": groups, "stride": _many(rng, (1, 1, 2, 2, 3), dims)}
    settings["padding"] = _many(rng, (0, 0, 1, 1, 2, 4), dims)
    settings["dilation"] = _many(rng, (1, 1, 1, 2, 3, 5), dims)
    if not transposed and rng.random() < 0.1:
        settings.update(padding="same", stride=(1,) * dims)
    if transposed and rng.random() < 0.3:
        settings["output_padding"] = tuple(rng.randrange(max(s, d)) for s, d in zip(settings["stride"], settings["dilation"]))
    settings |= _bounds(rng)
    shape = (inputs * groups, outputs, *kernel) if transposed else (outputs * groups, inputs, *kernel)
    w = weight(shape, rng.choice((None, 1 if transposed else 0)))
    bias = None if rng.random() < 0.3 else torch.randn(outputs * groups) * 0.1
    wide = rng.random() < 0.15
    sizes = (*SIZES, 16, 28) if wide else SIZES
    x = _activation((_batch(rng), inputs * groups, *_many(rng, sizes, dims)), rng, high)
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    again = lambda: (_like(x, (_batch(rng), inputs * groups, *_many(rng, sizes, dims)), rng), w, bias)  # noqa: E731
    return name, settings, (x, w, bias), again


def linear(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    inputs, outputs, lead = rng.choice((1, 2, 3, 7, 16, 37, 64)), rng.choice((1, 2, 5, 16, 33)), rng.choice((1, 1, 2, 3))
    w, bias = weight((outputs, inputs), rng.choice((None, 0))), None if rng.random() < 0.3 else torch.randn(outputs) * 0.1
    x = _activation((*(_batch(rng) for _ in range(lead)), inputs), rng, high)
    return "linear", _bounds(rng), (x, w, bias), lambda: (_like(x, (*(_batch(rng) for _ in range(lead)), inputs), rng), w, bias)


def pool(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    dims = rng.choice((1, 2, 2, 3))
    kind = rng.choice(("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"))
    if kind.startswith("adaptive"):
        settings: dict[str, Any] = {"output_size": _many(rng, (1, 1, 2, 3, 5), dims)}
    else:
        kernel = _many(rng, (1, 2, 3, 4), dims)
        settings = {"kernel_size": kernel, "stride": _many(rng, (1, 2, 3), dims), "ceil_mode": rng.random() < 0.3}
        settings["padding"] = tuple(rng.randrange(k // 2 + 1) for k in kernel)
        if kind == "max_pool":
            settings["dilation"] = _many(rng, (1, 1, 2), dims)
        else:
            settings["count_include_pad"] = rng.random() < 0.5
    channels = rng.choice(CHANNELS)
    shape = lambda: (_batch(rng), channels, *_many(rng, SIZES, dims))  # noqa: E731
    x = _activation(shape(), rng, high)
    return f"{kind}{dims}d", settings, (x,), lambda: (_like(x, shape(), rng),)


def interpolate(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    dims = rng.choice((1, 2, 2, 3))
    mode = rng.choice(("nearest", "nearest", "nearest-exact", {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]))
    settings: dict[str, Any] = {"mode": mode}
    if rng.random() < 0.5:
        settings["size"] = _many(rng, (1, 2, 3, 5, 8), dims)
    else:
        settings["scale_factor"] = rng.choice((2.0, 3.0, 1.5, 1.2, 1.0, 0.5))
    channels = rng.choice(CHANNELS)
    shape = lambda: (_batch(rng), channels, *_many(rng, SIZES, dims))  # noqa: E731
    x = _activation(shape(), rng, high)
    return "interpolate", settings, (x,), lambda: (_like(x, shape(), rng),)


def reduction(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    dims = rng.choice((3, 4, 4, 5))
    along: Any = rng.choice((tuple(range(2, dims)), 1, (1,), -1, (-2, -1)))
    settings = {"dim": along, "keepdim": rng.random() < 0.5}
    shape = lambda: (_batch(rng), *_many(rng, SIZES, dims - 1))  # noqa: E731
    x = _activation(shape(), rng, high)
    return rng.choice(("mean", "mean", "sum", "amax", "amin")), settings, (x,), lambda: (_like(x, shape(), rng),)


def binary(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    """Sums and products, one operand often spread over the other."""
    dims, op = rng.choice((2, 3, 4, 4, 5)), rng.choice(("add", "add", "mul", "mul", "sub", "maximum"))
    ones = [[rng.random() < 0.25 for _ in range(dims)] if rng.random() < 0.5 else [False] * dims for _ in range(2)]
    less = rng.randrange(dims) if rng.random() < 0.2 else 0

    def shapes() -> list[tuple[int, ...]]:
        full = (_batch(rng), *_many(rng, SIZES, dims - 1))
        both = [tuple(1 if one else s for s, one in zip(full, spread)) for spread in ones]
        return [both[0], both[1][less:]]

    first = shapes()
    a, b = _activation(first[0], rng, high), _activation(first[1], rng, high, 0.03)

    def again() -> tuple[Any, ...]:
        left, right = shapes()
        return _like(a, left, rng), _like(b, right, rng)

    return op, _bounds(rng) if op not in ("maximum",) else {}, (a, b), again


def join(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    dims, count = rng.choice((2, 3, 4, 4, 5)), rng.choice((1, 2, 3))
    op = rng.choice(("cat", "cat", "stack"))
    along = rng.randrange(dims)

    def shapes() -> list[tuple[int, ...]]:
        full = (_batch(rng), *_many(rng, SIZES, dims - 1))
        if op == "stack":
            return [full] * count
        return [(*full[:along], rng.choice((1, 2, 5)), *full[along + 1 :]) for _ in range(count)]

    same = rng.random() < 0.4
    parts = [_activation(s, rng, high, 0.02 if same else rng.choice((0.02, 0.03))) for s in shapes()]
    parts = [_like(parts[0], tuple(p.shape), rng) for p in parts] if same else parts
    return op, {"dim": along}, (parts,), lambda: ([_like(p, s, rng) for p, s in zip(parts, shapes())],)


def unary(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    dims, op = rng.choice((2, 3, 4, 4, 5)), rng.choice(ACTS)
    settings: dict[str, Any] = {"clamp": {"min": -0.3, "max": 1.0}, "softmax": {"dim": 1}}.get(op, {})
    shape = lambda: (_batch(rng), *_many(rng, SIZES, dims - 1))  # noqa: E731
    x = _activation(shape(), rng, high, 0.03)
    return op, settings, (x,), lambda: (_like(x, shape(), rng),)


def copy(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    op, settings = rng.choice(COPIES)
    dims = rng.choice((3, 4, 4, 5))
    shape = lambda: (_batch(rng), *_many(rng, SIZES, dims - 1))  # noqa: E731
    x = _activation(shape(), rng, high)
    again = lambda: (_like(x, tuple(x.shape) if op in ("squeeze", "chunk") else shape(), rng),)  # noqa: E731
    return op, settings, (x,), again


def norm(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    channels, op = rng.choice((2, 4, 8, 16)), rng.choice(("batch_norm", "group_norm", "instance_norm", "layer_norm"))
    dims = rng.choice((0, 1, 2, 3)) if op == "batch_norm" else rng.choice((1, 2, 2, 3))
    last = rng.choice(SIZES)

    def shape() -> tuple[int, ...]:
        sizes = _many(rng, SIZES, dims)
        return (_batch(rng), channels, *(sizes if op != "layer_norm" else (*sizes[:-1], last)))

    x = _activation(shape(), rng, high)
    gamma, beta = torch.rand(channels) + 0.5, torch.randn(channels)
    settings: dict[str, Any] = {"group_norm": {"num_groups": 2}, "layer_norm": {"normalized_shape": (last,)}}.get(op, {})
    rest: tuple[Tensor, ...] = (gamma, beta)
    if op == "layer_norm":
        rest = (torch.rand(last) + 0.5, torch.randn(last))
    if op == "batch_norm":
        rest, settings = (torch.randn(channels), torch.rand(channels) + 0.2, gamma, beta), _bounds(rng)
    return op, settings, (x, *rest), lambda: (_like(x, shape(), rng), *rest)


def residual(rng: random.Random, high: int) -> tuple[str, dict[str, Any], tuple[Any, ...], Sized]:
    """A convolution and what is added to it, spread over it at times."""
    choices = {"stride": (1, 1, 2), "padding": (0, 1, 1, 2), "dilation": (1, 1, 3)}
    settings: dict[str, Any] = {name: _many(rng, values, 2) for name, values in choices.items()}
    inputs, outputs, kernel = rng.choice(CHANNELS), rng.choice(CHANNELS), _many(rng, (1, 2, 3), 2)
    w, bias = weight((outputs, inputs, *kernel), rng.choice((None, 0))), torch.randn(outputs) * 0.1
    one = rng.random() < 0.2

    def shapes() -> list[tuple[int, ...]]:
        x = (_batch(rng), inputs, *_many(rng, SIZES, 2))
        steps = zip(x[2:], kernel, *(settings[name] for name in ("stride", "padding", "dilation")))
        out = [max((n + 2 * p - d * (k - 1) - 1) // s + 1, 0) for n, k, s, p, d in steps]
        return [x, (x[0], outputs, 1, 1) if one else (x[0], outputs, *out)]

    first = shapes()
    x, other = _activation(first[0], rng, high), _activation(first[1], rng, high, 0.1)

    def again() -> tuple[Any, ...]:
        left, right = shapes()
        return _like(x, left, rng), w, bias, _like(other, right, rng)

    return "conv2d_add", settings, (x, w, bias, other), again


INT8: dict[str, Any] = {f.__name__: f for f in (conv, linear, pool, interpolate, reduction, binary, join, unary, copy, norm, residual)}
FAMILIES: dict[str, Any] = {**INT8, **random_float_kernels.FAMILIES}
WEIGHTS = {"conv": 6, "binary": 2, "pool": 2, "interpolate": 2}


def draw(seed: int, number: int, family: str | None = None, later: int = 2) -> Draw | FloatDraw:
    """The call of that number; the same in every process."""
    rng = random.Random(f"{seed}/{number}")
    torch.manual_seed(rng.randrange(2**31))
    names = sorted(FAMILIES)
    chosen = family or rng.choices(names, [WEIGHTS.get(n, 1) for n in names])[0]
    if chosen not in INT8:
        drawn: FloatDraw = FAMILIES[chosen](rng)
        return drawn
    while True:
        high = rng.choice((127, 255))
        op, settings, args, again = FAMILIES[chosen](rng, high)
        case = Case(op, chosen, args, settings)
        if not _computes(case):
            continue
        found = [Case(op, chosen, again(), settings) for _ in range(later * 3)]
        return Draw(case, tuple(c for c in found if _computes(c))[:later])


def _computes(case: Case) -> bool:
    """Whether float takes the call: else there is nothing to compare."""
    try:
        truth = case.truth()
    except (RuntimeError, ValueError, IndexError):
        return False
    return all(bool(t.isfinite().all()) for t in (truth if isinstance(truth, tuple) else (truth,)))
