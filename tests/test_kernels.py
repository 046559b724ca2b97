"""Every kernel the table selects, on every engine, against float64; the table's own promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import QConfigMapping, get_default_qconfig
from qcompiler.backends.torch.bench import measure
from qcompiler.backends.torch.bench.cases import Case, Int8, activation, all_cases
from qcompiler.backends.torch.bench.measure import MEASURED, Bench, tap_pairs
from qcompiler.backends.torch.kernels import groups
from qcompiler.backends.torch.kernels.conv import pairs_taps, saturation
from qcompiler.backends.torch.kernels.depthwise import safe_weight, shrink_to_safe
from qcompiler.backends.torch.kernels.elementwise import table_kernels
from qcompiler.backends.torch.kernels.onednn_faults import misplaces_groups
from qcompiler.backends.torch.kernels.table import TABLE, Refused, select
from qcompiler.backends.torch.runtime import channels, fit, float_windows, floats, packs
from qcompiler.backends.torch.runtime import functions as runtime
from qcompiler.backends.torch.site import ENGINES, VNNI, Operand, Site, bound_codes, host_isa, needs_relu
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.debug import compute_sqnr
from qcompiler.errors import ConfigError
from qcompiler.ir.types import QParams
from qcompiler.ops.spec import Op, Output, Param
from qcompiler.ops.table import OPS
from tests.flow import flow

AVAILABLE = [e for e in ENGINES if e in torch.backends.quantized.supported_engines]


@cache
def cases(high: int, extreme: bool) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in all_cases(high, extreme, seed=1):
        found.setdefault(case.op, []).append(case)
    return found


def is_exact(case: Case) -> bool:
    """Whether its result is one of the codes of its input, or of a table made in float64."""
    row = case.row
    copies = row.output is Output.SAME and not (row.averages(case.attributes) or row.adds_values(case.attributes))
    cut_between_codes = row.clamp is not None and row.clamp(case.attributes) != (0.0, None)
    return (row.elementwise and row.name not in TABLE) or (copies and not cut_between_codes)


OP_NAMES = sorted(cases(127, True))


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize("op", OP_NAMES)
def test_selected_kernel_is_within_one_quantum(op: str, engine: str) -> None:
    isa = host_isa()
    for high, extreme in ((127, True), (255, False)):
        for case in cases(high, extreme)[op]:
            bench = Bench(case, engine, isa)
            kernel = select(bench.site)
            assert not isinstance(kernel, Refused), f"{case.label}: {kernel}"
            if high == 255 and kernel.saturates(bench.site):
                continue  # such a site gets 7-bit activations, or weights that prove safe
            allowed = 0 if is_exact(case) else 1
            assert bench.error(kernel) <= allowed, f"{case.label} by {kernel.emit.__name__}"


def test_every_op_of_the_table_has_cases_and_measurements() -> None:
    measured = json.loads(MEASURED.read_text())["engines"]
    assert set(TABLE) <= set(OP_NAMES)
    assert {row.name for row in OPS.rows.values() if row.elementwise} <= set(OP_NAMES)
    for engine in ENGINES:
        assert set(measured[engine]) == {
            op for op in OP_NAMES if any(engine in kernel.engines for kernel in TABLE.get(op, table_kernels(op)))
        }
        for op in measured[engine]:
            found = measured[engine][op].values()
            assert not any("problems" in entry for entry in found), (engine, op)
            declared = [entry for entry in found if entry.get("error_255", 0) > 1]
            assert all(entry["declared_saturating"] and entry["error_127"] <= 1 for entry in declared), (engine, op)


@pytest.mark.parametrize("op", ["conv2d", "mul", "group_norm", "gather", "sinh"])
def test_a_case_has_the_same_numbers_alone(op: str) -> None:
    """Its stream belongs to it: neither other ops nor what was drawn before changes it."""
    torch.manual_seed(7)
    alone, among = list(all_cases(127, True, seed=1, ops=(op,))), cases(127, True)[op]
    assert [case.label for case in alone] == [case.label for case in among]
    assert all(_same(a.args, b.args) for a, b in zip(alone, among, strict=True))
    other = list(all_cases(127, True, seed=2, ops=(op,)))
    assert not all(_same(a.args, b.args) for a, b in zip(other, among, strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Int8):
        return _same((a.values, a.scale), (b.values, b.scale))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def test_measuring_one_op_leaves_the_records_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"torch": "2", "engines": {engine: {"add": {"a": 1}, "mul": {"b": 2}} for engine in ENGINES}}
    asked: list[Any] = []
    monkeypatch.setattr(measure, "measure", lambda engine, isa, ops, progress: asked.append(ops) or {op: {"new": 3} for op in ops})
    found = measure.measured_anew(known, ["sinh", "mul"])
    assert found["torch"] == "2" and asked == [["sinh", "mul"]] * len(ENGINES)
    assert all(records == {"add": {"a": 1}, "mul": {"new": 3}, "sinh": {"new": 3}} for records in found["engines"].values())
    assert all(list(records) == sorted(records) for records in found["engines"].values())
    with pytest.raises(SystemExit, match="no op is called 'hardswsh'; did you mean hardswish"):
        measure.measured_anew(known, ["hardswsh"])


def _site(bounds: tuple[float | None, float | None] | None, scale: float, zero_point: int, high: int = 255) -> Site:
    op = Op("none", F.conv2d, "", (), Output.OWN)
    output = QParams(scale, zero_point, 0, high, torch.uint8)
    return Site(op, fx.Graph().call_function(F.conv2d), (), {} if bounds is None else {"bounds": bounds}, output)


@pytest.mark.parametrize(
    ("bounds", "scale", "zero_point", "high", "codes", "relu"),
    [
        (None, 0.1, 7, 255, (0, 255), False),
        ((0.0, None), 0.1, 0, 255, (0, 255), False),  # saturation at code 0 is the ReLU
        ((0.0, None), 0.1, 20, 255, (20, 255), True),
        ((0.0, 6.0), 6 / 255, 0, 255, (0, 255), False),  # ReLU6 for nothing
        ((0.0, 6.0), 0.1, 0, 255, (0, 60), False),
        ((-1.0, 1.0), 0.01, 128, 255, (28, 228), False),
        ((0.0, 6.0), 6 / 127, 0, 127, (0, 127), False),  # kernels saturate at 255, so 127 must be cut
        ((0.0, float("inf")), 0.1, 0, 255, (0, 255), False),
    ],
)
def test_bounds_cost_nothing_where_saturation_is_the_clamp(bounds, scale, zero_point, high, codes, relu) -> None:  # type: ignore[no-untyped-def]
    site = _site(bounds, scale, zero_point, high)
    assert bound_codes(site) == codes
    assert needs_relu(site) is relu


def test_an_elementwise_op_without_a_kernel_is_an_exact_table() -> None:
    op = Op("cube", lambda x: x * x * x, "x", (Param("x"),), Output.OWN, elementwise=True)

    class Cube(Case):
        @property
        def row(self) -> Op:
            return op

    bench = Bench(Cube("cube", "", (activation((2, 5, 3), 255),)), "x86", "avx512_vnni")
    kernel = select(bench.site)
    assert not isinstance(kernel, Refused)
    assert bench.error(kernel) == 0


@pytest.mark.parametrize(("settings", "code"), [({"engine": "cuda"}, "engine"), ({"isa": "avx"}, "isa"), ({"isa": "AVX2"}, "isa")])
def test_a_target_that_does_not_exist_is_an_error(settings: dict[str, str], code: str) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings.values()))) as found:
        TorchTarget(**settings)
    assert found.value.code == code


def test_refusals_are_reasons() -> None:
    graph = fx.Graph()
    x = Operand(graph.placeholder("x"), QParams(0.1, 0, 0, 255, torch.uint8))
    row = Op("linear", F.linear, "", (), Output.OWN)
    site = Site(row, graph.call_function(F.linear), (x, graph.placeholder("w")), {}, x.qparams)
    assert str(select(site)) == "its weight is computed, not a constant"
    unknown = Site(Op("fft", torch.fft.fft, "", (), Output.FLOAT), site.node, (x,), {}, x.qparams)
    assert str(select(unknown)) == "no int8 kernel for fft on x86"


@pytest.mark.parametrize(
    "function",
    [
        f
        for m in (runtime, packs, channels, floats, float_windows, fit)
        for f in vars(m).values()
        if getattr(f, "__module__", "") == m.__name__
    ],
    ids=lambda function: function.__name__,
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_functions_of_lowered_graphs_script(function: Callable[..., Any]) -> None:
    torch.jit.script(function)


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "engine", "isa", "expected"),
    [
        ("conv2d", (32, 1, 3, 3), {"groups": 32, "padding": (1, 1)}, "fbgemm", "avx512_vnni", "pairs"),
        ("conv2d", (32, 1, 3, 3), {"groups": 32, "padding": (1, 1)}, "x86", "avx512_vnni", None),
        ("conv2d", (128, 1, 3, 3), {"groups": 128, "padding": (1, 1)}, "x86", "avx512_vnni", "pairs"),
        ("conv2d", (128, 1, 3, 3), {"groups": 128, "padding": (1, 1)}, "onednn", "avx512_vnni", None),
        ("conv2d", (128, 1, 3, 3), {"groups": 128, "padding": (1, 1)}, "qnnpack", "avx2", None),
        ("conv2d", (32, 1, 3, 3), {"groups": 32, "padding": (0, 0)}, "fbgemm", "avx512_vnni", None),
        ("conv2d", (32, 16, 3, 3), {}, "fbgemm", "avx512_vnni", None),
        ("conv2d", (32, 16, 3, 3), {}, "x86", "avx2", "any"),
    ],
)
def test_what_may_overflow_16_bits(op, shape, attributes, engine, isa, expected) -> None:  # type: ignore[no-untyped-def]
    assert saturation(OPS.rows[op].family, shape, attributes, engine, isa) == expected


def _depthwise_error(weight: Tensor, scale: Tensor) -> int:
    """fbgemm's depthwise kernel at 0..255, on the inputs that overflow first."""
    axes = weight.dim() - 2
    channels, worst = weight.shape[0], 0
    values = torch.round(weight / scale.reshape(-1, *[1] * (axes + 1))).clamp(-128, 127).to(torch.int8)
    real = values.double() * scale.double().reshape(-1, *[1] * (axes + 1))
    half, one = [k // 2 for k in weight.shape[2:]], [1] * axes
    prepack = {2: packs.prepack_conv2d, 3: packs.prepack_conv3d}[axes]
    kernel = {2: torch.ops.quantized.conv2d.new, 3: torch.ops.quantized.conv3d.new}[axes]
    pack = prepack(values, scale, torch.zeros(channels), None, one, half, one, channels, 0, "")
    convolve = {2: F.conv2d, 3: F.conv3d}[axes]
    for zero_point, extreme in ((0, True), (128, False), (30, True)):
        x = activation((2, channels, *[9] * axes), 255, extreme, 0.02, zero_point)
        truth = convolve((x.int_repr().double() - zero_point) * 0.02, real, None, 1, half, 1, channels)
        step = max(float(truth.max() - truth.min()), 1e-6) / 255
        zero = round(-min(float(truth.min()), 0.0) / step)
        exact = (torch.round(truth / step) + zero).clamp(0, 255)
        worst = max(worst, int((kernel(x, pack, step, zero).int_repr() - exact).abs().max()))
    return worst


@pytest.mark.skipif("fbgemm" not in AVAILABLE, reason="fbgemm's depthwise kernel")
@pytest.mark.parametrize("shape", [(16, 1, 3, 3), (8, 1, 5, 5), (8, 1, 3, 3, 3)])
def test_weights_that_prove_safe_keep_eight_bits(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    torch.manual_seed(0)
    weight = torch.rand(shape) + 0.2
    scale = weight.amax(tuple(range(1, len(shape)))) / 127
    safe = shrink_to_safe(weight, scale)
    rounded = [torch.round(weight / s.reshape(-1, *[1] * (len(shape) - 1))).to(torch.int8) for s in (scale, safe)]
    assert not safe_weight(rounded[0])
    assert safe_weight(rounded[1])
    assert bool((safe >= scale).all()) and bool((safe <= scale * 2.01).all())
    assert torch.equal(shrink_to_safe(weight, safe), safe)
    assert _depthwise_error(weight, safe) <= 1
    if host_isa() in ("avx512_vnni", "avx512", "avx2"):
        assert _depthwise_error(weight, scale) > 10


@pytest.mark.skipif("fbgemm" not in AVAILABLE, reason="fbgemm's depthwise kernel")
def test_neighbouring_taps_pair_up() -> None:
    assert tap_pairs((3, 3)) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert pairs_taps((16, 1, 3, 3), {"groups": 16, "padding": 1})


@pytest.mark.parametrize(("shape", "count", "crawls", "size"), [
    ((24, 4, 3, 3), 6, False, 2),  # 6 groups fill one and a half vectors; 8 channels a group have another kernel
    ((20, 4, 3, 3), 5, False, 5),
    ((24, 2, 3, 3), 12, False, 4),
    ((32, 4, 3, 3), 8, False, 1),  # whole vectors
    ((16, 4, 3, 3), 4, False, 1),  # one
    ((12, 4, 3, 3), 3, False, 1),  # one in part
    ((24, 4, 1, 1), 6, False, 1),  # another window
    ((48, 4, 3, 3), 6, False, 1),  # more out than in
    ((24, 4, 3), 6, False, 1),  # 1-d
    ((24, 4, 3, 3, 3), 6, False, 2),
    ((116, 1, 3, 3), 116, True, 4),  # 29 is wrong with AMX
    ((144, 1, 3, 3), 144, True, 16),
    ((512, 1, 3, 3), 512, True, 16),
        ((132, 1, 5, 5), 132, True, 12),
        ((104, 1, 3, 3), 104, True, 8),
        ((416, 1, 3, 3), 104, True, 8),  # 32 channels out of a group
    ((2048, 1, 3, 3), 2048, True, 32),
    ((92, 1, 3, 3), 92, True, 1),  # onednn anyway
])  # fmt: skip
def test_groups_are_merged_where_the_packing_library_fails_or_crawls(shape: tuple[int, ...], count: int, crawls: bool, size: int) -> None:
    assert groups.merge(shape, count, lambda n: not crawls or n > groups.ONEDNN_GROUPS, crawls) == size


@pytest.mark.skipif(host_isa() not in VNNI or "x86" not in AVAILABLE, reason="onednn packs convolutions on VNNI")
@pytest.mark.parametrize(
    ("convolution", "merged"),
    [
        (nn.Conv2d(128, 128, 3, padding=1, groups=128), False),  # fbgemm's own kernel
        (nn.Conv2d(128, 128, 5, stride=2, padding=2, groups=128), False),
        (nn.Conv2d(128, 128, 3, groups=128), True),  # windows that are not centred
        (nn.Conv2d(128, 128, 3, padding=2, dilation=2, groups=128), True),
        (nn.Conv2d(128, 128, (1, 3), padding=(0, 1), groups=128), True),
        (nn.Conv2d(128, 128, 9, padding=4, groups=128), True),
        (nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect", groups=128), True),
        (nn.Conv2d(128, 128, 4, padding=2, groups=128), True),
        (nn.Conv2d(104, 416, 3, padding=1, groups=104), True),
        (nn.Conv1d(128, 128, 9, padding=4, groups=128), True),
        (nn.Conv3d(128, 128, (1, 3, 3), padding=(0, 1, 1), groups=128), True),
        (nn.Conv2d(128, 128, 9, padding="same", groups=128), True),
        (nn.Conv2d(96, 96, 3, groups=96), False),  # onednn's already
    ],
    ids=repr,
)
def test_depthwise_convolutions_without_a_kernel_of_fbgemm_are_merged(convolution: nn.Conv2d, merged: bool) -> None:
    sizes = [12] * (convolution.weight.dim() - 2)
    x = torch.randn(2, convolution.in_channels, *sizes, generator=torch.Generator().manual_seed(0))
    qconfig = get_default_qconfig("x86")
    named = QConfigMapping().set_global(qconfig).set_module_name("0", qconfig)  # where float is faster, too
    result = flow(nn.Sequential(convolution).eval(), (x,), mapping=named, engine="x86")
    assert ("merge_groups" in str(result.module.program)) is merged
    with torch.no_grad():
        assert compute_sqnr(result.reference(x), result.module(x)) > 45


@pytest.mark.skipif("fbgemm" not in AVAILABLE, reason="fbgemm's depthwise kernel")
@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_vnni"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)])
@pytest.mark.filterwarnings("ignore:this module was compiled for CPUs with VNNI")
def test_depthwise_weights_of_any_size_keep_fbgemms_kernel(kernel: int, stride: int, isa: str) -> None:
    """With VNNI their scales are enlarged until 8-bit activations cannot overflow; without, activations have 7 bits, and a kernel of
    merged groups, which took 5 to 20 times as long, adds in 16 bits as well."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(32, 32, kernel, stride, kernel // 2, groups=32)
    with torch.no_grad():
        convolution.weight.copy_(convolution.weight.sign() * 0.5)  # all taps are the largest: two of one sign make 2 * 127 codes
    x = torch.rand(2, 32, 12, 12)
    result = flow(nn.Sequential(convolution, nn.ReLU()).eval(), (x,), engine="fbgemm", isa=isa)
    assert "merge_groups" not in str(result.module.program)
    with torch.no_grad():
        assert compute_sqnr(result.reference(x), result.module(x)) > 45


@pytest.mark.parametrize(("channels", "size"), [(116, 29), (128, 32), (106, 53), (6, 6), (1, 1)])  # 2 of 106 would leave buffers
def test_where_fbgemm_packs_all_groups_it_gets_wide_ones(channels: int, size: int) -> None:
    assert groups.merge((channels, 1, 3, 3), channels, lambda n: True, crawls=True) == size


@pytest.mark.parametrize(("shape", "count", "size"), [
    ((32, 1, 3, 3, 3), 32, 8),  # depthwise in three dimensions
    ((108, 1, 3, 3, 3), 108, 4),  # no multiple of 8
    ((192, 1, 3, 3), 96, 8),  # two results a channel
    ((240, 30, 1, 1), 8, 4),
    ((96, 6, 3), 16, 2),
    ((31, 1, 3, 3, 3), 31, 31),
    ((128, 1, 3, 3), 32, 4),  # 8 to 32 channels would be wrong with AMX
    ((96, 1, 3, 3), 96, 1),  # a kernel of its own
    ((64, 4, 3, 3), 16, 1),
    ((65, 5, 3, 3), 1, 1),
])  # fmt: skip
def test_groups_are_merged_where_onednn_has_no_kernel(shape: tuple[int, ...], count: int, size: int) -> None:
    assert groups.merge_for_onednn(shape, count, misplaces_groups) == size


@pytest.mark.skipif("onednn" not in AVAILABLE, reason="onednn's packs")
@pytest.mark.parametrize(
    "convolution",
    [nn.Conv3d(16, 16, 3, padding=1, groups=16), nn.Conv2d(12, 24, 3, groups=12), nn.ConvTranspose2d(8, 8, 4, 2, groups=8)],
    ids=repr,
)
def test_onednn_without_wide_vectors_gets_groups_that_it_has_a_kernel_for(convolution: nn.Conv2d) -> None:
    x = torch.randn(2, convolution.in_channels, *[6] * (convolution.weight.dim() - 2), generator=torch.Generator().manual_seed(0))
    result = flow(nn.Sequential(convolution).eval(), (x,), engine="onednn", isa="avx2")
    assert "merge_groups" in str(result.module.program)
    with torch.no_grad():
        assert compute_sqnr(result.reference(x), result.module(x)) > 45


@pytest.mark.parametrize(("outputs", "count", "size"), [(12, 6, 2), (12, 6, 6), (24, 6, 3), (6, 6, 2)])
def test_merged_groups_compute_the_same(outputs: int, count: int, size: int) -> None:
    torch.manual_seed(0)
    weight, zero_point = torch.randint(-128, 128, (outputs, 2, 3, 3), dtype=torch.int8), torch.randint(-3, 4, (outputs,))
    wide = channels.merge_groups(weight, zero_point, count, size)
    one, ones = torch.ones(outputs), zero_point
    x = torch.randint(0, 9, (2, 2 * count, 5, 5)).float()
    expected = F.conv2d(x, packs.float_weight(weight, one, ones, 0), groups=count)
    assert torch.equal(F.conv2d(x, packs.float_weight(wide, one, ones, 0), groups=count // size), expected)
