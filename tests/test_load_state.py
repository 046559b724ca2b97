"""load_state_dict on models with integer tensors: what does not fit is an error before anything is changed."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.errors import ConfigError
from qcompiler.ir.check_qparams import check_qparams
from qcompiler.nn import quantized as nnq
from qcompiler.quantization import (
    DeQuantStub,
    QuantStub,
    convert,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)
from tests.cpu import SEVEN_BITS, compiled_for_others

X = torch.linspace(-1, 1, 24).reshape(3, 8)


class Net(nn.Module):
    """A linear behind a float part, so that something stands before the first int8 tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(self.norm(x))))


class Stubbed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.b(torch.relu(self.a(self.quant(self.norm(x))))))


def net(cls: type[Net] = Net, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return cls().eval()


def prepared() -> nn.Module:
    made = qc.prepare_fx(net(), None, (X,))
    made(X)
    return made


def prepared_eager() -> nn.Module:
    model = net(Stubbed)
    model.qconfig = get_default_qconfig("x86")
    model.norm.qconfig = None
    made = prepare(model)
    made(X)
    return made


def prepared_qat_eager() -> nn.Module:
    model = net(Stubbed).train()
    model.qconfig = get_default_qat_qconfig("x86")
    model.norm.qconfig = None
    made = prepare_qat(model)
    made(X)
    return made


def trained() -> nn.Module:
    made = qc.prepare_qat_fx(net().train(), None, (X,))
    made(X)
    return made


def artifact(tmp: Path) -> nn.Module:
    qc.save(qc.convert_fx(prepared()), tmp / "m.qc")
    return qc.load(tmp / "m.qc")


INT8: dict[str, Callable[[Path], nn.Module]] = {
    "graph": lambda tmp: qc.convert_fx(prepared()),
    "loaded": artifact,
    "copied": lambda tmp: copy.deepcopy(qc.convert_fx(prepared())),
    "unpickled": lambda tmp: pickle.loads(pickle.dumps(qc.convert_fx(prepared()))),
    "inside another": lambda tmp: nn.Sequential(nn.LayerNorm(8), qc.convert_fx(prepared())),
    "trained": lambda tmp: qc.convert_fx(trained()),
    "reference": lambda tmp: qc.convert_to_reference_fx(prepared()),
    "eager": lambda tmp: convert(prepared_eager()),
    "copied eager": lambda tmp: copy.deepcopy(convert(prepared_eager())),
    "eager trained": lambda tmp: convert(prepared_qat_eager().eval()),
    "dynamic": lambda tmp: quantize_dynamic(net()),
    "by hand": lambda tmp: nnq.Linear(8, 4),
}
FLOAT: dict[str, Callable[[], nn.Module]] = {
    "prepared": prepared, "copied": lambda: copy.deepcopy(prepared()), "trained": trained, "eager": prepared_eager,
    "eager trained": prepared_qat_eager,
}  # fmt: skip


def weight_of(module: nn.Module) -> str:
    """The last int8 weight: all others would be loaded before it."""
    return [name for name, t in module.state_dict().items() if t.dtype is torch.int8][-1]


def refused(module: nn.Module, state: dict[str, Any], match: str, code: str, **options: Any) -> None:
    """The error, and that nothing was changed but what an outer module of the user's had loaded before it came to the int8 one."""
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(ConfigError, match=match) as caught:
        module.load_state_dict(state, strict=False, **options)
    assert caught.value.code == code
    after = module.state_dict()
    assert list(after) == list(before)
    own = [name for name in before if not (type(module) is nn.Sequential and name.startswith("0."))]
    assert all(torch.equal(after[name], before[name]) and after[name].dtype is before[name].dtype for name in own)


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with other values in its float parts: whatever is loaded too early shows."""
    return {name: t + 1 if t.dtype is torch.float32 else t for name, t in state.items()}


@pytest.mark.parametrize("kind", INT8)
def test_weights_that_are_no_int8(kind: str, tmp_path: Path) -> None:
    module = INT8[kind](tmp_path)
    name = weight_of(module)
    state = other(module.state_dict())
    for dtype in (torch.float32, torch.float64, torch.uint8, torch.int32):
        refused(module, state | {name: state[name].to(dtype)}, rf"{name}: a {dtype} tensor is given, torch\.int8 is held", "weight-dtype")


@pytest.mark.parametrize("kind", INT8)
def test_biases_and_zero_points_of_another_kind(kind: str, tmp_path: Path) -> None:
    """Codes of 32 bits are what other formats store for biases; a flag is no number."""
    module = INT8[kind](tmp_path)
    state = other(module.state_dict())
    floats = [n for n, t in state.items() if t.dtype is torch.float32 and "scale" not in n]
    for name in floats[-1:]:
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64, torch.bool):
            refused(module, state | {name: state[name].to(dtype)}, rf"{name}: a {dtype} tensor is given", "weight-dtype")
    for name in [n for n in state if "zero_point" in n and not state[n].is_floating_point()][-1:]:
        refused(module, state | {name: state[name].bool()}, rf"{name}: a torch.bool tensor is given", "weight-dtype")


@pytest.mark.parametrize("kind", INT8)
def test_a_float_checkpoint(kind: str, tmp_path: Path) -> None:
    module = INT8[kind](tmp_path)
    names = {"inside another": lambda n: f"1.{n}", "by hand": lambda n: n.removeprefix("b.")}.get(kind, lambda n: n)
    state = {names(name): t for name, t in net(Stubbed, seed=1).state_dict().items()}
    with pytest.raises(ConfigError, match="load it there, and quantize again"):
        module.load_state_dict(state, strict=False)
    with pytest.raises(ConfigError, match="load it there, and quantize again"):
        module.load_state_dict(state)
    refused(module, state, "float32 tensor is given, torch.int8 is held", "weight-dtype", assign=True)


@pytest.mark.parametrize("kind", INT8)
def test_scales_that_no_tensor_has(kind: str, tmp_path: Path) -> None:
    module = INT8[kind](tmp_path)
    state = other(module.state_dict())
    for name in [n for n, t in state.items() if "scale" in n]:
        for value in (math.nan, math.inf, -math.inf, 0.0, -0.1, 1e-60, 1e60) if state[name].numel() else ():
            scale = state[name].clone()
            scale.view(-1)[-1] = value
            refused(module, state | {name: scale}, rf"{name}: no quantized tensor has a scale of", "qparams")


@pytest.mark.parametrize("kind", INT8)
def test_a_bias_that_is_no_number(kind: str, tmp_path: Path) -> None:
    """An int8 kernel rounds what comes of it: the results would be plain numbers."""
    module = INT8[kind](tmp_path)
    state = other(module.state_dict())
    for name in [n for n in state if n.endswith(".bias") and f"{n.removesuffix('bias')}weight_scale" in state]:
        for value in (math.nan, math.inf, -math.inf):
            wrong = state[name].clone()
            wrong.view(-1)[-1] = value
            refused(module, state | {name: wrong}, rf"{name}: it holds NaN or inf", "bad-weight")


@pytest.mark.parametrize("kind", INT8)
def test_zero_points_out_of_range(kind: str, tmp_path: Path) -> None:
    module = INT8[kind](tmp_path)
    state = other(module.state_dict())
    for name in [n for n, t in state.items() if "zero_point" in n]:
        for value in (-129, 256, 2**40) if state[name].numel() else ():
            wrong = state[name].clone()
            wrong.view(-1)[-1] = value
            refused(module, state | {name: wrong}, rf"{name}: .* has no zero point {value}", "qparams")


@pytest.mark.parametrize("kind", INT8)
def test_shapes_of_another_model(kind: str, tmp_path: Path) -> None:
    module = INT8[kind](tmp_path)
    state, name = other(module.state_dict()), weight_of(module)
    for wrong in (state[name][:3], state[name].reshape(-1), state[name][None]):
        refused(module, state | {name: wrong}, rf"{name}: size mismatch", "weight-shape")


@pytest.mark.parametrize("kind", INT8)
def test_what_is_no_plain_tensor(kind: str, tmp_path: Path) -> None:
    module = INT8[kind](tmp_path)
    state, name = other(module.state_dict()), weight_of(module)
    for wrong in (state[name].numpy(), state[name].tolist(), 3, state[name].to_sparse()):
        refused(module, state | {name: wrong}, rf"{name}: a .* is given, a plain tensor is held", "weight-kind")


@pytest.mark.parametrize("kind", INT8)
def test_what_fits_is_loaded(kind: str, tmp_path: Path) -> None:
    module = INT8[kind](tmp_path)
    state = {name: t.flip(0) if t.dtype is torch.int8 else t for name, t in other(module.state_dict()).items()}
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    module.load_state_dict(torch.load(stream))
    after = module.state_dict()
    assert all(torch.equal(after[name], state[name]) for name in state)
    module.load_state_dict({name: t.half() if t.dtype is torch.float32 else t for name, t in state.items()})  # torch widens floats
    assert all(t.dtype is state[name].dtype for name, t in module.state_dict().items())


@pytest.mark.parametrize("kind", FLOAT)
def test_int8_codes_in_a_float_model(kind: str) -> None:
    module = FLOAT[kind]()
    codes = qc.convert_fx(prepared()).state_dict()
    refused(module, codes, r"a torch.int8 tensor is given, torch.float32 is held[\s\S]*converted in the same way", "weight-dtype")
    module.load_state_dict(other(net(seed=1).state_dict()), strict=False)


def test_a_prepared_module_takes_statistics_of_another_size() -> None:
    module = qc.prepare_qat_fx(net().train(), None, (X,))
    module.load_state_dict(trained().state_dict())


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x)


@compiled_for_others
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_depthwise_codes_that_a_kernel_cannot_add(engine: str) -> None:
    """fbgemm's kernel adds products of neighbouring taps in 16 bits: the codes of another engine's module may overflow it."""
    x, model = torch.rand(1, 8, 5, 5), Depthwise().eval()
    prepared = qc.prepare_fx(model, None, (x,), engine=engine, isa="avx512_vnni")
    prepared(x)
    module = qc.convert_fx(prepared)
    state = other(module.state_dict())
    full = state | {"c.weight": torch.full_like(state["c.weight"], 127)}
    if engine == "fbgemm":
        refused(module, full, "neighbouring codes", "weight-sums")
    else:
        module.load_state_dict(full)
    module.load_state_dict(state)


@pytest.mark.parametrize("engine", ["x86", "fbgemm", "onednn", "qnnpack"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_module_takes_any_depthwise_codes(engine: str, dims: int) -> None:
    """It packs them for another kernel where they could overflow."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        module = {2: nnq.Conv2d, 3: nnq.Conv3d}[dims](8, 8, 3, padding=1, groups=8, bias=False)
        module.load_state_dict(module.state_dict() | {"weight": torch.full((8, 1, *[3] * dims), 127, dtype=torch.int8),
                                                      "weight_scale": torch.tensor(0.01, dtype=torch.float64),
                                                      "scale": torch.tensor(12.0, dtype=torch.float64)})  # fmt: skip
        code = 127 if SEVEN_BITS and engine != "qnnpack" else 255
        x = torch._make_per_tensor_quantized_tensor(torch.full((1, 8, *[3] * dims), code, dtype=torch.uint8), 0.01, 0)
        wanted = 3**dims * 127 * 0.01 * code * 0.01
        assert abs(float(module(x).dequantize().max()) - wanted) <= 6.001  # half a step of the result
    finally:
        torch.backends.quantized.engine = before


@pytest.mark.parametrize("kind", ["graph", "loaded", "trained"])
def test_missing_and_unknown_names_of_a_compiled_module(kind: str, tmp_path: Path) -> None:
    module = INT8[kind](tmp_path)
    state, name = other(module.state_dict()), weight_of(module)
    known = [n for n in state if n != name]
    for wrong, match in (({n: state[n] for n in known}, rf"misses .*{name}$"), (state | {f"{name}_more": X}, rf"beside them {name}_more")):
        before = {n: t.clone() for n, t in module.state_dict().items()}
        with pytest.raises(ConfigError, match=match.replace("$", "\n")):
            module.load_state_dict(wrong)
        assert all(torch.equal(t, module.state_dict()[n]) for n, t in before.items())
        module.load_state_dict(wrong, strict=False)


def test_a_part_of_an_int8_module_alone() -> None:
    """Its packed weights would stay."""
    module: Any = qc.convert_fx(prepared())
    with pytest.raises(ConfigError, match="whole module"):
        module.a.load_state_dict(module.a.state_dict())


def test_float16_weights_are_not_made_of_wider_ones() -> None:
    """65536 would become inf."""
    module = quantize_dynamic(net(), dtype=torch.float16)
    refused(module, net(seed=1).state_dict(), "float16 is held", "weight-dtype")


@pytest.mark.parametrize("value", [300, -1])
def test_modules_without_buffers_of_their_qparams(value: int) -> None:
    module = nnq.QFunctional()
    with pytest.raises(ConfigError, match="zero point"):
        module.load_state_dict({"scale": torch.tensor(0.1), "zero_point": torch.tensor(value)})
    assert (module.scale, module.zero_point) == (1.0, 0)
    with pytest.raises(ConfigError, match="scale of nan"):
        module.load_state_dict({"scale": torch.tensor(math.nan), "zero_point": torch.tensor(3)})
    assert (module.scale, module.zero_point) == (1.0, 0)
    module.load_state_dict({"scale": torch.tensor(0.0), "zero_point": torch.tensor(0)})  # nothing was observed


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8])
def test_a_zero_point_is_one_of_its_dtype(dtype: torch.dtype) -> None:
    module = nnq.Quantize(0.1, 0, dtype)
    fits, other = (200, -5) if dtype is torch.quint8 else (-5, 200)
    module.load_state_dict({"scale": torch.tensor([0.2]), "zero_point": torch.tensor([fits])})
    refused(module, {"scale": torch.tensor([0.3]), "zero_point": torch.tensor([other])}, f"no zero point {other}", "qparams")


def test_check_qparams() -> None:
    check_qparams("x", torch.tensor([0.1, 2.0]), torch.tensor([0, 255]), torch.uint8)
    check_qparams("x", torch.tensor([0.1]), torch.tensor([7.5]), torch.uint8)  # rows of tables
    for scale, zero_point in (([0.1, math.nan], [0, 0]), ([0.1], [256]), ([0.1, 0.2], [0]), ([0.1], [math.inf])):
        with pytest.raises(ConfigError, match=r"^x: "):
            check_qparams("x", torch.tensor(scale), torch.tensor(zero_point), torch.uint8)
