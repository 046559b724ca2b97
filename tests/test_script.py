"""torch.jit.script of converted modules: bit-equal scripts, each weight once in the file, and the user's model as it was."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qcompiler import quantize
from qcompiler.backends.torch.bench.cases import Case, Int8, all_cases, real
from qcompiler.backends.torch.program.assemble import assemble, compile_graph
from qcompiler.backends.torch.program.build import build
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.errors import ConfigError
from qcompiler.ops import functional
from qcompiler.quantization import quantize_dynamic
from tests.lowered_net import ENGINES, INPUT, lowered

EACH_ENGINE = pytest.mark.parametrize("engine", ENGINES)


class Holds(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.q = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x)[0] * 2


class Lists(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.all = nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum()
        for module in self.all:
            total = total + module(x)[0].sum()
        return total


def compiled(engine: str = ENGINES[0], **options: Any) -> CompiledModule:
    return compile_graph(lowered(**options), name="Net", engine=engine)


def saved(script: Any) -> bytes:
    stream = io.BytesIO()
    torch.jit.save(script, stream)
    return stream.getvalue()


def leaf() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(5, 2).requires_grad_(False)


def models(engine: str) -> dict[str, nn.Module]:
    return {
        "attribute": Holds(compiled(engine)),
        "with a leaf": Holds(compiled(engine, leaf=leaf())),
        "two levels": nn.Sequential(nn.Sequential(Holds(compiled(engine)))),
        "list": Lists(compiled(engine), compiled(engine, seed=5, scale=0.07)),
        "the same twice": Lists(*[compiled(engine)] * 2),
    }


@EACH_ENGINE
@pytest.mark.parametrize("where", list(models(ENGINES[0])))
def test_the_users_model_stays_as_it_was(engine: str, where: str) -> None:
    model = models(engine)[where].eval()
    expected, modules, state, text = model(INPUT), list(model.modules()), copy.deepcopy(model.state_dict()), repr(model)
    for script in (torch.jit.script(model), torch.jit.script(model)):
        assert torch.equal(script(INPUT), expected)
        assert torch.equal(torch.jit.load(io.BytesIO(saved(script)))(INPUT), expected)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True)) and repr(model) == text
    assert list(model.state_dict()) == list(state) and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for form in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to("cpu"), torch.jit.script(model)):
        assert torch.equal(form(INPUT), expected)


@EACH_ENGINE
def test_scripts_follow_the_state(engine: str) -> None:
    first, second = Holds(compiled(engine)), Holds(compiled(engine, seed=2, scale=0.07))
    before = first(INPUT)
    assert torch.equal(torch.jit.script(first)(INPUT), before)
    first.load_state_dict(second.state_dict())
    after = first(INPUT)
    assert torch.equal(torch.jit.script(first)(INPUT), after) and not torch.equal(after, before)
    assert torch.equal(torch.jit.script(second)(INPUT), after)


def test_a_script_holds_no_buffer_of_the_module() -> None:
    module = compiled(leaf=leaf())
    script = torch.jit.script(module)
    assert sorted(script.state_dict()) == ["head.bias", "head.weight"]


def test_large_tensors_are_saved_once() -> None:
    graph, root = fx.Graph(), nn.Module()
    root.register_buffer("big", torch.arange(500_000, dtype=torch.float32))
    graph.output(graph.call_function(functional.add, (graph.placeholder("x"), graph.get_attr("big"))))
    module = compile_graph(fx.GraphModule(root, graph))
    x = torch.ones(500_000)
    assert torch.equal(torch.jit.script(module)(x), module(x))
    assert len(saved(torch.jit.script(module))) < 2_000_000 + 50_000


def odd(names: tuple[str, ...], make: Any) -> tuple[CompiledModule, Tensor]:
    """A module that calls the float submodules, or adds the buffers, under these names; and an input."""
    graph, root = fx.Graph(), nn.Module()
    value = graph.placeholder("x")
    for name in names:
        *scope, last = name.split(".")
        owner = root
        for part in scope:
            owner._modules.setdefault(part, nn.Module())
            owner = owner._modules[part]
        if isinstance(made := make(), nn.Module):
            owner._modules[last] = made
            value = graph.call_module(name, (value,))
        else:
            owner._buffers[last] = made
            value = graph.call_function(functional.add, (value, graph.get_attr(name)))
    graph.output(value)
    root.__dict__["graph"] = graph  # all that build reads of a GraphModule, which cannot have such names
    return assemble(build(root, "Odd"), ENGINES[0]), torch.linspace(-1, 1, 5)  # type: ignore[arg-type]


NAMES = ("0", "a.0.b", "save", "inlined_graph.graph", "_buffers_", "getattr", "x", "a.code", "torch")
HIDDEN = ("code", "engine", "rebuild", "_bound")
HOSTILE = (*HIDDEN, "class", "class.lambda", 'a"b\n', "a.None", "é")


@pytest.mark.parametrize("kind", ["tensors", "modules"])
def test_odd_names(kind: str) -> None:
    names = NAMES + HOSTILE if kind == "tensors" else NAMES
    names = tuple(n for n in names if kind == "modules" or f"{n}.lambda" not in names)
    module, x = odd(names, (lambda: torch.rand(5)) if kind == "tensors" else lambda: nn.Linear(5, 5).requires_grad_(False))
    model = nn.Sequential(module)
    expected, keys = model(x), list(model.state_dict())
    for script in (torch.jit.script(model), torch.jit.trace(model, x)):
        assert torch.equal(script(x), expected)
    script = torch.jit.script(model)
    assert torch.equal(torch.jit.load(io.BytesIO(saved(script)))(x), expected)
    assert list(model.state_dict()) == keys and len(script.state_dict()) == (0 if kind == "tensors" else 2 * len(names))


@pytest.mark.parametrize("name", [n for n in HOSTILE if n not in HIDDEN])
def test_float_submodules_with_names_that_torchscript_cannot_write_run(name: str) -> None:
    module, x = odd((name,), nn.Softsign)
    model = nn.Sequential(module)
    assert torch.equal(torch.jit.script(model)(x), nn.functional.softsign(x)) and model[0] is module


@pytest.mark.parametrize("name", [*HIDDEN, "engine.a"])
def test_a_float_submodule_that_compiled_modules_hide_is_an_error(name: str) -> None:
    module, x = odd((name,), nn.Softsign)
    assert torch.equal(module(x), nn.functional.softsign(x))
    with pytest.raises(ConfigError) as caught:
        torch.jit.script(nn.Sequential(module))
    assert caught.value.code == "script-name" and caught.value.where.module_path == name


def test_attributes_of_the_user_are_read_in_scripts_and_cannot_break_them() -> None:
    class Reads(Holds):
        def forward(self, x: Tensor) -> Tensor:
            return self.q(x)[0] * self.q.times

    user = {"times": 3, "note": "a", "mixed": {"a": [1, "b"]}, "function": lambda x: x, "types": [torch.int8], "net": (nn.ReLU(),)}
    module = compile_graph(lowered(), name="Net", user_attributes=user)
    model = Reads(module)
    assert torch.equal(torch.jit.script(model)(INPUT), model(INPUT)) and module.lowered is not None and module.mixed == user["mixed"]


@EACH_ENGINE
def test_a_script_keeps_the_weights_it_was_made_with(engine: str) -> None:
    """torch's packs hold the bias that they were given: loading other weights must not reach it."""

    def made(kind: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        if kind == "dynamic":
            return quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), {nn.Linear})
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        return quantize(net, [x], engine=engine, progress=False)

    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with quantized_engine(engine):
        for kind in ("graph", "dynamic"):
            module, other = made(kind, 0), made(kind, 1)
            script = torch.jit.script(module)
            before = script(x)
            module.load_state_dict(other.state_dict())
            assert torch.equal(script(x), before) and torch.equal(module(x), other(x)), kind


CALLS: dict[str, list[Case]] = {}
for case in all_cases(127, extreme=False, seed=1):
    CALLS.setdefault(case.op, []).append(case)


@pytest.mark.parametrize("op", sorted(CALLS))
def test_a_float_call_of_every_op_is_scriptable(op: str) -> None:
    """TorchScript has other names for some arguments of torch's functions, and other types."""
    for case in CALLS[op]:
        graph, given = fx.Graph(), []

        def argument(value: Any, graph: fx.Graph = graph, given: list[Tensor] = given) -> Any:
            if isinstance(value, list):
                return [argument(v) for v in value]
            if not isinstance(value, (Tensor, Int8)):
                return value
            integers = isinstance(value, Tensor) and value.dtype is torch.int64
            given.append(value if integers else real(value).float())
            return graph.placeholder(f"x{len(given)}")

        args, kwargs = tuple(map(argument, case.args)), {k: argument(v) for k, v in case.attributes.items()}
        graph.output(graph.call_function(case.row.fn, args, kwargs))
        module = compile_graph(fx.GraphModule(nn.Module(), graph))
        expected, script = pytree.tree_leaves(module(*given)), pytree.tree_leaves(torch.jit.script(module)(*given))
        assert all(torch.equal(a, b) for a, b in zip(expected, script, strict=True)), case.label


class Spelled(nn.Module):
    """Calls that TorchScript takes in one spelling of several."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = ~(x > 0)
        x = F.pad(torch.where(hidden, -x, x), (1, 2), value=1)
        x = x.clone()
        x[:, :, 1:] += 1
        left, right = torch.split(F.interpolate(x[...], scale_factor=2), [3, 1], dim=1)
        return left * right


def test_float_calls_in_spellings_that_torchscript_lacks() -> None:
    x = torch.randn(1, 4, 3, 5)
    module = quantize(Spelled().eval(), [x], progress=False)
    assert torch.equal(torch.jit.script(module)(x), module(x))


@pytest.mark.parametrize("engine", ["x86", "qnnpack"])
@pytest.mark.parametrize("size", [(None, 2), (1, None), [None, None], 2])
@pytest.mark.parametrize("pool", [F.adaptive_avg_pool2d, F.adaptive_max_pool2d])
def test_adaptive_pools_that_keep_a_size(pool: Any, size: Any, engine: str) -> None:
    """TorchScript has no None among sizes; at other sizes the pool keeps those."""
    x = torch.randn(1, 4, 6, 5)
    module = quantize(Between(lambda y: pool(y, size)).eval(), [x], progress=False, engine=engine)
    for given in (x, torch.randn(2, 4, 9, 7)):
        assert torch.equal(torch.jit.script(module)(given), module(given))


class Between(nn.Module):
    def __init__(self, computed: Any) -> None:
        super().__init__()
        self.first, self.last, self.computed = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), computed

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.computed(self.first(x)))


HELD = [
    lambda y: y * 2 if y.size(2) > 3 else y,  # type: ignore[no-any-return]
    lambda y: y * 2 if y.size(2) > 3 else y,  #type: (a, b)
    lambda y: y * 2 if y.size(2) > 3 else y,  # type: (Tensor) -> Tensor
]  # fmt: skip


@pytest.mark.parametrize("held", HELD)
def test_a_type_comment_in_a_line_of_the_users_is_no_type(held: Any) -> None:
    """torch.jit takes `# type:` for one in strings as well, such as the message of what the trace holds fixed."""
    x = torch.randn(2, 4, 6, 5)
    module = quantize(Between(held).eval(), [x], progress=False)
    assert "23 type" in module.code or "23type" in module.code
    assert torch.equal(torch.jit.script(module)(x), module(x))


def test_a_frozen_trace_holds_each_weight_once() -> None:
    x = torch.randn(2, 256)
    module = quantize(nn.Sequential(nn.Linear(256, 256), nn.ReLU()).eval(), [x], progress=False)
    traced = torch.jit.trace(module, (x,))
    files = [io.BytesIO() for _ in range(3)]
    for form, file in zip((torch.jit.script(module), torch.jit.freeze(traced), traced), files, strict=True):
        torch.jit.save(form, file)
        file.seek(0)
        assert torch.equal(torch.jit.load(file)(x), module(x))
    script, frozen, plain = (len(file.getvalue()) for file in files)
    assert abs(script - frozen) < 0.05 * script and plain > 1.8 * script  # docs/static.md


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it cannot follow
@pytest.mark.parametrize("flow", ["graph", "eager"])
def test_torch_compile_leaves_int8_modules_as_they_are(flow: str) -> None:
    """It knows no quantized tensors: what stands around them is compiled."""
    torch.manual_seed(0)
    x, net = torch.randn(2, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    int8 = quantize(net, x, progress=False) if flow == "graph" else quantize_dynamic(net)
    model = nn.Sequential(nn.Linear(8, 8), int8, nn.Linear(8, 4)).eval()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled: Any = torch.compile(model, backend="eager")
        assert torch.equal(compiled(x), model(x)) and torch.equal(compiled(x[:1]), model(x[:1]))
