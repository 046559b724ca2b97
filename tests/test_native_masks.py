"""Masks, choices by them, rows of tables, what sizes settle, and floats that end a network: kernels, and networks of one region each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import qcompiler
from qcompiler.backends.native.regions import regions_of
from qcompiler.debug import compute_sqnr
from qcompiler.errors import InputError
from tests.native_abi import Kernels, QOperand, aligned
from tests.native_nets import Through, check_bits, conv, converted, example, region_of, steps_apart
from tests.test_native_dynamic import dynamic
from tests.test_native_export import build, computed, flat
from tests.test_native_floats import Memory, floats, operand, result, tensor

COMPARED: dict[str, Any] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor,
}  # fmt: skip
FIRST = 6  # QC_EQ


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("shape", [(3, 4, 37), (1, 1, 1)])
def test_comparisons(kernels: Kernels, name: str, shape: tuple[int, ...]) -> None:
    a, b = Memory(np.rint(floats(*shape))), Memory(np.rint(floats(*shape, seed=1)))
    a.array[..., 0], b.array[..., -1] = np.nan, -0.0
    y = Memory(np.full(shape, 9, np.float32))
    kernels("float_pair", 3, a=operand(a.array), b=operand(b.array), y=result(y.array), op=FIRST + list(COMPARED).index(name),
            lo=-np.inf, hi=np.inf)  # fmt: skip
    np.testing.assert_array_equal(y.array, COMPARED[name](a.array, b.array).astype(np.float32))
    assert y.untouched()


@pytest.mark.parametrize("shape", [(3, 4, 37), (2, 1, 600), (1, 1, 1)])
def test_where(kernels: Kernels, shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    condition, a, b = Memory(np.rint(floats(*shape[1:]) / 2)), Memory(floats(*shape)), Memory(codes)
    wide = np.broadcast_to(condition.array, shape)
    when = QOperand(tensor(wide, condition.address), wide.strides[-1] if shape[-1] > 1 else 4, 1.0, 0, 0)
    y, z = Memory(np.zeros(shape, np.float32)), Memory(np.zeros(shape, np.uint8))
    expected = np.where(wide != 0, a.array, (codes.astype(np.float32) - np.float32(9)) * np.float32(0.5))
    kernels("where", 3, condition=when, a=operand(a.array), b=operand(b.array, 0.5, 9), y=result(y.array))
    np.testing.assert_array_equal(y.array, expected)
    kernels("where", condition=when, a=operand(a.array), b=operand(b.array, 0.5, 9), y=result(z.array, 4.0, 100))
    np.testing.assert_array_equal(z.array, np.clip(np.rint(expected * 4) + 100, 0, 255).astype(np.uint8))
    assert y.untouched() and z.untouched()


@pytest.mark.parametrize("width", [1, 16, 300])
def test_rows_of_tables(kernels: Kernels, width: int) -> None:
    numbers = Memory(np.array([[0, 6, 3], [7, -1, 2.5]], np.float32)[..., None])
    table, codes = aligned(floats(7, width)), aligned(np.random.default_rng(1).integers(0, 256, (7, width), dtype=np.uint8))
    scale, zero = aligned(np.random.default_rng(2).random(7)), aligned(np.random.default_rng(3).random(7) * 255)
    whole = [(0, 0), (0, 1), (0, 2)]
    for quantized in (False, True):
        y = Memory(np.zeros((2, 3, width), np.float32))
        kernels("embed", 2, x=operand(numbers.array), y=result(y.array), table=table.ctypes.data, rows=7,
                codes=codes.ctypes.data if quantized else None, scale=scale.ctypes.data, zero=zero.ctypes.data)  # fmt: skip
        rows = table.view(np.float32).reshape(7, width)
        if quantized:
            z, s = zero.view(np.float64)[:, None], scale.view(np.float64)[:, None]
            rows = ((codes.reshape(7, width) - z) * s).astype(np.float32)
        for place in whole:
            np.testing.assert_array_equal(y.array[place], rows[int(numbers.array[place][0])])
        assert np.isnan(y.array[1]).all() and y.untouched()  # no such rows


def masked(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    z = torch.where(y > 0.3, y, -y)
    z = z.masked_fill((z < -1) | ~(y.abs() < 0.8), -2.5)
    return m[1](z) + (y[:, :4] != 0).float()  # type: ignore[no-any-return]


def summed(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m[0](x).flatten(2)
    a = torch.einsum("bct,bdt->bcd", y, m[1](y))
    return m[2](torch.einsum("bcd, b d t -> b t c", a, y)), torch.einsum("bct,c->bt", y, torch.ones(8))


def turned(m: Any, x: Tensor) -> Tensor:
    """A norm of channels that do not lie side by side."""
    return m[1](m[0](x).permute(0, 2, 3, 1).reshape(x.shape[0], 8, x.shape[2], x.shape[3]))  # type: ignore[no-any-return]


def banded(m: Any, x: Tensor) -> Tensor:
    """Attention with a mask that is made of the size, by assignments to parts and comparisons."""
    y = m[0](x)
    n = y.shape[1]
    parts = y.new_zeros((n, n))
    parts[: n // 2, n // 2 :] = 1
    parts[n // 2 :, : n // 2] = 2
    far = (torch.arange(n)[:, None] - torch.arange(n)).abs() > 3
    mask = torch.zeros(n, n).masked_fill(parts != 0, -100.0).masked_fill(far, -50.0)
    scores = torch.matmul(y, y.transpose(1, 2)) * (y.shape[-1] ** -0.5) + mask
    return m[1](torch.matmul(torch.softmax(scores, -1), y))  # type: ignore[no-any-return]


def lengthened(m: Any, x: Tensor) -> Tensor:
    return m[1](F.normalize(m[0](x), dim=-1)) + F.normalize(m[0](x)[..., :4], dim=1)  # type: ignore[no-any-return]


def positions(m: Any, x: Tensor) -> Tensor:
    """Sums over eight dimensions, of operands that lie in other orders: MViT's relative positions."""
    y = m[0](x).softmax(-1).unflatten(-1, (2, 2, 2))  # N, T, 2, 2, 2
    a, b = y[:, :, :, :, None, :, None, None], y.permute(0, 1, 4, 2, 3)[:, :, :, :, None, None, :, None]
    c = torch.where(a > b, a, b) + y.permute(0, 1, 3, 4, 2)[:, :, :, :, None, None, None, :]
    return m[1](c.flatten(2).mean(2, keepdim=True) + m[0](x))  # type: ignore[no-any-return]


def ended(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(conv(3, 8), nn.Conv2d(8, 4, 1), *layers)


IMAGE = (2, 3, 9, 8)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "masks": (lambda: Through(masked, conv(3, 8, padding=1), conv(8, 4, 1)), IMAGE),
    "sums by letters": (lambda: Through(summed, conv(3, 8), nn.Conv1d(8, 8, 1), nn.Linear(8, 5)), IMAGE),
    "a norm of turned channels": (lambda: Through(turned, conv(3, 8, padding=1), nn.BatchNorm2d(8)), IMAGE),
    "a norm at the end": (ended(nn.ReLU(), nn.BatchNorm2d(4)), IMAGE),
    "sums over eight dimensions": (lambda: Through(positions, nn.Linear(6, 8), nn.Linear(8, 3)), (2, 3, 6)),
    "a mask of sizes": (lambda: Through(banded, nn.Linear(6, 8), nn.Linear(8, 3)), (2, 9, 6)),
    "rows of length 1": (lambda: Through(lengthened, nn.Linear(6, 8), nn.Linear(8, 4)), (2, 9, 6)),
    "logarithms of a softmax": (lambda: Through(lambda m, x: F.log_softmax(m[0](x), 1), ended()()), IMAGE),
    "logarithms of a softmax, every argument given": (lambda: Through(lambda m, x: F.log_softmax(m[0](x), 1, 3, None), ended()()), IMAGE),
    "bilinear at the end": (ended(nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE),
    "nearest at the end": (ended(nn.Upsample(scale_factor=2)), IMAGE),
    "cubic at the end": (ended(nn.Upsample(size=(13, 5), mode="bicubic", align_corners=True)), IMAGE),
    "cubic": (lambda: nn.Sequential(conv(3, 8), nn.Upsample(scale_factor=1.7, mode="bicubic"), conv(8, 4, 1)), IMAGE),
    "average at the end": (ended(nn.AvgPool2d(3, 2, 1)), IMAGE),
    "largest at the end": (ended(nn.MaxPool2d(3, 2, 1, ceil_mode=True)), IMAGE),
    "adaptive at the end": (ended(nn.AdaptiveAvgPool2d((3, 2))), IMAGE),
    "quotient": (lambda: Through(lambda m, x: m[2](m[0](x) / (1 + m[1](m[0](x)).abs())), conv(3, 8), conv(8, 8, 1), conv(8, 4, 1)), IMAGE),
    "a sum whose part is asked for its size": (lambda: Through(asked, conv(3, 8), nn.Conv2d(8, 8, 1), conv(8, 4, 1)), IMAGE),
    "lengths of channels": (lambda: Through(responses, conv(3, 8), conv(8, 4, 1)), IMAGE),
    "variances": (lambda: Through(standardized, conv(3, 8), conv(8, 4, 1), nn.Linear(8, 4)), IMAGE),
    "cut at places by name": (lambda: Through(cut, nn.Linear(6, 8), nn.Linear(8, 4)), (2, 9, 6)),
}  # fmt: skip


def responses(m: Any, x: Tensor) -> Tensor:
    """ConvNeXt V2's global response norm, by lengths of codes and of floats."""
    y = m[0](x)
    far = y.norm(p=2, dim=(2, 3), keepdim=True)
    z = torch.sigmoid(y).softmax(1)
    return m[1](
        y
        + y * (far / (far.mean(1, keepdim=True) + 1e-6))
        - torch.linalg.vector_norm(z, dim=1, keepdim=True) / (1 + z.norm(dim=1, keepdim=True))
    )  # type: ignore[no-any-return]


def standardized(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m[0](x)
    z = (y - y.mean(1, keepdim=True)) / torch.sqrt(y.var(1, unbiased=False, keepdim=True) + 1e-3)
    return m[1](z / (0.1 + z.std((2, 3), keepdim=True))), m[2](torch.var(y, (2, 3), correction=0)) + y.std((1, 2, 3))[:, None]


def asked(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    z = m[1](y)
    return m[2](F.interpolate(z + y, size=z.shape[-2:]))  # type: ignore[no-any-return]


def cut(m: Any, x: Tensor) -> Tensor:
    first, rest = torch.tensor_split(m[0](x), indices=(1,), dim=1)
    return m[1](torch.cat([rest, first * 2], 1))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # of torch's variances of an empty batch
@pytest.mark.parametrize("name", NETS)
def test_it_is_one_region_with_equal_bits_near_the_quantized_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    make, shape = NETS[name]
    module, graph = converted(make(), x := example(shape))
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    assert {c.op for c in module.program.calls if not c.op.startswith("guard.")} <= {"runtime.run_region", "operator.getitem"}
    check_bits(module, graph, x, monkeypatch)


def test_masks_follow_the_size() -> None:
    module, graph = converted(Through(banded, nn.Linear(6, 8), nn.Linear(8, 3)).eval(), example((2, 9, 6)))
    for length in (2, 5, 30):
        x = example((1, length, 6))
        with torch.no_grad():
            assert compute_sqnr(graph(x), module(x)) > 35


class Words(nn.Module):
    """Token and position tables, a mask of the caller's, attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.linear, self.norm = nn.Embedding(30, 12), nn.Embedding(20, 12), nn.Linear(12, 12), nn.LayerNorm(12)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        scores = self.linear(x) @ x.transpose(1, 2)
        scores = scores.masked_fill(mask[:, None, :] == 0, float("-inf"))
        return self.linear(torch.softmax(scores, -1) @ x)  # type: ignore[no-any-return]


def words() -> tuple[Any, Any, tuple[Tensor, Tensor]]:
    torch.manual_seed(5)
    ids, mask = torch.randint(0, 30, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    prepared = qcompiler.prepare_fx(Words().eval(), None, (ids, mask), backend="native")
    qcompiler.calibrate(prepared, [(ids, mask)])
    return qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared), (ids, mask)


def test_words_and_a_mask_are_one_region() -> None:
    module, graph, (ids, mask) = words()
    assert len(regions_of(module)) == 1
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    more = torch.randint(0, 30, (3, 11))
    for given in ((ids, mask), (more, torch.ones(3, 11, dtype=torch.int64)), (ids[:, :1], mask[:, :1])):
        with torch.no_grad():
            assert compute_sqnr(graph(*given), module(*given)) > 60


@pytest.mark.parametrize("wrong", [-1, 30])
def test_a_number_of_no_row_is_an_error(wrong: int) -> None:
    module, _, (ids, mask) = words()
    ids = ids.clone()
    ids[0, 0] = wrong
    with pytest.raises(InputError, match="30 rows"):
        module(ids, mask)


def test_exported_masks_follow_the_sizes(tmp_path: Path) -> None:
    module, _ = converted(Through(banded, nn.Linear(6, 8), nn.Linear(8, 3)).eval(), x := example((2, 9, 6)))
    folder = qcompiler.export_c(module, tmp_path / "c", name="banded", sizes=[(2, 9, 6), (1, 4, 6)])
    program = build(folder, "banded")
    for number, given in enumerate((x, example((1, 4, 6)))):
        assert np.array_equal(computed(program, "banded", [given], number)[1], flat(module(given)))


def test_an_exported_lstm(tmp_path: Path) -> None:
    module, _, x = dynamic("lstm, states given")
    folder = qcompiler.export_c(module, tmp_path / "c", name="states")
    found, expected = computed(build(folder, "states"), "states", [x])[1], flat(module(x))
    assert np.array_equal(np.sort(found), np.sort(expected))  # the header says in which order the results stand


def test_masks_and_loops_as_operators() -> None:
    """torch.export with a size that varies, and under autocast."""
    module, _ = converted(Through(banded, nn.Linear(6, 8), nn.Linear(8, 3)).eval(), x := example((2, 9, 6)))
    length = torch.export.Dim("length", min=2, max=60)
    exported = torch.export.export(module, (x,), dynamic_shapes=({1: length},)).module()
    for n in (9, 14):
        given = example((2, n, 6))
        with torch.autocast("cpu"):
            assert torch.equal(module(given), exported(given))
    lstm, _, x = dynamic("lstm")
    made = torch.export.export(lstm, (x,)).module()
    assert all(map(torch.equal, pytree.tree_leaves(made(x)), pytree.tree_leaves(lstm(x))))


class Tables(nn.Module):
    """As a decoder starts from: zeros and positions, which sizes settle, as operands of int8 layers and beside them."""

    def __init__(self, way: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.position = way, nn.Parameter(torch.randn(5, 8))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        position = self.position.unsqueeze(0).repeat(x.shape[0], 1, 1)
        return self.way(*self.layers, x, position, torch.zeros_like(position))


@pytest.mark.parametrize(
    "way",
    [
        lambda a, b, c, d, x, p, z: d(F.scaled_dot_product_attention(a(z + p), b(x), c(z)) + z),
        lambda a, b, c, d, x, p, z: d(c(x).sort(1)[0] + a(z + p) + z) + z,
        lambda a, b, c, d, x, p, z: d(a(z) + b(z + p) + c(x)) + (z + p),
    ],
    ids=["attention", "two regions", "operands"],
)
def test_what_sizes_settle_is_rounded_and_read_as_floats(way: Callable[..., Tensor]) -> None:
    """Sums of codes may be one step off where they lie next to a tie."""
    module, graph = converted(Tables(way).eval(), example((2, 5, 8)))
    for n in (2, 3):
        assert max(steps_apart(module, graph, example((n, 5, 8))).values()) <= 1
