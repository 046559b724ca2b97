"""The native back end as users meet it: results, sizes, instruction sets, threads, files."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import qcompiler
from qcompiler import debug
from qcompiler.backends.native.build.library import here
from qcompiler.debug.metrics import compute_sqnr
from qcompiler.errors import ConfigError, InputError, QCompilerError
from tests.children import WAITING
from tests.native_nets import NETS, Through, conv, converted, example, net, region_of, shaken, steps_apart

SMALL = ("residual", "shuffle", "squeeze and excite", "adaptive", "cat")


@pytest.mark.parametrize("name", NETS)
def test_each_layer_is_within_a_step_of_the_quantized_graph(name: str) -> None:
    module, graph, x = net(name)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    steps = steps_apart(module, graph, x)
    assert steps and max(steps.values()) <= 1  # sums are rounded twice in C, and in float32 in the graph
    assert module(x[:0]).shape == graph(x[:0]).shape


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_one_region(name: str) -> None:
    module, _, x = net(name)
    region_of(module)
    assert {call.op for call in module.program.calls} == {"runtime.run_region", "operator.getitem"}
    with torch.no_grad():
        assert module(x).shape == NETS[name][0]()(x).shape


@pytest.mark.parametrize("name", [name for name, (_, shape) in NETS.items() if len(shape) == 4])
def test_other_sizes_than_the_examples(name: str) -> None:
    module, graph, x = net(name)
    n, c, h, w = x.shape
    for shape in ((n + 1, c, h, w), (1, c, h + 8, w + 4), (3, c, h + 4, w)):
        if name == "tokens" or name != "adaptive" or shape:
            steps = steps_apart(module, graph, example(shape))
            assert max(steps.values()) <= 1, shape


def test_any_strides_of_the_input() -> None:
    module, _, x = net("residual")
    wide = example((2, 3, 10, 18))[..., ::2]
    for other in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(module(other), module(x))
    assert torch.equal(module(wide), module(wide.contiguous()))


@pytest.mark.parametrize("name", SMALL)
def test_equal_bits_on_every_instruction_set_and_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, x = net(name)
    expected = module(x)
    seen = set()
    for cap in here():
        monkeypatch.setenv("QCOMPILER_ISA", cap)
        capped = copy.deepcopy(module)
        seen.add(region_of(capped).isa)
        for threads in (1, 2, 4):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                assert torch.equal(capped(x), expected), (cap, threads)
            finally:
                torch.set_num_threads(before)
    assert "scalar" in seen


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, _ = net("conv")
    monkeypatch.setenv("QCOMPILER_ISA", "sse9")
    with pytest.raises(ConfigError, match="sse9"):
        copy.deepcopy(module)


def test_many_python_threads_at_once() -> None:
    module, _, _ = net("squeeze and excite")
    inputs = [example((1 + i % 3, 3, 9 + i % 4, 7), seed=i) for i in range(12)]
    expected = [module(one) for one in inputs]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(10):
                assert all(map(torch.equal, pool.map(module, inputs), expected))
    finally:
        torch.set_num_threads(before)


def test_sizes_beyond_those_that_are_kept() -> None:
    module, graph, _ = net("conv")
    for width in (*range(9, 40), 9):
        x = example((1, 3, 9, width))
        assert max(steps_apart(module, graph, x).values()) <= 1
        assert torch.equal(module(x), module(x))


def test_a_forked_child_computes(tmp_path: Path) -> None:
    script = tmp_path / "fork.py"
    script.write_text(
        textwrap.dedent("""
        import os, torch
        from tests.native_nets import net
        module, _, x = net("residual")
        torch.set_num_threads(2)
        expected = module(x)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(2)
            os._exit(0 if all(torch.equal(module(x), expected) for _ in range(50)) else 1)
        assert os.waitpid(child, 0)[1] == 0 and torch.equal(module(x), expected)
    """)
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, script], check=True, timeout=WAITING, env={**os.environ, "PYTHONPATH": str(root)})


@pytest.mark.parametrize("name", ["residual", "shuffle"])
def test_copies_and_files(name: str, tmp_path: Path) -> None:
    module, _, x = net(name)
    expected = module(x)
    qcompiler.save(module, tmp_path / "net.qc")
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), qcompiler.load(tmp_path / "net.qc")):
        assert torch.equal(other(x), expected)
        assert set(other.state_dict()) == set(module.state_dict())
        assert other._backend == "native"


def test_the_state_has_the_users_names_and_takes_other_weights() -> None:
    module, _, x = net("residual")
    other, _, _ = net("residual")
    names = set(module.state_dict())
    assert {"layers.0.0.weight", "layers.0.0.weight_scale", "layers.1.bias", "activation_scales", "activation_zero_points"} <= names
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["layers.1.weight"] = -state["layers.1.weight"].clamp(-127, 127)
    other.load_state_dict(state)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


def test_other_weights_need_no_other_c() -> None:
    first, _, _ = net("residual")
    torch.manual_seed(77)
    second, _ = converted(NETS["residual"][0](), example((2, 3, 10, 9), seed=8))
    assert region_of(first).source.text == region_of(second).source.text


def test_hooks_and_attributes() -> None:
    module, _, x = net("conv")
    called: list[Any] = []
    module.register_forward_hook(lambda m, args, result: called.append(result))
    module(x)
    assert len(called) == 1


def cumulated(m: Any, x: Tensor) -> Tensor:
    return m[1](torch.logcumsumexp(m[0](x), 2))


def rolled(y: Tensor, by: int, dim: int) -> Tensor:
    """A roll in six dimensions, which has no C form."""
    return y[:, None, None].roll(by, dim + 2).flatten(1, 3)


def test_what_has_no_c_form_runs_in_torch_between_regions() -> None:
    model = Through(lambda m, x: m[1](rolled(m[0](x), 1, 2)), conv(3, 8), conv(8, 4, 1))
    module, graph = converted(model, x := example((1, 3, 9, 9)))
    (remark,) = [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    assert "6 dimensions" in remark.text
    assert sum(call.op == "runtime.run_region" for call in module.program.calls) == 2
    with torch.no_grad():
        apart = (module(x) - graph(x)).abs().max()
    assert apart <= 3 * float(module.activation_scales.max())


def halves(y: Tensor) -> Tensor:
    return y.half().float()


ENDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "long": (lambda y: (4 * y).long().float(), "its result is int64"),
    "int": (lambda y: y.to(torch.int32).float(), "its result is int32"),
    "half": (halves, "its result is float16"),
    "cummax": (lambda y: y.cummax(1).values, "it gives several values"),
    "kthvalue": (lambda y: torch.kthvalue(y, 2, 1, True)[0].expand(-1, 8, -1, -1), "it gives several values"),
    "one_hot": (lambda y: F.one_hot(y.argmax(1), 8).permute(0, 3, 1, 2).float(), "its result is int64"),
    "antialias": (lambda y: F.interpolate(y, (5, 5), mode="bilinear", antialias=True), "an antialiased resize has no C form"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_gives_no_floats_ends_a_region_with_a_remark(name: str) -> None:
    ends, reason = ENDS[name]
    module, graph = converted(Through(lambda m, x: m[1](ends(m[0](x))), conv(3, 8), conv(8, 4, 1)), x := example((1, 3, 9, 9)))
    first, *_ = [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    assert reason in first.text
    assert not [remark for remark in qcompiler.remarks(module) if "takes the number" in remark.text]
    assert sum(call.op == "runtime.run_region" for call in module.program.calls) == 2
    with torch.no_grad():
        for batch in (x, torch.cat((x, -x))):
            assert torch.allclose(module(batch), graph(batch), atol=3 * float(module.activation_scales.max()))


def test_whole_numbers_in_front_of_a_region_have_no_remark() -> None:
    model = Through(lambda m, x: m[1](m[0](x.long() % 7)), nn.Embedding(7, 16), nn.Linear(16, 4))
    module, _ = converted(model, example((2, 5)))
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]


def test_a_float_op_between_regions_keeps_the_order() -> None:
    module, graph = converted(Through(cumulated, conv(3, 8), conv(8, 4, 1)), x := example((1, 3, 9, 9)))
    with torch.no_grad():
        assert torch.allclose(module(x), graph(x), atol=3 * float(module.activation_scales.max()))


def test_regions_do_not_wait_for_themselves() -> None:
    def diamond(m: Any, x: Tensor) -> Tensor:
        y = m[0](x)
        return m[2](torch.cat([m[1](rolled(y, 1, 3)), y], 1))

    module, graph = converted(Through(diamond, conv(3, 8), conv(8, 8, 1), conv(16, 4, 1)), x := example((1, 3, 9, 9)))
    assert sum(call.op == "runtime.run_region" for call in module.program.calls) == 2
    with torch.no_grad():
        assert torch.allclose(module(x), graph(x), atol=3 * float(module.activation_scales.max()))


@pytest.mark.parametrize("shape", [(1, 4, 9, 9), (1, 3, 1, 1)])
def test_inputs_that_do_not_fit(shape: tuple[int, ...]) -> None:
    module, _, _ = net("conv")
    with pytest.raises(InputError):
        module(example(shape))


def test_only_memory_of_the_cpu_is_read() -> None:
    module, _, x = net("conv")
    with pytest.raises(InputError, match="on the CPU"):
        region_of(module)(torch.empty(x.shape, device="meta"))
    negated = torch._neg_view(x)
    assert torch.equal(module(negated), module(negated.contiguous().clone()))
    assert torch.equal(module(torch._neg_view(-x)), module(x))


def test_a_size_that_a_layer_cannot_be_laid_out_for_names_it() -> None:
    """The sum of 2^31 / 255 codes leaves 32 bits."""
    module, _ = converted(nn.Sequential(nn.Conv1d(1, 1, 1), nn.AdaptiveAvgPool1d(1), nn.Conv1d(1, 4, 1)), example((1, 1, 16)))
    with pytest.raises(InputError, match="_1: ValueError: a mean over too many values"):
        module(torch.zeros(1, 1, 2**31 // 255 + 1))
    assert module(torch.zeros(1, 1, 2**20)).shape == (1, 4, 1)


def test_a_batch_of_nothing() -> None:
    module, _, x = net("residual")
    assert module(x[:0]).shape == (0, *module(x).shape[1:])


def test_settings_of_torchs_back_end_are_refused() -> None:
    with pytest.raises(ConfigError, match="QCOMPILER_ISA"):
        qcompiler.prepare_fx(nn.Sequential(nn.Linear(3, 3)).eval(), None, (example((1, 3)),), backend="native", isa="avx2")


def test_explain_counts_native_ops() -> None:
    module, _, _ = net("residual")
    assert "int8" in str(qcompiler.explain(module))


@pytest.mark.parametrize("change", [
    lambda d: d["steps"].clear(),
    lambda d: d.update(outputs=["nowhere"]),
    lambda d: d["steps"].__setitem__(0, (d["steps"][0][0], "system", ("%x",), {})),
    lambda d: d["steps"].__setitem__(0, ("a", "quantize", ("%nothing", 0, 0, 255), {})),
    lambda d: d["steps"].__setitem__(0, (d["steps"][0][0], "quantize", (d["steps"][0][2][0], 99, 0, 255), {})),
    lambda d: d["steps"].__setitem__(0, (d["steps"][0][0], "quantize", (d["steps"][0][2][0], 0, -5, 900), {})),
    lambda d: d.update(inputs=[("x", (-1, 2))]),
])  # fmt: skip
def test_a_file_that_describes_no_region_is_refused(change: Any) -> None:
    module, _, _ = net("conv")
    region = region_of(module)
    (call,) = [call for call in module.program.once if call.op == "runtime.native_region"]
    data = copy.deepcopy(call.args[0])
    change(data)
    from qcompiler.backends.native.runtime import native_region

    tensors = [module.state_dict()[const.name] for const in call.args[1]]
    scales, zeros = module.activation_scales.tolist(), module.activation_zero_points.tolist()
    with pytest.raises(QCompilerError):
        native_region(data, tensors, scales, zeros)
    assert region.network.layers


def test_compare_sees_the_values_inside_of_a_region() -> None:
    module, _, x = net("squeeze and excite")
    torch.manual_seed(1)
    found = debug.compare(shaken(NETS["squeeze and excite"][0]()), module, [x])
    assert {"layers_0_0_q", "mul_q", "layers_3_0_dq"} <= {node.name for node in found.nodes}
    assert all(node.own > 20 for node in found.nodes), found
    assert not found.unmatched


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "size": lambda x: x.view(x.size(0), -1),
    "keyword": lambda x: x.view(x.size(dim=0), -1),
    "negative": lambda x: x.view(x.size(-4), -1),
    "shape": lambda x: x.reshape((x.shape[0], -1)),
    "product": lambda x: x.view(-1, x.shape[1] * x.shape[2] * x.shape[3]),
    "part of a shape": lambda x: x.reshape(x.shape[:1] + (-1,)),  # noqa: RUF005
    "starred": lambda x: x.reshape(*x.shape[:1], -1),
    "number of elements": lambda x: x.reshape(x.numel() // 128, 128),
}


class Flattened(nn.Module):
    """A view by sizes of its input, behind an op that has no C form: the number is made in one region and used in another."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.first, self.second, self.last = spelling, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(0)
        y = self.second(F.pad(rolled(self.first(x).relu(), 1, 2), (1, 1, 1, 1)))
        result: Tensor = self.last(SPELLINGS[self.spelling](y)) + self.last(y.view(size, -1))
        return result


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_numbers_go_from_region_to_region(spelling: str) -> None:
    torch.manual_seed(0)
    model, x = Flattened(spelling).eval(), torch.randn(2, 3, 4, 4)
    prepared = qcompiler.prepare_fx(model, None, (x,), backend="native")
    qcompiler.calibrate(prepared, [x])
    module, graph = qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared)
    for given in (x, torch.randn(5, 3, 4, 4).clamp(-2, 2)):
        with torch.inference_mode():
            assert module(given).shape == model(given).shape
            assert debug.compute_sqnr(graph(given), module(given)) > 25
    told = [remark.text for remark in qcompiler.remarks(module) if "which data gives" in remark.text]
    assert bool(told) == (spelling == "number of elements")


def places_by_mask(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[1](y[y[:, 0] > y.mean()])


def places_in_a_tensor(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[1](y[:, y.sum(0).argsort()])


def number_of_a_tensor(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[1](y[: int((y[:, 0] > y.mean()).sum())])


def dimension_of_a_tensor(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[1](y.narrow(0, torch.argmax(y[:, 0]), 1))


@pytest.mark.parametrize("between", [places_by_mask, places_in_a_tensor, number_of_a_tensor, dimension_of_a_tensor])
def test_numbers_that_torch_computes_from_values_are_no_part_of_a_plan(between: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    module, graph = converted(Through(between, nn.Linear(4, 4), nn.Linear(4, 4)), x := example((5, 4)))
    with torch.no_grad():
        for given in (x, x[2:], x[:1], example((9, 4), seed=9)):
            found, expected = module(given), graph(given)
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, atol=3 * float(module.activation_scales.max()))


def strided(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    a, b, c = m[0](x), m[1](x), m[2](x)
    wide = m[3](a[:, :, None].expand(-1, -1, 4) * 1)
    out = [a[:, 1], a[:, ::2], a[:, :, None].expand(-1, -1, 3), torch.tanh(b[:, 1]), wide]
    out += [m[4](a[:, :, None] + b[:, None, :]), m[4](a[:, :, None] * b[:, None, :]), m[3](c[:, 1:2] + a)]
    return (*out, m[3](torch.stack([c[:, 1], c[:, 2], c[:, 0], c[:, 0]], 1)))


def test_elements_that_do_not_lie_side_by_side() -> None:
    """Columns, every second element, and values that repeat an element: handed out, as operands and behind functions."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(3, 3)]
    module, graph = converted(Through(strided, *layers), x := example((5, 4)))
    for given in (x, x[:1], x[:0]):
        assert max(steps_apart(module, graph, given).values(), default=0) <= 1
        for found, expected in zip(module(given), graph(given), strict=True):
            assert torch.allclose(found, expected, atol=3 * float(module.activation_scales.max()))


class Assigned(nn.Module):
    """Readers of a value before and after it is assigned into."""

    def __init__(self, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.c, self.d, self.how = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), how

    def forward(self, x: Tensor) -> Any:
        y = self.c(x)
        return self.how(x), self.d(y), self.how(y), self.how(y + 1)


def item(x: Tensor) -> Any:
    y = x.clone()
    z = y.roll(1, 2)
    y[:, 0] = 0.25
    return torch.cat([x, y], 1), z, y + x


def method(x: Tensor) -> Any:
    y = torch.cat([x, x], 1)
    z = y * 2
    y.fill_(0.5)
    return z, y + 1, y


def twice(x: Tensor) -> Any:
    y = x.clone()
    y[:, 0] = 0.25
    z = y + x
    y[:, 1] = z[:, 0]
    return y, z, y * z


WEIGHTS = {channels: torch.linspace(-1, 1, 4 * channels).view(4, channels, 1, 1) for channels in (3, 4)}


def rounded_behind(x: Tensor) -> Any:
    """Only int8 reads it, behind the assignment: its codes are those of the new values."""
    y = torch.nn.functional.hardsigmoid(torch.nn.functional.silu(x)).clone()
    y[:, 0] = 0.25
    return torch.nn.functional.conv2d(y, WEIGHTS[int(x.shape[1])])


@pytest.mark.parametrize("how", [item, method, twice, rounded_behind])
def test_no_region_reaches_across_an_assignment(how: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    model, x = Assigned(how).eval(), torch.randn(2, 3, 4, 4)
    prepared = qcompiler.prepare_fx(model, None, (x,), backend="native")
    qcompiler.calibrate(prepared, [x])
    module, before = qcompiler.convert_fx(prepared), x.clone()
    found, wanted = (tree_leaves(made(x)) for made in (module, qcompiler.convert_to_reference_fx(prepared)))
    assert torch.equal(x, before)
    for got, want in zip(found, wanted, strict=True):
        assert compute_sqnr(want, got) > 35
