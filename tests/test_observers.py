"""Observers against torch.ao's, and the properties that hold for all of them."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.ao.quantization as ao
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcompiler import fake_quantize as fq
from qcompiler import observers as ob
from qcompiler import quantization as Q
from qcompiler.errors import CalibrationError, ConfigError, NumericsError
from qcompiler.ops.reference import quantize
from tests.cpu import SEVEN_BITS

FAST = settings(max_examples=40, derandomize=True, deadline=None)
TENSOR = [torch.per_tensor_affine, torch.per_tensor_symmetric]
CHANNEL = [torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams]
DTYPES = [torch.quint8, torch.qint8, torch.qint32]
PLAIN = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}
OWN = [ob.MinMaxObserver, ob.MovingAverageMinMaxObserver, ob.HistogramObserver, ob.PercentileObserver, ob.MSEObserver, ob.EntropyObserver]
CHANNELS = [ob.PerChannelMinMaxObserver, ob.MovingAveragePerChannelMinMaxObserver]


def same_qparams(ours, theirs, batches):
    for batch in batches:
        assert ours(batch) is batch
        theirs(batch)
    for mine, other in zip(ours.calculate_qparams(), theirs.calculate_qparams(), strict=True):
        assert torch.equal(mine, other) and mine.dtype == other.dtype
    assert (ours.quant_min, ours.quant_max) == (theirs.quant_min, theirs.quant_max)


@pytest.mark.parametrize("name", ["MinMaxObserver", "MovingAverageMinMaxObserver"])
@pytest.mark.parametrize("scheme", TENSOR, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra", [{}, {"reduce_range": True}, {"quant_min": 0, "quant_max": 63}, {"eps": 0.01}], ids=str)
def test_per_tensor_equals_torch(name, scheme, dtype, extra):
    if extra.get("reduce_range") and dtype is torch.quint8 and scheme is torch.per_tensor_symmetric:
        with pytest.raises(ConfigError):
            getattr(ob, name)(dtype=dtype, qscheme=scheme, **extra)
        return
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = getattr(ao, name)(dtype=dtype, qscheme=scheme, **extra)
    if extra.get("reduce_range") and dtype is torch.qint32:
        extra = {}  # ours, like torch's, does not reduce 32 bits
    for shift in (0.0, 0.7, -3.0):
        same_qparams(getattr(ob, name)(dtype=dtype, qscheme=scheme, **extra), copy.deepcopy(theirs), torch.randn(3, 4, 5) + shift)
        plain = getattr(ob, name)(dtype=PLAIN[dtype], qscheme=scheme, **extra)
        same_qparams(plain, copy.deepcopy(theirs), torch.randn(3, 4, 5).relu() * 30)


@pytest.mark.parametrize("name", ["PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver"])
@pytest.mark.parametrize("scheme", CHANNEL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_equals_torch(name, scheme, dtype, axis):
    torch.manual_seed(1)
    data = torch.randn(3, 4, 5, 6) * torch.tensor([0.0, 1.0, 1e-9, 50.0, 3.0])[None, None, :, None]
    settings_ = {"ch_axis": axis, "dtype": dtype, "qscheme": scheme}
    same_qparams(getattr(ob, name)(**settings_), getattr(ao, name)(**settings_), data)


def test_default_factories_make_what_torch_makes():
    torch.manual_seed(2)
    weight = torch.randn(8, 3, 3, 3)
    for name in ("default_weight_observer", "default_per_channel_weight_observer", "weight_observer_range_neg_127_to_127"):
        same_qparams(getattr(ob, name)(), getattr(ao.observer, name)(), [weight])
    same_qparams(ob.default_float_qparams_observer(), ao.default_float_qparams_observer(), [weight.flatten(1)])
    same_qparams(ob.default_float_qparams_observer_4bit(), ao.default_float_qparams_observer_4bit(), [weight.flatten(1)])


values = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True) | st.floats(-4, 4, width=32) | st.just(0.0)


@FAST
@given(st.lists(values, min_size=1, max_size=30), st.sampled_from(DTYPES), st.sampled_from(TENSOR), st.booleans())
def test_zero_is_exact(data, dtype, scheme, reduce):
    x = torch.tensor(data)
    for make in OWN:
        observer = make(dtype=dtype, qscheme=scheme)
        observer(x)
        observer.set_reduce_range(reduce)
        p = observer.qparams()
        assert math.isfinite(p.scale) and p.scale >= float(observer.eps)
        assert p.quant_min <= p.zero_point <= p.quant_max
        q = torch.clamp(torch.round(torch.tensor(0.0) / p.scale) + p.zero_point, p.quant_min, p.quant_max)
        assert (q - p.zero_point) * p.scale == 0


@FAST
@given(st.lists(values, min_size=4, max_size=40), st.sampled_from(DTYPES), st.sampled_from(CHANNEL[:2]))
def test_zero_is_exact_per_channel(data, dtype, scheme):
    x = torch.tensor(data[: len(data) // 4 * 4]).view(4, -1)
    for make in CHANNELS:
        observer = make(dtype=dtype, qscheme=scheme)
        observer(x)
        p = observer.qparams()
        assert p.channel_axis == 0
        assert all(math.isfinite(s) and s > 0 for s in p.scale) and all(p.quant_min <= z <= p.quant_max for z in p.zero_point)
        zeros = torch.round(torch.zeros(4) / torch.tensor(p.scale)) + torch.tensor(p.zero_point)
        assert torch.equal(zeros, torch.tensor(p.zero_point, dtype=torch.float32))  # 0 is an integer of each channel


def test_float_qparams_have_no_integer_for_zero():
    """per_channel_affine_float_qparams rounds x / s + z: its zero point is a real number, so 0 may lie between two integers."""
    observer = ob.default_float_qparams_observer()
    observer(torch.tensor([[-1.0, 2.0], [0.3, 0.9]]))
    _, zero_points = observer.calculate_qparams()
    assert zero_points.is_floating_point() and (zero_points != zero_points.round()).any()


@FAST
@given(st.integers(-200, 400), st.integers(0, 255), st.sampled_from([0.25, 0.5, 1.0, 4.0]), st.booleans())
def test_integers_are_rounded_half_to_even(halves, zero, scale, signed):
    """q = clamp(round(x / s) + z, low, high); scales are powers of two, so halves are exact."""
    dtype, low, high = (torch.qint8, -128, 127) if signed else (torch.quint8, 0, 255)
    zero, value = zero + low, halves / 2 * scale
    steps = halves // 2 + (halves % 2 and (halves // 2) % 2)  # half-way: to the even neighbour
    wanted = min(max(steps + zero, low), high)
    x = torch.tensor([value])  # (torch.quantize_per_tensor adds z before it rounds the last few elements: ties differ there)
    plain = quantize(x, scale, zero, low, high, torch.int8 if signed else torch.uint8)
    assert plain.item() == wanted
    settings_ = {"scale": scale, "zero_point": zero, "dtype": dtype, "quant_min": low, "quant_max": high}
    fake = fq.FixedQParamsFakeQuantize(ob.FixedQParamsObserver.with_args(**settings_))
    assert fake(x).item() == (wanted - zero) * scale


@FAST
@given(st.lists(values, min_size=1, max_size=30), st.sampled_from(DTYPES[:2]), st.sampled_from(TENSOR))
def test_min_max_equals_torch_on_any_data(data, dtype, scheme):
    """8 bits: torch's zero points of 32 bits overflow where the scale is eps."""
    same_qparams(ob.MinMaxObserver(dtype=dtype, qscheme=scheme), ao.MinMaxObserver(dtype=dtype, qscheme=scheme), [torch.tensor(data)])


@FAST
@given(st.lists(values, min_size=4, max_size=40), st.sampled_from(DTYPES[:2]), st.sampled_from(CHANNEL[:2]), st.sampled_from([0, 1]))
def test_per_channel_equals_torch_on_any_data(data, dtype, scheme, axis):
    x, made = torch.tensor(data[: len(data) // 4 * 4]).view(4, -1), {"dtype": dtype, "qscheme": scheme, "ch_axis": axis}
    same_qparams(ob.PerChannelMinMaxObserver(**made), ao.PerChannelMinMaxObserver(**made), [x])


@FAST
@given(st.lists(values, min_size=1, max_size=20), st.integers(0, 19), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_nan_and_inf_never_reach_a_scale(data, place, bad):
    for make in OWN:
        observer = make()
        observer(torch.tensor(data))
        before = observer.qparams()
        with pytest.raises(NumericsError):
            observer(torch.tensor([*data[: place % len(data)], bad, *data]))
        assert observer.qparams() == before


@FAST
@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30), st.integers(-10, 10), st.sampled_from([0.03125, 0.25]))
def test_gradients_go_straight_through(data, zero, scale):
    """1 where the value is in range, 0 where it is clipped."""
    x = torch.tensor(data, requires_grad=True)
    low, high = -16, 15
    observer = ob.FixedQParamsObserver.with_args(scale=scale, zero_point=zero, dtype=torch.qint8, quant_min=low, quant_max=high)
    fq.FixedQParamsFakeQuantize(observer)(x).sum().backward()
    steps = torch.round(x.detach() / scale) + zero
    assert torch.equal(x.grad, ((steps >= low) & (steps <= high)).float())


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


MERGING = [ob.MinMaxObserver, ob.HistogramObserver, ob.PerChannelMinMaxObserver]


def test_values_of_very_different_size_fall_into_the_same_bins_in_any_batch():
    data = torch.tensor([[3.2e29], [-1.8e-19]])
    whole, parts = ob.HistogramObserver(), ob.HistogramObserver()
    whole(data)
    for row in (1, 0):
        parts(data[row : row + 1])
    assert states_equal(parts, whole)


def test_a_batch_of_zeros_does_not_widen_the_bins():
    small, zeros = torch.tensor([[0.25, 0.0]]), torch.zeros(1, 2)
    for order in ((small, zeros), (zeros, small)):
        whole, one = ob.HistogramObserver(), ob.HistogramObserver()
        whole(torch.cat((small, zeros)))
        for batch in order:
            one(batch)
        assert states_equal(one, whole)


@FAST
@given(st.lists(st.lists(values, min_size=6, max_size=6), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_merge_and_batching_are_exact(rows, rng):
    data = torch.tensor(rows)
    for make in MERGING:
        if make is ob.PerChannelMinMaxObserver:
            whole, parts = make(ch_axis=1), [make(ch_axis=1) for _ in range(3)]
        else:
            whole, parts = make(), [make() for _ in range(3)]
        whole(data)
        order = list(range(len(rows)))
        rng.shuffle(order)
        for row in order:
            parts[rng.randrange(3)](data[row : row + 1])
        parts[0].merge(parts[2])
        parts[1].merge(parts[0])
        assert states_equal(parts[1], whole)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [37, 56])
def test_batching_of_large_samples_is_exact(layout, size):
    torch.manual_seed(3)
    data = (torch.randn(6, 24, size, size) * torch.logspace(-3, 2, 6)[:, None, None, None]).to(memory_format=layout)
    whole, single, pairs = ob.HistogramObserver(), ob.HistogramObserver(), ob.HistogramObserver()
    whole(data)
    for batch in data.flip(0).split(1):
        single(batch)
    for batch in data.split(2):
        pairs(batch)
    assert states_equal(whole, single) and states_equal(whole, pairs)


def test_averages_do_not_merge():
    for make in (ob.MovingAverageMinMaxObserver, ob.MovingAveragePerChannelMinMaxObserver):
        with pytest.raises(ConfigError, match="order"):
            make().merge(make())
    with pytest.raises(ConfigError):
        ob.MinMaxObserver().merge(ob.HistogramObserver())


def quantization_error(x, observer):
    scale, zero_point = (v.item() for v in observer.calculate_qparams())
    y = torch.fake_quantize_per_tensor_affine(x, scale, int(zero_point), observer.quant_min, observer.quant_max)
    return (y - x).double().square().mean().item()


def distributions():
    torch.manual_seed(4)
    shape = (8, 32, 28, 28)
    normal = torch.randn(shape)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "outliers": torch.where(torch.rand(shape) < 1e-4, normal * 20, normal),
        "laplace": torch.distributions.Laplace(0.0, 1.0).sample(shape),
        "lognormal": normal.exp(),
        "uniform": torch.rand(shape),
        "hardswish": nn.functional.hardswish(normal * 2),
        "relu6": (normal * 3).clamp(0, 6),
        "one outlier": torch.rand(shape).index_put((torch.tensor(0),) * 4, torch.tensor(50.0)),
        "small": torch.randn(8, 4, 20, 20),
    }


@pytest.mark.parametrize("name", list(distributions()))
@pytest.mark.parametrize("scheme", TENSOR, ids=str)
def test_histogram_error_is_no_worse_than_torch(name, scheme):
    data = distributions()[name]
    ours, theirs, careful = ob.HistogramObserver(qscheme=scheme), ao.HistogramObserver(qscheme=scheme), ob.MSEObserver(qscheme=scheme)
    for batch in data.split(2):
        ours(batch), theirs(batch), careful(batch)
    # 2 %: the range is chosen from a sample of the values, and both searches stop at a grid
    assert quantization_error(data, ours) <= 1.02 * quantization_error(data, theirs)
    assert quantization_error(data, careful) <= 1.02 * quantization_error(data, ours)


def test_percentile_and_entropy_clip_an_outlier():
    data = distributions()["one outlier"]
    for make in (ob.PercentileObserver, ob.EntropyObserver):
        observer = make()
        observer(data)
        assert 0.5 < observer.qparams().range[1] < 45
    full = ob.PercentileObserver(percentile=100.0)
    full(data)
    assert full.qparams().range[1] == pytest.approx(50.0)


@pytest.mark.parametrize("make", OWN + CHANNELS)
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 8, 40, 40)])
@pytest.mark.parametrize("bad,code", [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf")])
def test_nan_and_inf_change_nothing(make, shape, bad, code):
    observer = make()
    observer(torch.ones(shape))
    before = copy.deepcopy(observer)
    x = torch.ones(shape)
    x[1, 1, 2] = bad
    with pytest.raises(NumericsError, match=r"\d+ (NaN|inf)") as error:
        observer(x)
    assert error.value.code == code and states_equal(observer, before)


@pytest.mark.parametrize("make", OWN + CHANNELS)
def test_no_data_and_empty_batches(make):
    observer = make()
    assert not observer.observed
    with pytest.raises(CalibrationError):
        observer.calculate_qparams()
    observer(torch.zeros(0, 3, 4))
    assert not observer.observed
    observer(torch.randn(2, 3, 4))
    assert observer.observed and "uint8" in repr(observer)
    observer.reset_min_max_vals()
    assert not observer.observed


@pytest.mark.parametrize("make", OWN)
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-40, -1e-40])
def test_degenerate_ranges(make, value):
    observer = make()
    observer(torch.full((2, 3), value))
    p = observer.qparams()
    assert p.scale >= torch.finfo(torch.float32).eps
    low, high = p.range
    assert low - p.scale / 2 <= value <= high + p.scale / 2


def test_huge_ranges():
    for make in OWN:
        observer = make()
        observer(torch.tensor([[-3e38, 3e38, 1.0]]))
        assert math.isfinite(observer.qparams().scale)
    average = ob.MovingAverageMinMaxObserver(averaging_constant=1.0)
    average(torch.tensor([-3e38, 3e38]))
    before = copy.deepcopy(average)
    with pytest.raises(NumericsError):
        average(torch.tensor([3e38, 3e38]))
    assert states_equal(average, before)
    with pytest.raises(NumericsError):
        ob.MinMaxObserver()(torch.tensor([1e300], dtype=torch.float64))


@pytest.mark.parametrize("make", [*OWN, *CHANNELS, lambda: fq.FakeQuantize(), lambda: fq.default_per_channel_weight_fake_quant()])
def test_state_loads_into_a_fresh_observer(make):
    torch.manual_seed(5)
    first, second = make(), make()
    first(torch.randn(5, 3, 4, 4))
    second.load_state_dict(first.state_dict())
    more = torch.randn(5, 3, 4, 4)
    first(more), second(more)
    assert states_equal(first, second) and first.qparams() == second.qparams()


def test_observer_state_of_a_model():
    model, other = nn.Sequential(ob.MinMaxObserver(), nn.Linear(3, 3), fq.FakeQuantize()), nn.Sequential(nn.Linear(3, 3))
    model(torch.randn(2, 3))
    fresh = nn.Sequential(ob.MinMaxObserver(), nn.Linear(3, 3), fq.FakeQuantize())
    state = ob.get_observer_state_dict(model)
    assert not any(key.startswith("1.") for key in state)
    ob.load_observer_state_dict(fresh, state)
    assert fresh[2].qparams() == model[2].qparams()
    with pytest.raises(ConfigError):
        ob.load_observer_state_dict(other, state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ob.MinMaxObserver(quant_min=5, quant_max=5),
        lambda: ob.MinMaxObserver(quant_min=0, quant_max=256),
        lambda: ob.MinMaxObserver(quant_min=-1, quant_max=127),
        lambda: ob.MinMaxObserver(quant_min=0),
        lambda: ob.MinMaxObserver(dtype=torch.float16),
        lambda: ob.MinMaxObserver(qscheme=torch.per_channel_affine),
        lambda: ob.PerChannelMinMaxObserver(qscheme=torch.per_tensor_affine),
        lambda: ob.MinMaxObserver(eps=0.0),
        lambda: ob.HistogramObserver(bins=1),
        lambda: ob.PercentileObserver(percentile=101),
        lambda: ob.MSEObserver(power=0),
        lambda: ob.MovingAverageMinMaxObserver(averaging_constant=0),
        lambda: ob.FixedQParamsObserver(scale=0.0, zero_point=0),
        lambda: ob.FixedQParamsObserver(scale=1.0, zero_point=256),
        lambda: ob.FixedQParamsObserver(scale=1.0, zero_point=3, qscheme=torch.per_tensor_symmetric),
        lambda: ob.PerChannelMinMaxObserver(ch_axis=3)(torch.ones(2, 3)),
        lambda: fq.FakeQuantize(ob.NoopObserver),
        lambda: fq.FusedMovingAvgObsFakeQuantize(ob.MinMaxObserver),
    ],
)
def test_impossible_settings(make):
    with pytest.raises(ConfigError):
        make()


def test_reduce_range_is_the_users_or_the_compilers():
    open_, yes, no, custom = (
        ob.MinMaxObserver(),
        ob.MinMaxObserver(reduce_range=True),
        ob.MinMaxObserver(reduce_range=False),
        ob.MinMaxObserver(quant_min=0, quant_max=100),
    )
    for observer in (open_, yes, no, custom):
        observer(torch.tensor([-1.0, 2.0]))
        observer.set_reduce_range(True)
    assert [o.quant_max for o in (open_, yes, no, custom)] == [127, 127, 255, 100]
    open_.set_reduce_range(False)
    yes.set_reduce_range(False)
    assert open_.quant_max == 255 and yes.quant_max == 127 and open_.qparams() == no.qparams()


def test_fake_quantize_gradient_and_switches():
    module = fq.default_fake_quant()
    x = torch.linspace(-1, 3, 50, requires_grad=True)
    y = module(x)
    assert (y - x).abs().max() <= module.scale.item() / 2 + 1e-6
    module.apply(fq.disable_observer)
    (module(2 * x)).sum().backward()
    inside = (2 * x >= module.qparams().range[0] - module.scale / 2) & (2 * x <= module.qparams().range[1] + module.scale / 2)
    assert torch.equal(x.grad == 2, inside.detach())
    module.apply(fq.disable_fake_quant)
    assert module(x) is x


@pytest.mark.parametrize("name", ["act", "wt", "per_channel_wt"])
def test_fused_fake_quantize_equals_torch(name):
    torch.manual_seed(6)
    ours, theirs = getattr(fq, f"default_fused_{name}_fake_quant")(), getattr(ao, f"default_fused_{name}_fake_quant")()
    if name != "act":
        theirs.activation_post_process.averaging_constant = 1.0  # ours has no memory of old weights
    for x in torch.randn(3, 4, 6):
        assert torch.equal(ours(x), theirs(x))
    with pytest.raises(NumericsError):
        ours(torch.full((4, 6), math.nan))


class Peak(ob.ObserverBase):
    """What a user writes after torch's interface: forward and calculate_qparams, no more."""

    def __init__(self, dtype=torch.quint8):
        super().__init__(dtype)
        self.register_buffer("peak", torch.ones(()))  # a scale of 1/127 without data, as a class that does not check would have

    def forward(self, x):
        if x.numel():
            self.peak = torch.maximum(self.peak, x.detach().abs().max())
        return x

    def calculate_qparams(self):
        return self.peak.reshape(1) / 127, torch.tensor([128])


def with_peaks(flow):
    torch.manual_seed(0)
    settings = Q.QConfig(activation=Peak.with_args(dtype=torch.quint8), weight=Q.default_weight_observer)
    net = Q.QuantWrapper(nn.Linear(4, 3)).eval() if flow == "eager" else nn.Linear(4, 3).eval()
    net.qconfig = settings
    x = 2 * torch.randn(8, 4)
    return net, x, Q.prepare(net) if flow == "eager" else Q.prepare_fx(net, Q.QConfigMapping().set_global(settings), (x,))


def to_int8(flow, prepared):
    return Q.convert(prepared) if flow == "eager" else Q.convert_fx(prepared)


@pytest.mark.usefixtures("eight_bits")
@pytest.mark.parametrize("flow", ["eager", "graph"])
def test_an_observer_of_the_users_own_without_data(flow):
    _, x, prepared = with_peaks(flow)
    untouched = copy.deepcopy(prepared.state_dict())
    for step in (lambda: None, lambda: prepared(x[:0]), lambda: prepared.load_state_dict(untouched)):
        step()
        with pytest.raises(CalibrationError, match=r"0 of \d observers saw data"):
            to_int8(flow, prepared)
    _, _, other = with_peaks(flow)
    prepared(x)
    other.load_state_dict(prepared.state_dict())  # statistics of a model that saw data
    assert torch.equal(to_int8(flow, copy.deepcopy(other))(x), to_int8(flow, prepared)(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_observer_of_the_users_own_loads_statistics_of_another_device():
    observer = Peak().cuda()
    observer.load_state_dict({"peak": torch.tensor(3.0)})
    assert observer.observed and float(observer.peak) == 3


def test_an_observer_of_another_kind_is_refused():
    class Duck(nn.Module):
        def calculate_qparams(self):
            return torch.ones(1), torch.zeros(1)

    for role in ({"activation": Duck, "weight": None}, {"activation": None, "weight": Duck}):
        with pytest.raises(ConfigError, match="Duck, which is no observer") as caught:
            Q.QConfig(**role)
        assert "ObserverBase" in caught.value.hint


def test_torchs_observers_in_a_qconfig_of_ours():
    theirs = torch.ao.quantization.MinMaxObserver.with_args(dtype=torch.quint8)
    made = Q.QConfig(activation=theirs, weight=torch.ao.quantization.default_weight_observer)
    assert made == Q.QConfig(ob.MinMaxObserver.with_args(dtype=torch.quint8), Q.default_weight_observer)


@pytest.mark.parametrize("flow", ["eager", "graph"])
def test_an_observer_of_the_users_own(flow):
    net, x, prepared = with_peaks(flow)
    prepared(x)
    if flow == "eager" and SEVEN_BITS:  # it gives 8 bits, whatever it is told
        with pytest.warns(UserWarning, match="activations have 8 bits"):
            to_int8(flow, prepared)
        return
    small = to_int8(flow, prepared)
    assert (small(x) - net(x)).abs().max() < 0.1
    if flow == "eager":
        assert small.quant.scale.item() == pytest.approx(float(x.abs().max() / 127)) and small.quant.zero_point.item() == 128


def test_an_observer_without_scales_says_what_it_is_for():
    with pytest.raises(CalibrationError, match="gives no scales") as caught:
        ob.PlaceholderObserver().qparams()
    assert "quantize_dynamic" in caught.value.hint
