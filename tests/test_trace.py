"""The tracer: equal results, no side effects, guards and leaves with their reasons."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import operator
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from qcompiler.errors import ConfigError, InputError, TraceError
from qcompiler.ir.types import source_of, value_of
from qcompiler.trace import Traced, TraceOptions, fold_parametrizations, is_guard, trace

from .counted_lines import counted_lines
from .zoo import load

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
X, Y = torch.linspace(-1, 1, 8).view(2, 4), torch.linspace(-2, 3, 20).view(5, 4)


def is_leaf(module: nn.Module, path: str) -> bool:
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, CONTAINERS)


def traced(model: nn.Module, *args: Any, **options: Any) -> Traced:
    known = {name: options.pop(name) for name in ("decompose", "strict", "trains") if name in options}
    return trace(model.eval(), args, options=TraceOptions(is_leaf, **known), **options)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class Model(nn.Module):
    """A module whose forward is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **children: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.linear, self.conv, self.relu = nn.Linear(4, 4), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.p = nn.Parameter(torch.randn(4))
        self.register_buffer("b", torch.randn(4))
        self.register_buffer("unsaved", torch.randn(4), persistent=False)
        for name, child in children.items():
            setattr(self, name, child)
        self.eval()

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def check(function: Callable[..., Any], *inputs: Any, leaves: int = 0, **children: Any) -> Traced:
    """Trace on the first input; equal on all inputs, inputs and model unchanged."""
    model = Model(function, **children)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    copies = [x.clone() for x in tensors]
    result = traced(model, inputs[0])
    for x in inputs:
        expected = model(x.clone() if isinstance(x, torch.Tensor) else x)
        assert same(expected, result.graph_module(x))
    assert all(map(torch.equal, copies, tensors))
    assert same(before, dict(model.state_dict()))
    assert sum(remark.kind == "leaf" for remark in result.remarks) == leaves
    return result


def targets(result: Traced) -> list[Any]:
    return [node.target for node in result.graph_module.graph.nodes]


# ---- values and sizes


def test_any_size_works_where_the_model_does_not_branch() -> None:
    def forward(s: Any, x: torch.Tensor) -> Any:
        n, c = x.shape
        zeros = torch.zeros(n, c) + torch.zeros(x.size(0), 1) + torch.ones((x.shape[0], 1)) + torch.full((n, 1), 2.0)
        token = s.p.expand(n, -1) + torch.zeros([*x.shape])
        return x.view(n, -1) + zeros + token + torch.arange(n * 2)[::2, None] + x.numel() / math.floor(x.shape[0] / 1) / len(x)

    result = check(forward, X, Y)
    assert not result.remarks


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: torch.stack([row + 1 for row in x]),
        lambda s, x: x * math.sqrt(x.shape[0]),
        lambda s, x: sum(x[i] for i in range(x.size(0))),
        lambda s, x: x if x.shape[0] == 2 else -x,
        lambda s, x: x if x.shape == (2, 4) else -x,
        lambda s, x: x * [1, 2, 3][x.shape[0]],
    ],
)
def test_a_size_that_becomes_concrete_is_guarded(forward: Callable[..., Any]) -> None:
    result = check(forward, X)
    assert any(r.kind == "guard" and "test_trace.py" in str(r.where) for r in result.remarks)
    with pytest.raises(InputError, match=r"expected .*, got"):
        result.graph_module(Y)
    result.graph_module.graph.eliminate_dead_code()
    assert any(is_guard(node) for node in result.graph_module.graph.nodes)


def test_guards_are_made_once_and_named_in_the_remarks() -> None:
    result = check(lambda s, x: x if x.shape[0] > 1 and x.shape[0] > 1 and x.size(0) > 1 else -x, X, Y)
    (remark,) = result.remarks
    (node,) = [node for node in result.graph_module.graph.nodes if is_guard(node)]
    assert remark.where.node == node.name == "guard_bool"


def test_kinds_are_concrete_without_guard() -> None:
    def forward(s: Any, x: torch.Tensor) -> Any:
        plain = x.dim() == x.ndim == 2 and x.dtype is torch.float32 and x.device.type == "cpu" and x.is_floating_point()
        return x if plain and isinstance(x, torch.Tensor) and torch.is_tensor(x) and len(x.shape) == 2 else -x

    assert not check(forward, X, Y).remarks


def test_assertions_on_sizes_are_guards() -> None:
    def forward(s: Any, x: torch.Tensor) -> Any:
        torch._assert(x.shape[1] == 4, f"wrong width {x.shape[1]}")
        return x

    with pytest.raises(InputError, match="wrong width"):
        check(forward, X, Y).graph_module(torch.ones(2, 3))


def test_every_node_has_value_and_source() -> None:
    result = check(lambda s, x: s.linear(x) + s.p, X)
    add = next(node for node in result.graph_module.graph.nodes if node.target is operator.add)
    assert value_of(add).shape == (2, 4) and str(source_of(add).file).endswith("test_trace.py")
    leaf = next(node for node in result.graph_module.graph.nodes if node.op == "call_module")
    assert (leaf.name, source_of(leaf).module_path, source_of(leaf).module_type) == ("linear", "linear", "Linear")


# ---- data-dependent code


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        while y.sum() > 0:
            y = self.chosen(y) - 1
        return y

    def chosen(self, y: torch.Tensor) -> torch.Tensor:
        return y


def test_a_data_dependent_submodule_becomes_a_leaf() -> None:
    result = check(lambda s, x: s.branch(x) + 1, X, Y, -Y, branch=Branch(), leaves=1)
    (remark,) = result.remarks
    assert (
        "y.sum() > 0" in remark.reason
        and "needs `self` as a whole" in remark.reason
        and remark.where.module_path == "branch"
        and "test_trace.py:" in str(remark.where)
    )
    assert targets(result) == ["x", "branch", operator.add, "output"]


def test_strict_and_root_raise() -> None:
    for model, options in ((Model(lambda s, x: s.branch(x), branch=Branch()), {"strict": True}), (Branch(), {})):
        with pytest.raises(TraceError, match="depends on data") as caught:
            traced(model, X, **options)
        assert caught.value.hint and "concrete_args" in caught.value.hint and caught.value.where.source


@pytest.mark.parametrize("constant", [0.5, 3, torch.ones(4)])
def test_a_constant_in_the_form_of_a_value(constant: float | torch.Tensor) -> None:
    """A tensor that is none of the graph's, converted to what a value is, once and to what it is already."""
    forward = lambda m, x: torch.where(x > 0, torch.as_tensor(constant).type_as(x), x) + torch.ones(4).type_as(x)  # noqa: E731
    made = traced(Model(forward), X)
    assert not [remark for remark in made.remarks if remark.kind != "guard"]
    for x in (X, Y):
        assert same(made.graph_module(x), forward(None, x))


@pytest.mark.parametrize("forward", [lambda s, x: x.numpy()])
def test_results_that_depend_on_data_and_are_no_tensors_raise(forward: Callable[..., Any]) -> None:
    with pytest.raises(TraceError, match=r"test_trace.py|depends on data"):
        traced(Model(forward), X)


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: x if torch.equal(x, x) else -x,
        lambda s, x: x if 3 in x else -x,
        lambda s, x: sum(x[:, i] for i in range(int(x.abs().max()) + 1)),
        lambda s, x: sum(x[i] for i in x.argmax(1, keepdim=True).nonzero()),
        lambda s, x: x[[i for i, row in enumerate(x[x[:, 0] < 0])]],
    ],
)
def test_lambdas_on_data_run_as_they_stand_or_both_ways(forward: Callable[..., Any]) -> None:
    result = check(forward, X, Y, -Y)
    assert {remark.kind for remark in result.remarks} <= {"float-statement", "data-branch"} and result.remarks


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * 2


def test_autograd_functions_are_statements_and_scripts_leaves() -> None:
    result = check(lambda s, x: s.inner(x) + 1, X, Y, inner=Model(lambda s, x: Double.apply(x)))
    assert [remark.kind for remark in result.remarks] == ["float-statement"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(nn.Linear(4, 4))
    check(lambda s, x: s.inner(x) + 1, X, Y, inner=script, leaves=1)


@fx.wrap
def wrapped(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


@fx.wrap
def wrapped_plain(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def test_wrapped_functions_are_followed_where_possible() -> None:
    assert "leaf" in {r.kind for r in check(lambda s, x: wrapped(x) * 2, X, Y, -Y, leaves=1).remarks}
    assert targets(check(lambda s, x: wrapped_plain(x), X)) == ["x", operator.add, "output"]


# ---- in-place operations


def alias(s: Any, x: torch.Tensor) -> Any:
    y = x * 2
    z = y
    y += 1
    y.mul_(3).relu_()
    F.relu(y, inplace=True)
    return z, y


def chunks(s: Any, x: torch.Tensor) -> Any:
    a, b = x.chunk(2, 1)
    a += 1
    return torch.cat([b, a], 1)


def views(s: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    y[:, 1:3].mul_(2)
    y[0][1] = 7
    y[:, 0] += y[:, 1]
    x[:, 0].zero_()
    x.fill_(2).copy_(y)
    return y, x


def promote(s: Any, x: torch.Tensor) -> Any:
    mask = torch.zeros(4)
    mask[0] = x.sum()
    mask += x[0]
    return mask + x


@pytest.mark.parametrize("forward", [alias, chunks, views, promote, lambda s, x: (s.relu(x) + x, x)])
def test_in_place_operations(forward: Callable[..., Any]) -> None:
    check(forward, X, Y)


def test_assignments_into_one_copy() -> None:
    def forward(s: Any, x: torch.Tensor) -> Any:
        mask = x.new_zeros((x.shape[0], 4))
        for i in range(4):
            mask[:, i] = i
        return mask + x

    assert targets(check(forward, X, Y)).count("clone") == 1


def test_unclear_mutations_raise() -> None:
    def base_after_view(s: Any, x: torch.Tensor) -> Any:
        y = x.unfold(-1, 2, 2)
        y += 1
        return x

    def parameter(s: Any, x: torch.Tensor) -> Any:
        s.p.add_(1)
        return x + s.p

    for forward, text in ((base_after_view, "another view"), (parameter, "parameter or buffer")):
        with pytest.raises(TraceError, match=text):
            traced(Model(forward), X)


def test_train_mode_leaves_statistics_and_randomness_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    module = trace(model, (torch.ones(2, 3, 8, 8),), options=TraceOptions(is_leaf)).graph_module
    assert same(before, dict(model.state_dict())) and torch.equal(random, torch.get_rng_state())
    module(torch.ones(2, 3, 8, 8)).sum().backward()
    assert module.training and model[0].weight.grad is not None and not same(before, dict(model.state_dict()))


def test_attributes_set_in_forward_are_taken_back() -> None:
    def forward(s: Any, x: torch.Tensor) -> Any:
        s.kept = x * 2
        s.cache["x"] = x
        return s.kept + s.cache["x"]

    model = Model(forward, cache={})
    traced(model, X)
    assert not hasattr(model, "kept") and model.cache == {}


# ---- arguments and results


Pair = collections.namedtuple("Pair", "a b")


@dataclasses.dataclass
class Record:
    a: torch.Tensor
    k: int = 3


def test_nested_inputs_and_outputs() -> None:
    check(lambda s, p: Pair(p.a + 1, p.b), Pair(X, X), Pair(Y, Y))
    check(lambda s, d: collections.OrderedDict(q=d["x"][0] + d["y"], n=None, m=3), {"x": [X, "no"], "y": X}, {"x": [Y, "no"], "y": Y})
    check(lambda s, r: Record(r.a * r.k, 2), Record(X), Record(Y))
    check(lambda s, x: (x.max(1), torch.topk(x, 2)[0], [{"k": Record(x)}, Pair(x, None)]), X, Y)


def test_arguments() -> None:
    class Args(nn.Module):
        def forward(self, x: Any, flag: bool = True, *rest: Any, scale: float = 2.0, mask: Any = None, **named: Any) -> Any:
            total = x * scale if flag else x
            total = total + sum(rest) + sum(named.values())
            return total if mask is None else total * mask

    model = Args().eval()
    plain = traced(model, X).graph_module
    assert torch.equal(plain(Y, True, scale=2.0), model(Y)) and torch.equal(plain(Y), model(Y))
    for options in ({"flag": False}, {"scale": 3.0}, {"mask": Y}):
        with pytest.raises(InputError, match="holds the argument"):
            plain(Y, **options)
    full = trace(model, (X, False, X), {"z": X, "mask": X}, options=TraceOptions(is_leaf)).graph_module
    assert torch.equal(full(Y, False, Y, z=Y, mask=Y), model(Y, False, Y, z=Y, mask=Y))
    fixed = trace(model, (X,), concrete_args={"flag": False}, options=TraceOptions(is_leaf)).graph_module
    assert torch.equal(fixed(Y), model(Y, False))


def test_wrong_inputs() -> None:
    model = Model(lambda s, x: s.linear(x))
    with pytest.raises(InputError, match=r"forward\(x"):
        traced(model, X, X, X)
    with pytest.raises(InputError, match="shapes cannot be multiplied") as caught:
        traced(model, torch.ones(2, 3))
    assert "test_trace.py" in str(caught.value.where)
    with pytest.raises(ConfigError):
        traced(model, X, concrete_args={"nothing": 1})


def test_state_keeps_its_names() -> None:
    module = check(lambda s, x: s.linear(x) * s.p + s.b + s.unsaved + torch.arange(4) + s.p.exp(), X, Y).graph_module
    assert set(module.state_dict()) == {"linear.weight", "linear.bias", "p", "b", "_constant0", "_constant1"}
    shared = check(lambda s, x: s.a(s.c(x)), X, **dict.fromkeys("ac", nn.Linear(4, 4)))
    assert targets(shared) == ["x", "a", "a", "output"]


# ---- what callers plug in


def test_decompositions() -> None:
    def attention(module: nn.MultiheadAttention, q: Any, k: Any, v: Any) -> Any:
        return F.linear(q, module.in_proj_weight)[..., :4] + k, None

    model = Model(lambda s, x: F.scaled_dot_product_attention(*s.mha(x, x, x)[:1] * 3), mha=nn.MultiheadAttention(4, 2))
    table = {nn.MultiheadAttention: attention, F.scaled_dot_product_attention: lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v}
    found = targets(traced(model, X, decompose=table))
    assert F.linear in found and torch.softmax in found and F.scaled_dot_product_attention not in found


def test_hooks_run() -> None:
    model = Model(lambda s, x: s.linear(x))
    model.linear.register_forward_hook(lambda module, args, result: result + 1)
    model.register_forward_hook(lambda module, args, result: result * 2)
    assert torch.equal(traced(model, X).graph_module(Y), model(Y))


def test_fold_parametrizations() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = [weight_norm(nn.Linear(4, 4)), spectral_norm(nn.Linear(4, 4))]
    layers += [parametrizations.weight_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 4))]
    model = nn.Sequential(*layers).eval()
    model(X)
    keys = set(model.state_dict())
    folded = fold_parametrizations(model)
    assert set(folded.state_dict()) == {f"{i}.{name}" for i in range(4) for name in ("weight", "bias")}
    assert torch.allclose(folded(X), model(X), atol=1e-6) and set(model.state_dict()) == keys


def test_folding_leaves_a_tensor_that_another_module_uses() -> None:
    """Two layers with one weight, of which one computes with it: torch's removal would write the computed values into both."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[1].weight = model[0].weight
    parametrizations.spectral_norm(model[0])
    folded = fold_parametrizations(model)
    assert torch.equal(folded[1].weight, model[1].weight) and not torch.equal(folded[0].weight, folded[1].weight)  # type: ignore[index]
    assert torch.allclose(folded(X), model(X), atol=1e-6)


# ---- scale, threads, determinism


def test_long_and_deep_models() -> None:
    class Chain(nn.Module):
        def __init__(self, length: int) -> None:
            super().__init__()
            self.length = length

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.length):
                x = x + 1
            return x

    class Nest(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.inner: nn.Module = Nest(depth - 1) if depth else nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + x

    assert len(traced(Chain(10_000), X).graph_module.graph.nodes) == 10_002
    first, second, third = (counted_lines(lambda n=n: traced(Chain(n), X))[0] for n in (200, 400, 600))
    assert third - second == pytest.approx(second - first, rel=0.005)  # work in proportion to the number of ops
    deep = Nest(150)
    assert torch.equal(traced(deep, X).graph_module(Y), deep(Y))


def test_other_threads_are_not_disturbed() -> None:
    model = Model(lambda s, x: s.relu(s.linear(x)) + x.shape[0])
    expected, errors = model(Y.clone()), []

    def work() -> None:
        for _ in range(20):
            if not torch.equal(model(Y.clone()), expected) or not torch.equal(traced(model, X).graph_module(Y), expected):
                errors.append("differs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not isinstance(X, int) and "forward" not in vars(model)


def test_the_same_model_gives_the_same_graph() -> None:
    model = load("shufflenet_v2_x0_5")
    first, second = (str(traced(model, torch.ones(1, 3, 64, 64)).graph_module.graph) for _ in range(2))
    assert first == second


# ---- real models


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("densenet121", 64), ("googlenet", 64), ("mobilenet_v3_small", 64), ("shufflenet_v2_x0_5", 64),
     ("swin_t", 64), ("vit_b_32", 224), ("convnext_tiny", 64), ("efficientnet_b0", 64), ("squeezenet1_1", 64)],
)  # fmt: skip
def test_torchvision(name: str, size: int) -> None:
    model = load(name)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, size, size, generator=generator) for n in (1, 2))
    result = traced(model, x)
    assert not [remark for remark in result.remarks if remark.kind == "leaf"]
    with torch.no_grad():
        assert torch.equal(result.graph_module(x), model(x)) and torch.equal(result.graph_module(y), model(y))


class Gathers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Any, y: Any = None, *rest: Any, flag: bool = True, **named: Any) -> Any:
        return self.linear(x) + (0 if y is None else y) + sum(rest) + sum(named.values()) if flag else x


@pytest.mark.parametrize(("args", "kwargs", "names"), [
    ((X,), {}, ["x", "y", "flag"]),
    ((X, X, X, X), {}, ["x", "y", "rest_0", "rest_1", "flag"]),
    ((X, X, X), {"z": X}, ["x", "y", "rest_0", "flag", "z"]),
    ((X,), {"z": X, "y": X}, ["x", "y", "flag", "z"]),
])  # fmt: skip
def test_gathered_arguments_get_a_name_each(args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]) -> None:
    model = Gathers().eval()
    result = trace(model, args, kwargs, options=TraceOptions(is_leaf))
    found = [str(node.target) for node in result.graph_module.graph.nodes if node.op == "placeholder"]
    assert found == names
    assert same(result.graph_module(*args, **kwargs), model(*args, **kwargs))


def counts_arguments(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Takes the signature over and adds a keyword that the caller left out, as transformers' decorators do."""

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("scale", 3.0)
        return forward(self, *args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    @counts_arguments
    def forward(self, x: Any, y: Any = None, scale: float = 1.0) -> Any:
        return x * scale if y is None else x * scale + y


@pytest.mark.parametrize(("args", "kwargs", "concrete"), [
    ((X,), {}, {}),
    ((), {"x": X}, {}),
    ((), {"x": X, "y": X}, {}),
    ((X, X), {}, {}),
    ((X,), {}, {"scale": 2.0}),
])  # fmt: skip
def test_what_is_left_at_its_default_is_not_passed(args: tuple[Any, ...], kwargs: dict[str, Any], concrete: dict[str, Any]) -> None:
    model = Decorated().eval()
    result = trace(model, args, kwargs, concrete_args=concrete, options=TraceOptions(is_leaf))
    assert same(result.graph_module(*args, **kwargs), model(*args, **kwargs, **concrete))


class FlagBetween(nn.Module):
    def forward(self, x: Any, flag: bool, y: Any, z: Any = 1.0) -> Any:
        return x + y * z if flag else x


def test_a_concrete_argument_between_positional_ones() -> None:
    result = trace(FlagBetween().eval(), (X, Y[:2]), concrete_args={"flag": True}, options=TraceOptions(is_leaf))
    assert same(result.graph_module(X, Y[:2]), X + Y[:2])


class Cache:
    """An object that a program cannot build."""

    def __init__(self, keys: Any) -> None:
        self.keys = [keys]


@dataclasses.dataclass
class Answer:
    logits: Any
    more: Any = None


@pytest.mark.parametrize(("made", "place"), [
    (lambda x, c: (x, c), r"at `\[1\]`"),
    (lambda x, c: {"x": x, "past": [x, c]}, r"at `\['past'\]\[1\]`"),
    (lambda x, c: Answer(x, {"past": c}), r"at `\.more\['past'\]`"),
    (lambda x, c: c, "as its result"),
])  # fmt: skip
def test_a_result_that_no_program_can_build_is_named(made: Callable[[Any, Any], Any], place: str) -> None:
    with pytest.raises(TraceError, match=f"object of type Cache {place}") as caught:
        traced(Model(lambda s, x: made(s.linear(x), Cache(x))), X)
    assert caught.value.hint and "concrete_args" in caught.value.hint
