"""Training with parameters that ops take beside their data: scales, gates, embeddings, hand-written norms learn as in float, and convert.

Each student is trained towards the same model with other parameters, in float and with fake quantization, on the same batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import QConfig, QConfigMapping, convert_fx, get_default_qat_qconfig, prepare_qat_fx
from qcompiler.debug import compute_sqnr, parity
from qcompiler.fake_quantize import FakeQuantize, default_fused_act_fake_quant, default_lsq_act_fake_quant, disable_observer
from qcompiler.fake_quantize.following import CurrentFakeQuantize, current, hold_each_batch
from qcompiler.nn import quantized as nnq
from qcompiler.observers import HistogramObserver, MovingAverageMinMaxObserver
from qcompiler.qat.of_model import of_model_alone
from qcompiler.quantization import DeQuantStub, QuantStub, convert, prepare_qat
from tests.flow import ENGINES, QUANTIZED, randn

WIDTH = 8
Forward = Callable[[Any, Tensor], Tensor]


class Student(nn.Module):
    """A linear and the tensors of `make`; `compute(self, x)` is its forward."""

    def __init__(self, make: Callable[[], dict[str, Any]], compute: Forward) -> None:
        super().__init__()
        self.l = nn.Linear(WIDTH, WIDTH)
        for name, value in make().items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self.compute = (compute,)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute[0](self, x)


def full(value: float, *shape: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"g": nn.Parameter(torch.full(shape or (WIDTH,), value))}


def small(*shape: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"g": nn.Parameter(torch.randn(*shape or (WIDTH,)) * 0.02)}


def two(a: Any, b: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"a": nn.Parameter(torch.full((WIDTH,), a)), "b": nn.Parameter(torch.full((WIDTH,), b))}


def layer_norm(m: Any, x: Tensor) -> Tensor:
    y = m.l(x)
    centred = y - y.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * m.a + m.b


def rms_norm(m: Any, x: Tensor) -> Tensor:
    y = m.l(x)
    return m.g * y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)


def response_norm(m: Any, x: Tensor) -> Tensor:
    y = m.l(x)
    norm = torch.norm(y, p=2, dim=1, keepdim=True)
    return m.a * (y * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + m.b + y


def film(m: Any, x: Tensor) -> Tensor:
    gamma, beta = m.f(x).chunk(2, -1)
    return m.l(x) * (1 + gamma) + beta


def film_of_parameter(m: Any, x: Tensor) -> Tensor:
    gamma, beta = m.g.chunk(2, -1)
    return m.l(x) * (1 + gamma) + beta


def prelu(m: Any, x: Tensor) -> Tensor:
    y = m.l(x)
    return torch.where(y > 0, y, m.g * y)


def in_place(m: Any, x: Tensor) -> Tensor:
    y = m.l(x)
    y *= 1 + m.g
    y += m.g
    return y


def masked(m: Any, x: Tensor) -> Tensor:
    mask = (x > 0).float()
    return m.l(x) * mask + (1 - mask) * m.g


def by_statistics(m: Any, x: Tensor) -> Tensor:
    return (m.l(x) - m.mean) / torch.sqrt(m.var + 1e-5)


ROWS, TOKENS = (32, WIDTH), (16, 6, WIDTH)
STUDENTS: dict[str, tuple[Callable[[], dict[str, Any]], Forward, tuple[int, ...]]] = {
    "layer scale": (full(1e-6), lambda m, x: x + m.g * m.l(x), ROWS),
    "learned scalar": (lambda: {"g": nn.Parameter(torch.tensor(1e-3))}, lambda m, x: x + m.g * m.l(x), ROWS),
    "scalar from zero": (lambda: {"g": nn.Parameter(torch.tensor(0.0))}, lambda m, x: m.l(x) + m.g, ROWS),
    "rezero": (lambda: {"g": nn.Parameter(torch.zeros(1))}, lambda m, x: F.relu(x + m.g * F.relu(m.l(x))), ROWS),
    "sub": (small(), lambda m, x: m.l(x) - m.g, ROWS),
    "div": (full(1.0), lambda m, x: m.l(x) / m.g, ROWS),
    "numerator": (full(1.0), lambda m, x: m.g / (m.l(x).abs() + 1), ROWS),
    "position": (small(1, 6, WIDTH), lambda m, x: m.l(x) + m.g, TOKENS),
    "position before": (small(1, 6, WIDTH), lambda m, x: m.l(x + m.g), TOKENS),
    "class token": (small(1, 1, WIDTH), lambda m, x: torch.cat([m.g.expand(x.shape[0], -1, -1), m.l(x)], 1), TOKENS),
    "class token, linear": (small(1, 1, WIDTH), lambda m, x: m.l(torch.cat([m.g.expand(len(x), -1, -1), m.l(x)], 1)), TOKENS),
    "stacked": (small(1, WIDTH), lambda m, x: torch.stack([m.l(x), m.g.expand(x.shape[0], WIDTH)], 1), ROWS),
    "layer norm": (two(1.0, 0.0), layer_norm, ROWS),
    "rms norm": (full(1.0), rms_norm, ROWS),
    "response norm": (two(0.0, 0.0), response_norm, TOKENS),
    "film": (lambda: {"f": nn.Linear(WIDTH, 2 * WIDTH)}, film, ROWS),
    "film of a parameter": (small(1, 2 * WIDTH), film_of_parameter, ROWS),
    "indexed": (small(4, WIDTH), lambda m, x: m.l(x) + m.g[2], ROWS),
    "sigmoid": (full(-3.0), lambda m, x: m.l(x) * torch.sigmoid(m.g), ROWS),
    "exp": (lambda: {"g": nn.Parameter(torch.tensor(0.0))}, lambda m, x: m.l(x) * m.g.exp(), ROWS),
    "softplus": (full(0.0), lambda m, x: m.l(x) * F.softplus(m.g), ROWS),
    "prelu by hand": (full(0.25), prelu, ROWS),
    "where": (full(0.0), lambda m, x: torch.where(x > 0, m.l(x), m.g), ROWS),
    "maximum": (small(), lambda m, x: torch.maximum(m.l(x), m.g), ROWS),
    "masked": (small(), masked, ROWS),
    "matmul": (small(WIDTH, WIDTH), lambda m, x: m.l(x) @ m.g, ROWS),
    "matmul, left": (small(6, 6), lambda m, x: m.g @ m.l(x), TOKENS),
    "tied": (dict, lambda m, x: m.l(x) * m.l.weight.mean(0) + m.l.weight[0], ROWS),
    "rows of an embedding": (lambda: {"e": nn.Embedding(6, WIDTH)}, lambda m, x: m.l(x) + m.e.weight, TOKENS),
    "embedding": (lambda: {"e": nn.Embedding(6, WIDTH)}, lambda m, x: m.l(x) + m.e(torch.arange(6)), TOKENS),
    "two parameters": (two(1e-3, 1e-3), lambda m, x: x + (m.a * m.b + m.a) * m.l(x), ROWS),
    "temperature": (lambda: {"g": nn.Parameter(torch.tensor(2.65))}, lambda m, x: F.normalize(m.l(x), dim=-1) * m.g.exp(), ROWS),
    "in place": (small(), in_place, ROWS),
    "detached": (small(), lambda m, x: m.l(x) * m.g + m.g.detach() + m.g.data, ROWS),
    "of a convolution": (lambda: {"c": nn.Conv1d(6, 6, 3, padding=1), "g": nn.Parameter(torch.full((1, 6, 1), 1e-4))},
                         lambda m, x: m.l(x) + m.g * m.c(x), TOKENS),
    "buffer": (lambda: {"g": torch.linspace(0.5, 2, WIDTH)}, lambda m, x: m.l(x) * m.g, ROWS),
    "frozen, through exp": (lambda: {"g": nn.Parameter(torch.linspace(-1, 0.5, WIDTH), requires_grad=False)},
                            lambda m, x: m.l(x) * m.g.exp(), ROWS),
    "frozen": (lambda: {"g": nn.Parameter(torch.linspace(0.5, 2, WIDTH), requires_grad=False)}, lambda m, x: m.l(x) * m.g, ROWS),
    "statistics by hand": (lambda: {"mean": torch.zeros(WIDTH), "var": torch.ones(WIDTH)}, by_statistics, ROWS),
}  # fmt: skip


def student(name: str) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """(student, teacher, shape of the input)."""
    make, compute, shape = STUDENTS[name]
    torch.manual_seed(0)
    model = Student(make, compute)
    teacher, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.train(), teacher.eval(), shape


def train(model: nn.Module, teacher: nn.Module, shape: tuple[int, ...], steps: int = 100, **options: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.01)
    for step in range(steps):
        x = randn(*shape, seed=step)
        with torch.no_grad():
            wanted = teacher(x)
        optimizer.zero_grad()
        (model(x) - wanted).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", STUDENTS)
def test_it_learns_as_in_float_and_converts(name: str) -> None:
    model, teacher, shape = student(name)
    x, names = randn(*shape, seed=999), {n for n, _ in model.named_parameters()}
    prepared = prepare_qat_fx(copy.deepcopy(model), None, (x,), engine=ENGINES[len(name) % 4])
    assert {n for n, _ in prepared.named_parameters()} == names
    train(model, teacher, shape)
    train(prepared, teacher, shape)
    converted = convert_fx(prepared)  # with its check of parity on the example
    assert parity(prepared, converted, [x]).holds
    wanted = teacher(x)
    in_float, in_int8 = compute_sqnr(wanted, model.eval()(x)), compute_sqnr(wanted, converted(x))
    # A few roundings to 8 bits leave about 30 dB. Below 20 they hardly count: the student is as good as the float one, to 1 dB.
    assert in_int8 >= min(in_float - 1, 20), (in_float, in_int8)


def test_layer_scale_grows_as_far_as_in_float() -> None:
    reached = []
    for trains in (False, True):
        torch.manual_seed(0)
        model: Any = Student(*STUDENTS["layer scale"][:2])
        if trains:
            model = prepare_qat_fx(model.train(), None, (randn(*ROWS),))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(100):
            x = randn(*ROWS, seed=step)
            optimizer.zero_grad()
            (model(x) - 3 * x).square().mean().backward()
            optimizer.step()
        reached.append(float(model.g.detach().abs().mean()))
    assert reached[1] > 0.97 * reached[0] > 1
    convert_fx(model)


@pytest.mark.parametrize("kind", ["lsq", "histogram", "unfused", "signed"])
@pytest.mark.parametrize("name", ["layer scale", "sigmoid", "class token"])
def test_other_fake_quantization(name: str, kind: str) -> None:
    activation = {"lsq": default_lsq_act_fake_quant, "histogram": FakeQuantize.with_args(observer=HistogramObserver),
                  "unfused": FakeQuantize.with_args(observer=MovingAverageMinMaxObserver),
                  "signed": default_fused_act_fake_quant.with_args(dtype=torch.qint8, quant_min=-128, quant_max=127)}[kind]  # fmt: skip
    model, teacher, shape = student(name)
    mapping = QConfigMapping().set_global(QConfig(activation, get_default_qat_qconfig("x86").weight))
    prepared: Any = prepare_qat_fx(model, mapping, (randn(*shape),), QUANTIZED)  # else the last ops are float
    train(prepared, teacher, shape, 10)
    watch = next(m for m in prepared.modules() if isinstance(m, CurrentFakeQuantize))
    assert watch.dtype is (torch.int8 if kind == "signed" else torch.uint8)
    convert_fx(prepared)


def test_weights_change_after_the_last_forward() -> None:
    """An optimizer step, or a state_dict, may be the last thing that happened: convert looks at the parameters as they are."""
    model, _, shape = student("sigmoid")
    x = randn(*shape)
    prepared: Any = prepare_qat_fx(model, None, (x,))
    prepared(x)
    with torch.no_grad():
        prepared.g.copy_(torch.linspace(-2, 3, WIDTH))
    converted = convert_fx(prepared)
    assert parity(prepared, converted, [x]).holds


def test_frozen_statistics_are_those_of_data() -> None:
    """disable_observer keeps the ranges of activations. A parameter's range is no statistic: it goes where the parameter goes."""
    model, teacher, shape = student("layer scale")
    x = randn(*shape)
    prepared: Any = prepare_qat_fx(model, None, (x,), QUANTIZED)  # else the last ops are float
    train(prepared, teacher, shape, 50)
    prepared.apply(disable_observer)
    before = {n: b.clone() for n, b in prepared.named_buffers() if n.endswith("scale")}
    with torch.no_grad():
        prepared.g.mul_(2)
    prepared(x)
    moved = [n for n, b in prepared.named_buffers() if n in before and not torch.equal(b, before[n])]
    assert moved == ["observers.g.observer.scale"]


def test_requires_grad_that_changes_in_training() -> None:
    model, teacher, shape = student("layer scale")
    prepared: Any = prepare_qat_fx(model, None, (randn(*shape),))
    train(prepared, teacher, shape, 20)
    prepared.g.requires_grad_(False)
    held = prepared.g.clone()
    train(prepared, teacher, shape, 5)
    assert torch.equal(prepared.g, held)
    prepared.g.requires_grad_(True)
    train(prepared, teacher, shape, 5)
    assert not torch.equal(prepared.g, held)
    convert_fx(copy.deepcopy(prepared))


def test_what_is_of_the_model_alone() -> None:
    model, _, shape = student("class token")
    prepared: Any = prepare_qat_fx(model, None, (randn(*shape),))
    own = [node.name for node in of_model_alone(prepared.graph)]
    assert own[0] == "g" and "expand" in own and not {"x", "l", "cat"} & set(own)


def test_current_fake_quantization_clips_no_gradient() -> None:
    """The largest value of -a to a lies half-way between two codes, and beyond the last one for one of them."""
    g = nn.Parameter(torch.tensor([-0.06, 0.06, 0.01]))
    module = CurrentFakeQuantize(dtype=torch.quint8)
    module(g).sum().backward()
    assert torch.equal(g.grad, torch.ones(3))  # type: ignore[arg-type]
    assert float((module(g) - g).detach().abs().max()) <= 0.51 * float(module.scale)
    module.disable_fake_quant()
    assert module(g) is g


def test_a_moving_average_that_holds_each_batch() -> None:
    for made in (FakeQuantize(MovingAverageMinMaxObserver), default_fused_act_fake_quant()):
        hold_each_batch(made)
        made(torch.tensor([-1.0, 1.0]))
        x = torch.tensor([-9.0, 9.0], requires_grad=True)
        made(x).sum().backward()
        assert float((made(x) - x).detach().abs().max()) <= 0.51 * float(made.scale) and float(made.scale) < 18 / 250
        made(torch.tensor([-1.0, 1.0]))
        observer: Any = made.activation_post_process
        assert 8.9 < float(observer.max_val) < 9  # and shrinks by a hundredth of the way
        made.eval()(10 * x)  # nothing is trained there
        assert float(observer.max_val) < 10
        made.train().disable_observer()
        made(100 * x)
        assert float(observer.max_val) < 10


def test_a_fake_quantization_of_the_users_own_stays() -> None:
    from qcompiler.fake_quantize import FakeQuantizeBase, default_fixed_qparams_range_0to1_fake_quant

    class Own(FakeQuantizeBase):
        pass

    own, fixed = Own(), default_fixed_qparams_range_0to1_fake_quant()
    assert current(own) is own and current(fixed) is fixed
    narrow: Any = current(FakeQuantize(MovingAverageMinMaxObserver, 0, 15))
    assert (narrow.quant_min, narrow.quant_max) == (0, 15)
    reduced: Any = current(FakeQuantize(MovingAverageMinMaxObserver, reduce_range=True))
    assert (reduced.quant_min, reduced.quant_max) == (0, 127)


class ByHand(nn.Module):
    """The eager flow: a parameter goes through a QuantStub of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.g = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.full((WIDTH,), 1e-6))
        self.quant, self.quant_g, self.dequant = QuantStub(), QuantStub(), DeQuantStub()
        self.mul, self.add = nnq.FloatFunctional(), nnq.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        return self.dequant(self.add.add(x, self.mul.mul(self.l(x), self.quant_g(self.g))))


def test_eager_training() -> None:
    torch.manual_seed(0)
    model: Any = ByHand().train()
    teacher, in_float = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        teacher.g.fill_(0.8)
    train(in_float, teacher, ROWS)
    model.qconfig = get_default_qat_qconfig("x86")
    prepared: Any = prepare_qat(model)
    assert {n for n, _ in prepared.named_parameters()} == {n for n, _ in teacher.named_parameters()}
    train(prepared, teacher, ROWS)
    x = randn(*ROWS, seed=999)
    converted = convert(prepared.eval())
    torch.testing.assert_close(prepared.g, in_float.g, rtol=0, atol=0.05)  # of 0.3 that it has grown
    assert compute_sqnr(teacher(x), converted(x)) > min(compute_sqnr(teacher(x), in_float(x)) - 1, 20)
    assert compute_sqnr(prepared(x), converted(x)) > 28


class Places(nn.Module):
    """Embeddings of rows and columns, each repeated as often as the input has of the other, side by side or added up."""

    def __init__(self, put: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.last, self.put = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), put
        self.rows, self.columns = nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        height, width = y.shape[-2:]
        rows, columns = self.rows[:height].unsqueeze(1).repeat(1, width, 1), self.columns[:width].unsqueeze(0).repeat(height, 1, 1)
        return self.last(y.permute(0, 2, 3, 1) + self.put(rows, columns))  # type: ignore[no-any-return]


PUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "side by side": lambda a, b: torch.cat([a, b], -1),
    "means of copies": lambda a, b: torch.cat([a, b], -1) * 0.1 + a.mean(1, keepdim=True).repeat(1, 1, 2),
    "products of copies": lambda a, b: torch.cat([a * b, a - b], -1),
}


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", PUT)
def test_copies_whose_number_is_the_datas(name: str, backend: str) -> None:
    """What is computed from them keeps the range that training saw: the parameters alone do not tell it."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 9)
    prepared = prepare_qat_fx(Places(PUT[name]).train(), None, (x,), backend=backend)
    for _ in range(3):
        prepared(x).sum().backward()
    prepared.eval()
    module = convert_fx(prepared)
    assert parity(prepared, module, [x]).holds
    with torch.no_grad():
        for given in (x, randn(1, 3, 10, 12)):
            assert compute_sqnr(prepared(given), module(given)) > 25
