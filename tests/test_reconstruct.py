"""Weights rounded for what their results are: rows of products of every kind of op, and whole small models in all back ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import QConfig, calibrate, convert_fx, convert_to_reference_fx, prepare_fx
from qcompiler.backends.torch.kernels.depthwise import safe_channels
from qcompiler.errors import CalibrationError
from qcompiler.observers import default_observer, default_per_channel_weight_observer
from qcompiler.ops.reference import dequantize_weight
from qcompiler.tune import Corrections, correct_bias, reconstruct
from qcompiler.tune.lane import Lane
from qcompiler.tune.reconstruct import _grid
from qcompiler.tune.sampled_rows import sample
from qcompiler.tune.sites import as_rows, from_rows, sites
from qcompiler.workflow.twins import twins

OPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2)), (4, 7, 6)),
    "conv2d, same": (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), (4, 7, 6)),
    "conv2d, reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 1), padding=(1, 0, 0), stride=(1, 2, 1)), (2, 4, 5, 3)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, stride=2, bias=False), (4, 6, 6)),
    "depthwise, two each": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6)),
    "pointwise": (lambda: nn.Conv2d(4, 6, 1), (4, 5, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (4, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), groups=2, dilation=(2, 1), bias=False), (4, 5, 4)),
    "linear": (lambda: nn.Linear(5, 7), (5,)),
    "linear of rank 4": (lambda: nn.Linear(5, 7, bias=False), (2, 3, 5)),
}


def data_for(shape: tuple[int, ...], seed: int = 1, count: int = 12) -> Tensor:
    """Each input has a brightness of its own, as photos have, which all products of a row see: their rounding errors add up."""
    generator = torch.Generator().manual_seed(seed)
    x, level = (torch.randn(count, *sizes, generator=generator) for sizes in (shape, (1,) * len(shape)))
    return 0.3 * x + level + 1


FEW_STEPS = QConfig(default_observer, default_per_channel_weight_observer.with_args(quant_min=-7, quant_max=7))


def prepared_op(name: str, backend: str = "reference") -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    make, shape = OPS[name]
    x = data_for(shape)
    prepared = prepare_fx(nn.Sequential(make()).eval(), None, (x[:2],), backend=backend)
    calibrate(prepared, [x])
    return prepared, x


def sqnr(wanted: Tensor, made: Tensor) -> float:
    wanted, made = wanted.detach(), made.detach()
    return float(10 * torch.log10(wanted.square().sum() / (wanted - made).square().sum()))


@pytest.mark.parametrize("name", OPS)
def test_rows_times_weight_is_the_op(name: str) -> None:
    """With all positions drawn each result is found, in order."""
    prepared, x = prepared_op(name)
    (twin,) = twins(prepared)
    (site,) = sites(twin)
    lane = Lane(twin.quantized, [((x,), {})])
    lane.advance(site.node)
    given, codes = lane.value(site.node.args[0], 0), as_rows(site, site.weight.codes).double()
    rows = sample(site, given, 2 * given, 10**6, torch.Generator())
    made = rows.rounded.double() @ _grid(site).real(codes).mT
    weight = dequantize_weight(site.weight.codes, site.weight.scale, site.weight.zero_point, site.weight.axis)
    whole = site.node.target(given, weight, None, **site.node.kwargs).double()
    wanted = whole.reshape(1, -1, whole.shape[-1])
    if site.is_conv:
        wanted = whole.reshape(len(x), site.groups, -1, whole[0, 0].numel()).permute(1, 0, 3, 2).flatten(1, 2)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(rows.floats, 2 * rows.rounded) and torch.equal(from_rows(site, codes), site.weight.codes.double())


@pytest.mark.parametrize("name", OPS)
def test_the_result_is_nearer_on_other_data(name: str) -> None:
    """One op of 4-bit weights, so that rounding is what is lost."""
    torch.manual_seed(0)
    make, shape = OPS[name]
    x, other = data_for(shape, count=256), data_for(shape, seed=2, count=64)
    model = nn.Sequential(make()).eval()
    prepared = prepare_fx(model, FEW_STEPS, (x[:2],), backend="reference")
    calibrate(prepared, [x])
    found = reconstruct(prepared, [x[:128], x[128:]])
    assert found.codes and max(int(codes.abs().max()) for codes in found.codes.values()) <= 7
    plain, made = (convert_to_reference_fx(prepared, corrections=c) for c in (None, found))
    wanted = model(other)
    assert sqnr(wanted, made(other)) > sqnr(wanted, plain(other)) + 1.5  # from 1.9, depthwise, to 10
    assert sqnr(model(x), made(x)) > sqnr(model(x), plain(x)) + 1.5


class Net(nn.Module):
    """Clamps, a depthwise op, a weight of two users, a residual, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU())
        self.twice = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor, again: bool = True) -> Tensor:
        x = self.stem(x)
        x = x + self.twice(self.deep(x))
        x = torch.relu(self.twice(x)) if again else x
        return self.fc(x.mean((2, 3)))


def prepared_net(backend: str, **options: object) -> tuple[fx.GraphModule, Tensor, nn.Module]:
    torch.manual_seed(0)
    model, x = Net().eval(), data_for((3, 10, 10), count=96)
    prepared = prepare_fx(model, FEW_STEPS, (x[:2],), backend=backend, **options)
    calibrate(prepared, [x])
    return prepared, x, model


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_back_ends_compute_what_the_reference_does(backend: str) -> None:
    prepared, x, model = prepared_net(backend)
    found = reconstruct(prepared, [x[:48], x[48:]])
    assert set(found.codes) == {"stem.0.weight", "deep.0.weight", "fc.weight"} and len(found.biases) == 5  # not the shared weight
    wanted = convert_to_reference_fx(prepared, corrections=found)(x)
    made, plain = convert_fx(prepared, corrections=found), convert_fx(prepared)
    assert sqnr(wanted, made(x)) > 35
    other = data_for((3, 10, 10), seed=3, count=24)
    assert sqnr(model(other), made(other)) > sqnr(model(other), plain(other)) + 1


def test_codes_fit_the_kernel_whose_sums_have_16_bits() -> None:
    prepared, x, _ = prepared_net("torch", engine="fbgemm", isa="avx512_vnni")
    found = reconstruct(prepared, [x])
    assert bool(safe_channels(found.codes["deep.0.weight"]).all())
    assert convert_to_reference_fx(prepared, corrections=found)  # which proves it again


def test_codes_come_with_the_scales_that_they_are_for() -> None:
    """So that no other choice of scales, of another back end or a later version, can take them for its own."""
    prepared, x, _ = prepared_net("native")
    found, plain = reconstruct(prepared, [x]), convert_to_reference_fx(prepared).state_dict()
    assert found.scales.keys() == found.codes.keys()
    assert all(torch.equal(scale, plain[f"{name}_scale"]) for name, scale in found.scales.items())
    again = reconstruct(prepared, [x], corrections=found)
    assert all(torch.equal(again.scales[name], scale) for name, scale in found.scales.items())
    assert torch.equal(
        convert_to_reference_fx(prepared, corrections=found).state_dict()["deep.0.weight_scale"], found.scales["deep.0.weight"]
    )


def test_the_same_seed_gives_the_same() -> None:
    prepared, x, _ = prepared_net("native")
    one, two = (reconstruct(prepared, [x], seed=3) for _ in range(2))
    assert one == two and one != reconstruct(prepared, [x], seed=4)


def test_interrupted_it_changes_nothing() -> None:
    prepared, x, _ = prepared_net("native")
    before, told = convert_to_reference_fx(prepared).state_dict(), list[tuple[int, int]]()

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(prepared, [x], tell=tell)
    after = convert_to_reference_fx(prepared).state_dict()
    assert told == [(1, 5), (2, 5)] and all(torch.equal(before[name], after[name]) for name in before)


def test_on_top_of_other_corrections() -> None:
    prepared, x, _ = prepared_net("native")
    first = Corrections(weights={"fc.weight": torch.ones(10, 16)}, keep_float={"deep"})
    found = reconstruct(prepared, [x], corrections=first)
    assert torch.equal(found.weights["fc.weight"], torch.ones(10, 16)) and "deep.0.weight" not in found.codes
    assert int(found.codes["fc.weight"].min()) > 4  # the rounded ones


def test_forms_of_the_call() -> None:
    """What both read stays as it is where both have data; with data of one form alone, that is what is fitted."""
    torch.manual_seed(0)
    x = data_for((3, 8, 8))
    prepared = prepare_fx(Net().eval(), None, (x[:1],), example_kwargs=[{}, {"again": False}], backend="native")
    calibrate(prepared, [(x, True), (x, False)])
    assert not reconstruct(prepared, [(x, True), (x, False)])
    found = reconstruct(prepared, [(x, True)])
    made, plain, wanted = convert_fx(prepared, corrections=found), convert_fx(prepared), Net.forward(_model(), x)
    assert sqnr(wanted, made(x)) > sqnr(wanted, plain(x))


def _model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_a_bias_where_the_result_is_not_cut() -> None:
    """A channel that is mostly below zero: its mean error where it is cut says nothing of where it is not."""
    prepared, x, model = prepared_net("native")
    found = correct_bias(prepared, [x])
    assert not found.codes and len(found.biases) == 5
    wanted = model(x).detach()
    made, plain = (convert_to_reference_fx(prepared, corrections=c)(x) for c in (found, None))
    assert (wanted - made).mean(0).abs().max() < 0.3 * (wanted - plain).mean(0).abs().max()


def test_what_a_range_cuts_off_is_not_made_up_for() -> None:
    """One row in eight has numbers a hundred times as large, which the range cuts: the others are not to pay for them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8)).eval()
    usual, large = torch.randn(256, 16), torch.randn(256, 16)
    large[::8, :4] = 100.0
    prepared = prepare_fx(model, None, (usual,), backend="reference")
    calibrate(prepared, large.split(64))
    cut = Corrections(ranges={"input_1": (-4.0, 4.0)})
    found = reconstruct(prepared, large.split(64), corrections=cut)
    with torch.no_grad():
        before, after = (sqnr(model(usual), convert_to_reference_fx(prepared, corrections=c)(usual)) for c in (cut, found))
    assert after > before - 0.5 and before > 25


def test_no_batches() -> None:
    prepared, _, _ = prepared_net("native")
    with pytest.raises(CalibrationError, match="0 batches"):
        reconstruct(prepared, [])
