"""Random networks of many kinds: 1-3d convolutions, recurrent layers, attention, norms, indexing, masks, shared modules, in-place forms.

`network(seed)` draws step after step, each fed by values that exist already, and runs it on the example to know what comes out. Every
step computes with the sizes of its inputs, so that other batches (and, where `resizes` is true, other sizes) fit as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_VALUES = 60_000  # of one tensor: a graph is to be compiled in a second or two

Made = tuple["nn.Module | None", Callable[..., Tensor]]  # a module of the network's own, and what is computed with it and the inputs
Rule = Callable[["Draw", Tensor], "Made | None"]
RULES: list[tuple[str, Rule, int]] = []  # name, rule, weight


@dataclass(frozen=True)
class Step:
    name: str
    module: str | None
    function: Callable[..., Tensor]
    inputs: tuple[int, ...]


class Network(nn.Module):
    """The steps in order; the result is the last value, or several in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.parts = nn.ModuleDict()
        self.results: tuple[str, tuple[int, ...]] = ("one", (-1,))

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step in self.steps:
            part = () if step.module is None else (self.parts[step.module],)
            values.append(step.function(*part, *(values[i] for i in step.inputs)))
        form, which = self.results
        found = [values[i] for i in which]
        if form == "dict":
            return {f"v{i}": value for i, value in enumerate(found)}
        return tuple(found) if form == "tuple" else found[0]

    def __repr__(self) -> str:
        lines = [f"{i}: {s.name} {s.inputs} {self.parts[s.module] if s.module else ''}" for i, s in enumerate(self.steps)]
        return "\n".join([*lines, f"results {self.results}"])


@dataclass
class Draw:
    """The state of a drawing: the source of chance, the values so far, the network, and whether sizes may change."""

    rng: random.Random
    net: Network = field(default_factory=Network)
    values: list[Tensor] = field(default_factory=list)
    resizes: bool = True
    batched: bool = True
    index: int = 0  # of the value that a rule is asked about

    def pick(self, *items: Any) -> Any:
        return self.rng.choice(items)

    def like(self, x: Tensor, test: Callable[[Tensor], bool]) -> int | None:
        """Some float value for which `test` holds."""
        found = [i for i, v in enumerate(self.values) if v.is_floating_point() and test(v)]
        return self.rng.choice(found) if found else None


def rule(weight: int = 2) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.append((function.__name__, function, weight))
        return function

    return add


def apply(module: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = module(x)
    return result


# ---- convolutions and what works on (N, C, *sizes)


def spatial(x: Tensor) -> int:
    return x.dim() - 2 if 3 <= x.dim() <= 5 else 0


@rule(8)
def conv(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank:
        return None
    channels, rng = x.shape[1], draw.rng
    groups = rng.choice([g for g in (1, 1, 1, 2, 3, 4, channels) if channels % g == 0])
    out = groups * rng.choice((1, 2, 3, 4)) if groups > 1 else rng.choice((1, 3, 4, 8, 16))
    kernel, dilation = [rng.choice((1, 1, 2, 3, 3, 5)) for _ in range(rank)], rng.choice((1, 1, 1, 2))
    stride, mode = [rng.choice((1, 1, 2)) for _ in range(rank)], rng.choice(("zeros", "zeros", "zeros", "circular", "replicate"))
    padding = [rng.choice((0, k // 2, dilation * (k - 1) // 2)) for k in kernel]
    if any(size + 2 * p - dilation * (k - 1) < 1 or p > size for size, p, k in zip(x.shape[2:], padding, kernel)):
        return None
    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    made = cls(channels, out, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.7, padding_mode=mode)  # type: ignore[arg-type]
    extra: list[nn.Module] = []
    if rng.random() < 0.5:
        extra.append((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](out))
    if rng.random() < 0.5:
        extra.append(rng.choice((nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(), nn.SiLU(), nn.Hardswish(), nn.PReLU(out))))
    return (nn.Sequential(made, *extra) if extra else made), apply


@rule(2)
def transposed(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank or x.numel() * 4 > MAX_VALUES:
        return None
    cls, rng = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1], draw.rng
    groups = rng.choice([g for g in (1, 1, 2) if x.shape[1] % g == 0])
    stride = rng.choice((1, 2))
    kernel = rng.choice((1, 2, 3, 4))
    return cls(x.shape[1], groups * rng.choice((1, 2, 4)), kernel, stride, rng.choice((0, 1)) if kernel > 2 else 0, groups=groups,
               output_padding=rng.choice((0, 1)) if stride == 2 else 0), apply  # fmt: skip


@rule(2)
def functional_conv(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank:
        return None
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, x.shape[1], *[3] * rank) / 5)

    return Part(), lambda part, v: function(v, part.w, padding="same")


@rule(2)
def pool(draw: Draw, x: Tensor) -> Made | None:
    rank, rng = spatial(x), draw.rng
    if not rank or min(x.shape[2:]) < 2:
        return None
    kind = rng.choice(("max", "avg", "adaptive", "adaptive_max"))
    if kind.startswith("adaptive"):
        average: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
        largest: Any = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[rank - 1]
        return (largest if kind == "adaptive_max" else average)(rng.choice((1, 2, 3))), apply
    size, stride = rng.choice((2, 3 if min(x.shape[2:]) > 2 else 2)), rng.choice((1, 2))
    if kind == "max":
        biggest: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
        return biggest(size, stride, rng.choice((0, size // 2)), ceil_mode=rng.random() < 0.3), apply
    mean: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    return mean(size, stride, rng.choice((0, size // 2)), count_include_pad=rng.random() < 0.5), apply


@rule(2)
def resize(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank or x.numel() * 2**rank > MAX_VALUES:
        return None
    smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
    mode = draw.pick("nearest", "nearest", smooth)
    factor = draw.pick(2, 2, 0.5 if min(x.shape[2:]) > 1 else 2)
    return None, lambda v: F.interpolate(v, scale_factor=factor, mode=mode)


@rule(1)
def pad(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank or min(x.shape[2:]) < 2:
        return None
    sizes, value = [draw.pick(0, 1) for _ in range(2 * rank)], draw.pick(0.0, 0.5)
    mode = draw.pick("constant", "constant", "reflect", "replicate")
    return None, lambda v: F.pad(v, sizes, mode=mode, value=value) if mode == "constant" else F.pad(v, sizes, mode=mode)


@rule(1)
def gate(draw: Draw, x: Tensor) -> Made | None:
    rank = spatial(x)
    if not rank:
        return None
    cls: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    act = draw.pick(torch.sigmoid, F.hardsigmoid, torch.tanh)
    dims = list(range(2, x.dim()))
    return cls(x.shape[1], x.shape[1], 1), lambda part, v: v * act(part(v.mean(dims, keepdim=True)))


@rule(1)
def norm_of_channels(draw: Draw, x: Tensor) -> Made | None:
    rank, rng = spatial(x), draw.rng
    if not rank or x[0, 0].numel() < 2:
        return None
    batch: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    instance: Any = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 1]
    groups = rng.choice([g for g in (1, 2, 4) if x.shape[1] % g == 0])
    return rng.choice((batch(x.shape[1]), nn.GroupNorm(groups, x.shape[1]), instance(x.shape[1], affine=True))), apply


@rule(1)
def shuffle(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 4 or x.shape[1] % 4:
        return None
    if draw.rng.random() < 0.5:
        return None, lambda v: F.pixel_shuffle(v, 2)
    return None, lambda v: v.view(v.size(0), 2, v.size(1) // 2, v.size(2), v.size(3)).transpose(1, 2).reshape(v.shape)


@rule(2)
def to_sequence(draw: Draw, x: Tensor) -> Made | None:
    return (None, lambda v: v.flatten(2).transpose(1, 2)) if spatial(x) else None


# ---- on the last dimension


def wide(x: Tensor) -> bool:
    return x.dim() in (2, 3) and 2 <= x.shape[-1] <= 64


@rule(6)
def linear(draw: Draw, x: Tensor) -> Made | None:
    if not wide(x):
        return None
    rng = draw.rng
    made: nn.Module = nn.Linear(x.shape[-1], rng.choice((2, 5, 8, 16)), bias=rng.random() < 0.8)
    if rng.random() < 0.5:
        made = nn.Sequential(made, rng.choice((nn.ReLU(), nn.GELU(), nn.Tanh(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.ELU())))
    return made, apply


@rule(2)
def shared(draw: Draw, x: Tensor) -> Made | None:
    """A module that another step has already."""
    names = [s.module for s in draw.net.steps if s.module and s.name in ("linear", "conv") and s.function is apply]
    for name in draw.rng.sample(names, len(names)):
        try:
            with torch.no_grad():
                draw.net.parts[name](x)
        except (RuntimeError, ValueError):
            continue
        part = draw.net.parts[name]
        return part, apply
    return None


@rule(2)
def recurrent(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or not wide(x) or x.shape[1] > 12:
        return None
    cls: Any = draw.pick(nn.LSTM, nn.GRU)
    made = cls(x.shape[-1], draw.pick(4, 8), num_layers=draw.pick(1, 1, 2), batch_first=True, bidirectional=draw.rng.random() < 0.3)
    return made, lambda part, v: part(v)[0]


@rule(2)
def attention(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or x.shape[-1] not in (4, 8, 16) or x.shape[1] > 64:
        return None
    if draw.rng.random() < 0.5:
        return nn.MultiheadAttention(x.shape[-1], 2, batch_first=True), lambda part, v: part(v, v, v, need_weights=False)[0]

    def attend(part: nn.Module, v: Tensor) -> Tensor:
        q, k, w = part(v).chunk(3, -1)
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        return scores.softmax(-1) @ w

    return nn.Linear(x.shape[-1], 3 * x.shape[-1]), attend


@rule(2)
def norm_of_features(draw: Draw, x: Tensor) -> Made | None:
    if not wide(x):
        return None
    if draw.rng.random() < 0.7:
        return nn.LayerNorm(x.shape[-1]), apply
    return None, lambda v: v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-5)


@rule(1)
def pooled_tokens(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3:
        return None
    return None, draw.pick(lambda v: v.mean(1), lambda v: v[:, 0], lambda v: v[:, -1], lambda v: v.amax(1))


@rule(1)
def to_channels(draw: Draw, x: Tensor) -> Made | None:
    return (None, lambda v: v.transpose(1, 2)) if x.dim() == 3 else None


@rule(1)
def class_token(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() != 3 or not wide(x):
        return None

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, x.shape[-1]))

    return Part(), lambda part, v: torch.cat([part.token.expand(v.size(0), -1, -1), v], 1)


# ---- on values of any shape

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu, torch.relu, F.relu6, F.hardswish, F.silu, F.gelu, F.mish, F.softplus, torch.sigmoid, torch.tanh, F.hardsigmoid, F.elu,
    lambda v: F.leaky_relu(v, 0.1), lambda v: v.clamp(-1, 1.5), lambda v: v.clamp(min=0), lambda v: F.hardtanh(v, -0.5, 2.0), torch.erf,
    torch.abs,
    lambda v: v.square(), lambda v: v.neg(), torch.sin, lambda v: v.clone().relu_(), lambda v: (v + 0.5).clamp_(-1, 2), F.selu,
)  # fmt: skip


@rule(6)
def activation(draw: Draw, x: Tensor) -> Made | None:
    return None, draw.rng.choice(ACTIVATIONS)


@rule(2)
def scalar(draw: Draw, x: Tensor) -> Made | None:
    return None, draw.pick(lambda v: v + 1, lambda v: 2 - v * 0.5, lambda v: v / 3, lambda v: v * 2.0, lambda v: v - 0.25)


@rule(1)
def softmax(draw: Draw, x: Tensor) -> Made | None:
    return (None, lambda v: v.softmax(-1)) if x.shape[-1] > 1 else None


@rule(2)
def cut(draw: Draw, x: Tensor) -> Made | None:
    """Slices, pieces and indices of a dimension that is not the batch."""
    dims = [d for d in range(1, x.dim()) if x.shape[d] >= 2]
    if not dims:
        return None
    dim = draw.rng.choice(dims)
    return None, draw.pick(
        lambda v: v.narrow(dim, 1, v.size(dim) - 1), lambda v: v.chunk(2, dim)[0], lambda v: torch.cat(v.chunk(2, dim)[::-1], dim),
        lambda v: v.split([1, v.size(dim) - 1], dim)[1], lambda v: v.index_select(dim, torch.tensor([1, 0])), lambda v: v.flip(dim),
        lambda v: v[:, ..., :-1] if dim == v.dim() - 1 else v[:, 1:], lambda v: v.roll(1, dim),
    )  # fmt: skip


@rule(1)
def views(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() <= 2:
        return None, lambda v: v.unsqueeze(-1).squeeze(-1)
    return None, draw.pick(
        lambda v: v.unsqueeze(1).squeeze(1), lambda v: v.contiguous(), lambda v: v.reshape(v.size(0), -1, v.size(-1)).view(v.shape),
        lambda v: v.transpose(-1, -2).transpose(-1, -2), lambda v: torch.stack([v, v], -1).mean(-1),
        lambda v: v.unsqueeze(1).expand(-1, 2, *v.shape[1:])[:, 0],
    )  # fmt: skip


@rule(1)
def mask(draw: Draw, x: Tensor) -> Made | None:
    return None, draw.pick(lambda v: torch.where(v > 0, v, v * 0.3), lambda v: v.masked_fill(v < -1, 0.0), lambda v: v * (v > 0).float())


@rule(1)
def assign(draw: Draw, x: Tensor) -> Made | None:
    if x.dim() < 2 or x.shape[1] < 2:
        return None

    def assigned(v: Tensor) -> Tensor:
        made = v.clone()
        made[:, 0] = 0.25
        return made

    return None, assigned


@rule(1)
def reduce(draw: Draw, x: Tensor) -> Made | None:
    return (None, draw.pick(lambda v: v - v.mean(-1, keepdim=True), lambda v: v.amax(-1, keepdim=True) + v)) if x.shape[-1] > 1 else None


@rule(1)
def parameter(draw: Draw, x: Tensor) -> Made | None:
    channels = x.shape[1] if spatial(x) else x.shape[-1]

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shape = [1, channels, *[1] * (x.dim() - 2)] if spatial(x) else [channels]
            self.scale, self.shift = nn.Parameter(torch.randn(shape) * 0.3 + 1), nn.Parameter(torch.randn(shape) * 0.3)

    return Part(), draw.pick(lambda part, v: v * part.scale + part.shift, lambda part, v: v + part.shift)


# ---- of two values


def two(draw: Draw, x: Tensor, function: Callable[[Tensor, Tensor], Tensor], test: Callable[[Tensor], bool]) -> tuple[Step, Tensor] | None:
    other = draw.like(x, test)
    if other is None:
        return None
    return Step(function.__name__, None, function, (draw.index, other)), function(x, draw.values[other])


PAIRS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], str], ...] = (
    (torch.add, "same"), (lambda a, b: F.relu(a + b), "same"), (torch.mul, "same"), (torch.sub, "same"),
    (lambda a, b: a * torch.sigmoid(b), "same"), (lambda a, b: a + b.mean(-1, keepdim=True), "same"),
    (lambda a, b: torch.where(a > b, a, b), "same"), (torch.maximum, "same"), (lambda a, b: torch.cat([a, b], 1), "but 1"),
    (lambda a, b: torch.cat([b, a, b], -1), "but -1"), (lambda a, b: torch.stack([a, b], 1).mean(1), "same"),
    (lambda a, b: a.clone().add_(b), "same"), (lambda a, b: a / (b.abs() + 1), "same"),
)  # fmt: skip


def pair(draw: Draw, x: Tensor) -> tuple[Step, Tensor] | None:
    function, fits = draw.rng.choice(PAIRS)
    left_out = {"same": None, "but 1": 1, "but -1": x.dim() - 1}[fits]

    def alike(v: Tensor) -> bool:
        return v.dim() == x.dim() and all(v.shape[d] == x.shape[d] for d in range(x.dim()) if d != left_out)

    return two(draw, x, function, alike)


# ---- drawing


def _inputs(rng: random.Random) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    batch, channels = rng.choice((1, 2, 3)), rng.choice((1, 3, 4, 8))
    rank = rng.choice((0, 0, 1, 1, 2, 2, 2, 2, 3))
    sizes = [rng.choice((1, 2, 4, 5, 8)) for _ in range(rank)] if rng.random() < 0.3 else [rng.choice((6, 8, 9)) for _ in range(rank)]
    return (torch.randn(batch, channels, *sizes, generator=generator) * rng.choice((0.3, 1, 4)),)


def _step(draw: Draw) -> tuple[Step, Tensor] | None:
    floats = [i for i, v in enumerate(draw.values) if v.is_floating_point()]
    draw.index = draw.rng.choice(floats[-4:])
    x = draw.values[draw.index]
    if draw.rng.random() < 0.2:
        return pair(draw, x)
    name, made, _ = draw.rng.choices(RULES, [weight for *_, weight in RULES])[0]
    found = made(draw, x)
    if found is None:
        return None
    part, function = found
    key = next((k for k, m in draw.net.parts.items() if m is part), f"{name}{len(draw.net.steps)}") if part is not None else None
    if part is not None:
        _randomize(part.eval(), draw.rng)
    result = function(part, x) if part is not None else function(x)
    if part is not None and key is not None:
        draw.net.parts[key] = part
    return Step(name, key, function, (draw.index,)), result


def _randomize(part: nn.Module, rng: random.Random) -> None:
    """Statistics and weights of BatchNorms, as training would leave them."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


def network(seed: int) -> tuple[Network, tuple[Tensor, ...]]:
    """A network and its example inputs: the same for the same seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    draw = Draw(rng)
    inputs = _inputs(rng)
    draw.values = list(inputs)
    wanted = rng.choice((1, 2, 4, 6, 8, 12, 16))
    with torch.no_grad():
        for _ in range(20 * wanted):
            if len(draw.net.steps) >= wanted:
                break
            found = _step(draw)
            if found is None or not found[1].numel() or found[1].numel() > MAX_VALUES or not bool(torch.isfinite(found[1]).all()):
                continue
            if found[1].abs().max() > 1e4:
                continue
            draw.net.steps.append(found[0])
            draw.values.append(found[1])
    unread = [i for i in range(len(inputs), len(draw.values)) if not any(i in s.inputs for s in draw.net.steps)] or [len(draw.values) - 1]
    form = rng.choice(("one", "tuple", "dict"))
    if form == "one" and len(unread) > 1:
        form = "tuple"
    draw.net.results = (form, tuple(unread[-4:]))
    used = {s.module for s in draw.net.steps}
    for name in [n for n in draw.net.parts if n not in used]:
        del draw.net.parts[name]
    return draw.net.eval(), inputs
