"""prepare, calibrate, convert as a whole: accuracy, what survives, and what the result can be used for."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import (
    QConfigMapping,
    calibrate,
    convert_fx,
    explain,
    get_default_qconfig,
    get_default_qconfig_mapping,
    prepare_fx,
    quantize,
    remarks,
)
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.debug import compute_sqnr
from qcompiler.ops.obstacles import CODES
from tests.children import WAITING
from tests.cpu import BIT
from tests.flow import ENGINES, fingerprint, flow, randn, randomized, targets
from tests.zoo import inputs, load

ROOT = Path(__file__).resolve().parent.parent


class Cnn(nn.Module):
    """A residual block, a depthwise convolution, a cat, a head: most kernels of a CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.version, self.sizes = 3, {"in": 3, "out": 5}
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.branch = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.point(F.relu6(self.depthwise(x))) + x)
        y = torch.cat([y, self.branch(y)], 1)
        y = F.hardswish(F.max_pool2d(y, 2)).mean((2, 3))
        result: Tensor = self.head(y)
        return result


def cnn() -> Cnn:
    torch.manual_seed(0)
    model = Cnn()
    randomized(model)
    return model


def images(batch: int = 2, n: int = 4) -> list[Tensor]:
    return inputs(batch, 16, n)


def converted(engine: str = "x86") -> CompiledModule:
    data = images()
    return flow(cnn(), (data[0],), [(d,) for d in data], get_default_qconfig_mapping(engine), engine=engine).module


def int8(lowered: fx.GraphModule | None) -> fx.Graph:
    assert lowered is not None
    return lowered.graph


# ---- accuracy


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(self.conv(self.conv(x) * 4) * 4) * 4)  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_conv_called_four_times_has_its_own_qparams_each_time(engine: str) -> None:
    torch.manual_seed(0)
    model, x = Shared().eval(), randn(4, 4, 12, 12)
    result = flow(model, (x,), mapping=get_default_qconfig_mapping(engine), engine=engine)
    with torch.no_grad():
        assert compute_sqnr(model(x), result.module(x)) >= 28
        assert compute_sqnr(result.reference(x), result.module(x)) >= 40
    assert sum(name.endswith("weight") for name in result.module.state_dict()) == 1
    assert len({n.name for n in result.prepared.graph.nodes if str(n.target).startswith("observers.")}) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_nothing_goes_through_float_inside_a_cnn(name: str) -> None:
    model, data = load(name), inputs(1, 96, 2)
    result = flow(model, (data[0],), [(d,) for d in data])
    names = targets(int8(result.module.lowered))
    assert names.count("quantize_per_tensor") == 1 and names.count("requantize") == 0
    assert names.count("dequantize") + names.count("dequantize.self") == 1
    assert all(row.int8 for row in explain(result.module).rows)
    with torch.no_grad():
        assert compute_sqnr(model(data[0]), result.module(data[0])) >= 30 - BIT
        assert compute_sqnr(result.reference(data[0]), result.module(data[0])) >= 35 - BIT
    missing = {n for n in model.state_dict() if n.endswith(".weight") and "bn" not in n} - set(result.module.state_dict())
    assert all(model.get_submodule(n.rpartition(".")[0]).__class__ is nn.BatchNorm2d for n in missing)


@pytest.mark.parametrize("engine", ENGINES)
def test_small_cnn(engine: str) -> None:
    module, model, x = converted(engine), cnn(), images()[0]
    assert module.engine == engine
    with torch.no_grad():
        assert compute_sqnr(model(x), module(x)) >= 25
    names = targets(int8(module.lowered))
    assert names.count("quantize_per_tensor") == 1
    assert names.count("dequantize") + names.count("dequantize.self") == 1
    assert all(row.int8 for row in explain(module).rows)


# ---- what survives


def test_the_model_is_not_changed() -> None:
    model, x = cnn(), images()[0]
    before = fingerprint(model)
    wanted = model(x)
    flow(model, (x,))
    assert fingerprint(model) == before
    assert torch.equal(model(x), wanted)


def test_state_dict_keeps_the_users_names() -> None:
    module, model = converted(), cnn()
    state = module.state_dict()
    for name in ("stem.0.weight", "depthwise.weight", "depthwise.bias", "point.weight", "branch.bias", "head.weight", "head.bias"):
        assert name in model.state_dict() and state[name].shape == model.state_dict()[name].shape
    assert state["head.weight"].dtype is torch.int8 and "head.weight_scale" in state and "head.weight_zero_point" in state
    assert all(type(value) is Tensor and not value.is_quantized for value in state.values())


def test_users_attributes_survive() -> None:
    prepared = prepare_fx(cnn(), None, (images()[0],))
    for module in (prepared, converted()):
        assert module.version == 3 and module.sizes == {"in": 3, "out": 5}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [0, 1, 3, 8])
def test_any_batch_size(engine: str, batch: int) -> None:
    module = converted(engine)
    assert module(randn(batch, 3, 16, 16)).shape == (batch, 5)
    x = images()[0]
    assert torch.allclose(module(x)[:1], module(x[:1]), atol=1e-6)


def test_any_image_size() -> None:
    assert converted()(randn(2, 3, 24, 20)).shape == (2, 5)


class Pair(NamedTuple):
    first: Tensor
    rest: list[Tensor]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: dict[str, Tensor], *, scale: float = 1.0, extra: tuple[Tensor, list[Tensor]] | None = None) -> Any:
        x = self.a(inputs["x"]) * scale
        if extra is not None:
            x = x + extra[1][0]
        return Pair(self.b(x), [x, inputs["y"]]), OrderedDict(shape=x.shape[0])


def test_nested_inputs_outputs_and_keywords() -> None:
    torch.manual_seed(0)
    model = Nested().eval()
    given = {"x": randn(2, 4), "y": randn(2, 4, seed=1)}
    extra = (randn(2, 4, seed=2), [randn(2, 4, seed=3)])
    prepared = prepare_fx(model, None, (given,), example_kwargs={"extra": extra})
    prepared(given, extra=extra)
    module = convert_fx(prepared)
    with torch.no_grad():
        wanted, result = model(given, extra=extra), module(given, extra=extra)
    assert type(result[1]) is OrderedDict and type(result[0]) is Pair and result[1]["shape"] == 2
    assert compute_sqnr(list(wanted[0]), list(result[0])) >= 28
    assert torch.equal(result[0].rest[1], given["y"])


@dataclass
class Record:
    value: Any
    size: Any


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: {"out": Pair(y, [x])},
        lambda x, y: [Pair(Pair(y, [x]), [{"size": Pair(x, [])}])],
        lambda x, y: OrderedDict(a=Pair(y, [x]), b=None),
        lambda x, y: {"a": Record(Pair(y, [x]), x.shape[0])},
    ],
)
def test_a_named_tuple_in_a_container(wrap: Callable[[Tensor, Tensor], Any]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return wrap(x, self.linear(x))

    torch.manual_seed(0)
    model, x = Model().eval(), randn(2, 4)
    result = flow(model, (x,), strict=True)  # a container is no op that lacks an int8 form
    wanted, found = model(x), result.module(x)
    assert pytree_types(found) == pytree_types(wanted)
    assert pytree_types(result.reference(x)) == pytree_types(wanted)
    assert not [r for r in remarks(result.prepared) if r.code in CODES]


def pytree_types(value: Any) -> Any:
    """The types in a nested value, with the keys of dicts."""
    if isinstance(value, (tuple, list)):
        return type(value), [pytree_types(v) for v in value]
    if isinstance(value, dict):
        return type(value), [(k, pytree_types(v)) for k, v in value.items()]
    return (type(value), pytree_types(list(vars(value).values()))) if isinstance(value, Record) else type(value)


def test_one_call_with_dicts_of_keywords() -> None:
    torch.manual_seed(0)
    model = nn.Bilinear(3, 3, 2)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.bilinear = nn.Linear(3, 2), model

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            result: Tensor = self.layer(left) + self.bilinear(left, right)
            return result

    two = Two().eval()
    data = [{"left": randn(4, 3, seed=i), "right": randn(4, 3, seed=i + 9)} for i in range(3)]
    module = quantize(two, data, progress=False)
    with torch.no_grad():
        assert compute_sqnr(two(**data[0]), module(**data[0])) >= 25


# ---- what the result can be used for


def assert_same(module: CompiledModule, other: Any) -> None:
    with torch.no_grad():
        for x in images():
            assert torch.equal(module(x), other(x))


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_are_equal_to_the_bit(engine: str) -> None:
    module = converted(engine)
    assert_same(module, copy.deepcopy(module))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    assert_same(module, torch.load(buffer, weights_only=False))


@pytest.mark.parametrize("engine", ENGINES)
def test_torchscript_is_equal_to_the_bit(engine: str) -> None:
    module = converted(engine)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        for scripted in (torch.jit.script(module), torch.jit.trace(module, images()[0], check_trace=False)):
            assert_same(module, scripted)
            buffer = io.BytesIO()
            torch.jit.save(scripted, buffer)
            buffer.seek(0)
            with quantized_engine(engine):  # torch packs the weights that it loads for its engine at that moment
                loaded = torch.jit.load(buffer)
            assert_same(module, loaded)


@pytest.mark.parametrize("engine", ENGINES)
def test_state_dict_loads_into_a_fresh_conversion(engine: str) -> None:
    module = converted(engine)
    torch.manual_seed(7)
    other = Cnn()
    randomized(other, 7)
    mapping = get_default_qconfig_mapping(engine)
    fresh = flow(other, (images()[0],), [(randn(2, 3, 16, 16, seed=9) * 3,)], mapping, engine=engine).module
    assert not torch.equal(fresh(images()[0]), module(images()[0]))
    fresh.load_state_dict(module.state_dict())
    assert_same(module, fresh)


def test_converting_leaves_the_prepared_module_as_it_was() -> None:
    x = images()[0]
    prepared = prepare_fx(cnn(), None, (x,))
    calibrate(prepared, [x])
    first = convert_fx(prepared)
    calibrate(prepared, [x])
    assert torch.equal(first(x), convert_fx(prepared)(x))
    assert torch.equal(first(x), convert_fx(copy.deepcopy(prepared))(x))


# ---- settings


def test_qconfig_none_leaves_a_part_float_exactly() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(OrderedDict(a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6))).eval(), randn(8, 6)
    mapping = get_default_qconfig_mapping().set_module_name("b", None)
    module = flow(model, (x,), mapping=mapping).module
    assert torch.equal(module.state_dict()["b.weight"], model.b.weight)
    assert {r.module_path: r.int8 for r in explain(module).rows} == {"a": True, "b": False, "c": True}
    off = flow(model, (x,), mapping=QConfigMapping()).module
    with torch.no_grad():
        assert torch.equal(off(x), model(x))
    only = QConfigMapping().set_module_name("c", get_default_qconfig())
    partly = flow(model, (x,), mapping=only).module
    assert [r.int8 for r in explain(partly).rows] == [False, False, True]


def test_a_mapping_of_torch_ao_is_accepted() -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    x = images()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = quantization.get_default_qconfig_mapping("x86").set_module_name("head", None)
        model = cnn()
        result = flow(model, (x,), mapping=theirs)
    with torch.no_grad():
        assert compute_sqnr(model(x), result.module(x)) >= 20
    assert torch.equal(result.module.state_dict()["head.weight"], model.head.weight)


# ---- determinism

PROGRAM = """
import sys, hashlib, torch
torch.set_num_threads(1)
from tests.test_pipeline import cnn, images
from qcompiler import calibrate, convert_fx, convert_to_reference_fx, prepare_fx, save
from qcompiler.ir.text import format_graph
data = images()
prepared = prepare_fx(cnn(), None, (data[0],))
calibrate(prepared, data)
reference, module = convert_to_reference_fx(prepared), convert_fx(prepared)
save(module, sys.argv[1])
texts = [format_graph(g.graph) for g in (prepared, reference, module.lowered)] + [module.code, str(list(module.state_dict()))]
print(hashlib.sha256("".join(texts).encode()).hexdigest(), hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())
"""


@pytest.mark.slow
def test_text_code_and_artifact_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    found = set()
    for seed in ("0", "1", "424242"):
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / f"{seed}.qc")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=WAITING, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found.add(done.stdout)
    assert len(found) == 1


# ---- values and names that a quantized range or a module does not expect


class One(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.a(x))


OUTSIDE: list[Any] = [
    lambda m, y: F.max_pool2d(y, 2).clamp(min=5) * 2,
    lambda m, y: y + torch.clamp(y, min=3.0),
    lambda m, y: y + torch.clamp(y, max=-3.0),
    lambda m, y: F.pad(y, (1, 1), value=9.0) * 1.0,
    lambda m, y: F.max_pool2d(F.pad(y, (1, 1, 1, 1), value=float("-inf")), 2, 2),
    lambda m, y: y / F.max_pool2d(y, 3, 1, 1).clamp(min=0.25),
]


@pytest.mark.parametrize("function", OUTSIDE)
@pytest.mark.parametrize("engine", ["x86", "qnnpack"])
def test_values_outside_the_range_of_the_input(function: Any, engine: str) -> None:
    torch.manual_seed(0)
    model, x = One(function).eval(), randn(2, 3, 6, 6)
    result = flow(model, (x,), engine=engine)
    with torch.no_grad():
        assert compute_sqnr(model(x), result.module(x)) >= 28


@pytest.mark.parametrize("name", ["to", "float", "type", "forward", "half", "training"])
def test_nodes_named_like_parts_of_a_module(name: str) -> None:
    torch.manual_seed(0)
    parts = OrderedDict({"first": nn.Conv2d(3, 3, 1)}) | OrderedDict({f"{name}_": nn.Conv2d(3, 3, 1)})
    model, x = One(lambda m, y: m.b(y.to(torch.float32).type(torch.float32).float())).eval(), randn(2, 3, 4, 4)
    with torch.no_grad():
        assert compute_sqnr(model(x), flow(model, (x,)).module(x)) >= 30
    chain = nn.Sequential(parts).eval()
    with torch.no_grad():
        assert compute_sqnr(chain(x), flow(chain, (x,)).module(x)) >= 30


def test_functions_of_other_dtypes_stay_float() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.linear = nn.Embedding(10, 6), nn.Linear(6, 6)

        def forward(self, ids: Tensor) -> Tensor:
            ids = (ids + 1).clamp(min=0, max=9)
            result: Tensor = self.linear(F.relu(self.linear(self.embedding(ids)))) * (ids > 2).float()[..., None]
            return result

    torch.manual_seed(0)
    model, ids = Tokens().eval(), torch.randint(0, 9, (2, 7), generator=torch.Generator().manual_seed(0))
    module = flow(model, (ids,)).module
    with torch.no_grad():
        assert compute_sqnr(model(ids), module(ids)) >= 28
    assert sum(row.int8 for row in explain(module).rows if row.op == "linear") == 2


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("layer", [lambda: nn.Conv1d(8, 8, 3, groups=2), lambda: nn.Linear(8, 8)])
def test_weights_that_are_computed_are_folded(layer: Callable[[], nn.Module], hooks: bool) -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(layer()) if hooks else normed(layer())).eval()
    keys, x = set(model.state_dict()), randn(2, 8, 8)
    mapping = QConfigMapping().set_object_type(nn.Linear, get_default_qconfig("x86")).set_object_type(nn.Conv1d, get_default_qconfig("x86"))
    module = flow(model, (x,), mapping=mapping).module
    assert all(row.int8 for row in explain(module).rows)
    with torch.no_grad():
        assert compute_sqnr(model(x), module(x)) >= 30
    assert set(model.state_dict()) == keys
