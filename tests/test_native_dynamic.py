"""What is quantized at run time, on every instruction set: ranges, dynamic linears, LSTM and GRU, against the references' bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import qcompiler
from qcompiler.backends.native.packing import padded
from qcompiler.debug import compute_sqnr
from qcompiler.ops.reference import dynamic_quantize_dequantize
from qcompiler.quantization import default_dynamic_qconfig
from tests import native_float_oracle as reference
from tests.native_abi import Kernels, aligned
from tests.native_nets import Through, check_equal_bits, example, region_of
from tests.test_native_floats import Memory, floats, operand, tensor

RANGES: dict[str, Any] = {
    "both signs": lambda: floats(3, 5, 37), "positive": lambda: np.abs(floats(2, 300)) + np.float32(3),
    "negative": lambda: -np.abs(floats(9)), "zeros": lambda: np.zeros((2, 3), np.float32), "one": lambda: floats(1),
    "small": lambda: floats(4, 19) * np.float32(1e-4), "tiny": lambda: floats(4, 19) * np.float32(1e-9),
    "large": lambda: floats(4, 19) * np.float32(1e30),
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
def test_ranges_and_codes(kernels: Kernels, name: str) -> None:
    x, ends = Memory(RANGES[name]()), Memory(np.zeros(2, np.float64))
    kernels("range", x=operand(x.array), y=ends.address)
    assert tuple(ends.array) == reference.ends_of(x.array)
    y = Memory(np.zeros(x.array.shape, np.uint8))
    kernels("encode", 3, x=operand(x.array), ends=ends.address, y=tensor(y.array))
    np.testing.assert_array_equal(y.array, reference.encoded(x.array, reference.ends_of(x.array)))
    real = (y.array.astype(np.float32) - np.float32(ends.array[1])) * np.float32(ends.array[0])
    np.testing.assert_array_equal(real, dynamic_quantize_dequantize(torch.from_numpy(x.array), 0, 255).numpy())
    assert y.untouched() and ends.untouched()


@pytest.mark.parametrize("channels", [1, 32, 45])
def test_factors(kernels: Kernels, channels: int) -> None:
    rng, count = np.random.default_rng(channels), padded(channels)
    weight = rng.integers(-128, 128, (channels, 11), dtype=np.int8)
    scale, bias = aligned(rng.random(channels) * 0.1), aligned(rng.standard_normal(channels))
    sums = aligned(weight.sum(1, dtype=np.int32))
    ends, m = Memory(np.array([0.0371, 77.0])), Memory(np.full(2 * count, np.nan, np.float32))
    kernels("factors", 2, ends=ends.address, scale=scale.ctypes.data, bias=bias.ctypes.data, wsum=sums.ctypes.data, m=m.address,
            channels=channels, padded=count)  # fmt: skip
    factor = (0.0371 * scale.view(np.float64)).astype(np.float32)
    expected = (bias.view(np.float64) - 77.0 * sums.view(np.int32) * factor.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(m.array[:channels], factor)
    np.testing.assert_array_equal(m.array[count : count + channels], expected)
    assert not m.array[channels:count].any() and not m.array[count + channels :].any() and m.untouched()


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 16), (5, 37)])
@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh", "relu"])
def test_gates(kernels: Kernels, rows: int, width: int, kind: str) -> None:
    number, gates = {"lstm": (0, 4), "gru": (1, 3), "tanh": (2, 1), "relu": (3, 1)}[kind]
    ih, hh = Memory(floats(rows, gates * width)), Memory(floats(rows, gates * width, seed=1))
    hidden, cell = Memory(floats(rows, width, seed=2)), Memory(floats(rows, width, seed=3))
    out = Memory(np.zeros((rows, width + 2), np.float32))
    before = hidden.array.copy(), cell.array.copy()
    kernels("gates", 2, ih=ih.address, hh=hh.address, hidden=hidden.address, cell=cell.address, out=out.address, rows=rows, width=width,
            out_row=width + 2, kind=number)  # fmt: skip
    if kind == "lstm":
        expected, state = reference.lstm_step(ih.array, hh.array, before[1])
        np.testing.assert_array_equal(cell.array, state)
    elif kind == "gru":
        expected = reference.gru_step(ih.array, hh.array, before[0])
    else:
        v = ih.array + hh.array
        expected = reference.tanh(v) if kind == "tanh" else np.maximum(v, 0)
    np.testing.assert_array_equal(hidden.array, expected)
    np.testing.assert_array_equal(out.array[:, :width], expected)
    assert not out.array[:, width:].any() and hidden.untouched() and cell.untouched() and out.untouched()


def last(m: Any, x: Tensor) -> Tensor:
    return m[1](m[0](x)[0][:, -1])  # type: ignore[no-any-return]


def twice(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    """States that come out and go in again, of another batch on the way."""
    _, (h, c) = m[0](x[:, :2])
    y, (h, c) = m[0](x, (h[:, :1].expand(-1, x.shape[1], -1), c[:, :1].expand(-1, x.shape[1], -1)))
    return m[1](y), h, c


def stepped(m: Any, x: Tensor) -> Any:
    state = None
    for row in x.unbind(1):
        state = m[0](row) if state is None else m[0](row, state)
    return state


def shared(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Two linears of one value, which is read as it is, too."""
    y = torch.tanh(m[0](x))
    return m[1](y), m[2](y), y


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 7, bias=False)), (5, 20)),
    "a linear of rows": (lambda: nn.Sequential(nn.Linear(20, 33), nn.Hardtanh(), nn.Linear(33, 7)), (2, 3, 20)),
    "two linears of one value": (lambda: Through(shared, nn.Linear(9, 8), nn.Linear(8, 5), nn.Linear(8, 3)), (4, 9)),
    "lstm": (lambda: nn.LSTM(20, 11), (7, 3, 20)),
    "lstm, two layers, both ways": (lambda: nn.LSTM(20, 11, 2, batch_first=True, bidirectional=True), (3, 7, 20)),
    "linear of the transposed": (lambda: Through(lambda m, x: m[0](x.transpose(1, 2)), nn.Linear(6, 9)), (3, 6, 7)),
    "lstm, batch first": (
        lambda: Through(lambda m, x: m[0](torch.tanh(m[1](x))), nn.LSTM(9, 5, batch_first=True), nn.Linear(20, 9)), (3, 7, 20),
    ),
    "lstm of one sequence": (lambda: nn.LSTM(20, 33), (7, 20)),
    "lstm, states given": (lambda: Through(twice, nn.LSTM(20, 11), nn.Linear(11, 5)), (4, 3, 20)),
    "lstm of width 1": (lambda: nn.LSTM(1, 1, bias=False), (2, 1, 1)),
    "gru, two layers, both ways": (lambda: nn.GRU(20, 11, 2, bidirectional=True, bias=False), (7, 3, 20)),
    "lstm and linear": (lambda: Through(last, nn.LSTM(20, 16, batch_first=True), nn.Linear(16, 4)), (3, 7, 20)),
    "lstm cell": (lambda: Through(stepped, nn.LSTMCell(20, 11)), (4, 3, 20)),
    "gru cell": (lambda: Through(stepped, nn.GRUCell(20, 11)), (4, 3, 20)),
}  # fmt: skip
FIXED = ("lstm cell", "gru cell")  # as many steps as the traced ones


def dynamic(name: str) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(3)
    model, x = NETS[name][0]().eval(), example(NETS[name][1])
    mapping = qcompiler.QConfigMapping().set_global(default_dynamic_qconfig)
    prepared = qcompiler.prepare_fx(model, mapping, (x,), backend="native")
    return qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared), x


@pytest.mark.parametrize("name", NETS)
def test_dynamic_networks_are_one_region_with_equal_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, graph, x = dynamic(name)
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    more = torch.cat([x, example(tuple(x.shape), 9)])
    for given in (x, more, x * 0, x[:1]):
        expected = pytree.tree_leaves(module(given))
        with torch.no_grad():
            for a, b in zip(pytree.tree_leaves(graph(given)), expected, strict=True):
                assert a.shape == b.shape
                assert compute_sqnr(a, b) > 90 if bool(a.any()) else torch.equal(a, b)  # roundings in another order
        check_equal_bits(module, given, expected, monkeypatch)


def test_a_dynamic_linear_has_the_bits_of_the_reference() -> None:
    module, _, x = dynamic("linear")
    first = {name.rpartition(".")[2]: value for name, value in module.state_dict().items() if name.startswith("0.")}
    scale = np.broadcast_to(first["weight_scale"].double().numpy().reshape(-1), (33,))
    y = reference.dynamic_linear(x.numpy(), first["weight"].numpy(), scale, first["bias"].double().numpy())
    seen = region_of(module).watch(x)
    np.testing.assert_array_equal(
        next(value for value in seen.values() if tuple(value.shape) == (5, 33) and value.dtype is torch.float32), y
    )


def test_empty_batches() -> None:
    for name in ("linear", "linear of the transposed", "lstm", "lstm, batch first", "gru, two layers, both ways"):
        module, graph, x = dynamic(name)
        given = x[:, :0] if name in ("lstm", "gru, two layers, both ways") else x[:0]
        with torch.no_grad():
            for a, b in zip(pytree.tree_leaves(graph(given)), pytree.tree_leaves(module(given)), strict=True):
                assert a.shape == b.shape


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("take", [lambda r: r[1][0][-1:], lambda r: r[0][:, -1], lambda r: r[1][0][-1:].mean(0) + r[0][-1, 0]])
def test_what_a_recurrent_layer_in_torch_gives_goes_into_a_region(layer: type[nn.LSTM], take: Callable[[Any], Tensor]) -> None:
    """Parts of parts are taken in torch, where the layer is."""
    torch.manual_seed(0)
    model = Through(lambda m, x: m[1](take(m[0](x))), layer(8, 12, batch_first=True), nn.Linear(12, 3)).eval()
    x = torch.randn(3, 7, 8)
    mapping = qcompiler.get_default_qconfig_mapping("x86").set_object_type(layer, None)
    prepared = qcompiler.prepare_fx(model, mapping, (x,), backend="native")
    qcompiler.calibrate(prepared, [x])
    small = qcompiler.convert_fx(prepared)
    with torch.no_grad():
        assert compute_sqnr(model(x), small(x)) > 25


class Given(nn.Module):
    """A recurrent layer or cell with the states that the caller gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.r = layer

    def forward(self, x: Tensor, *states: Tensor) -> Any:
        return self.r(x, states if len(states) == 2 else states[0])


STATES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], list[tuple[int, ...]]]] = {
    "lstm": (lambda: nn.LSTM(8, 16), (5, 3, 8), (1, 3, 16), [(2, 3, 16), (1, 1, 16), (3, 1, 16), (1, 6, 8)]),
    "lstm, layers": (lambda: nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True), (3, 5, 8), (4, 3, 4), [(5, 3, 4), (2, 3, 4)]),
    "gru": (lambda: nn.GRU(8, 16), (5, 3, 8), (1, 3, 16), [(2, 3, 16), (1, 2, 24)]),
    "gru of one sequence": (lambda: nn.GRU(8, 16), (5, 8), (1, 16), [(2, 16), (1, 8)]),
    "lstm cell": (lambda: nn.LSTMCell(8, 16), (3, 8), (3, 16), [(6, 8), (1, 48), (1, 16)]),
    "gru cell": (lambda: nn.GRUCell(8, 16), (3, 8), (3, 16), [(6, 8), (2, 24)]),
    "gru cell of one": (lambda: nn.GRUCell(8, 16), (8,), (16,), [(8,), (32,)]),
}


@pytest.mark.parametrize("name", STATES)
def test_states_of_other_sizes_are_refused_as_torch_does(name: str) -> None:
    make, shape, state, others = STATES[name]
    model, count = Given(make()).eval(), 2 if "lstm" in name else 1
    x, given = example(shape), [example(state, 3 + i) for i in range(count)]
    module = qcompiler.quantize(model, [(x, *given)], backend="native", progress=False)
    with torch.no_grad():
        wanted, found = (pytree.tree_leaves(m(x, *given)) for m in (model, module))
    assert region_of(module) and all(compute_sqnr(a, b) > 25 for a, b in zip(wanted, found, strict=True))
    for other in others:
        for wrong in {0, count - 1}:
            states = [example(other) if i == wrong else value for i, value in enumerate(given)]
            with pytest.raises(RuntimeError):
                model(x, *states)
            with pytest.raises(qcompiler.InputError, match="a state of size"):
                module(x, *states)
