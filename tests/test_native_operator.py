"""The native module inside torch.compile, torch.export, torch.jit.trace and torch's modes: one operator, equal bits, nothing kept."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import qcompiler
from qcompiler.backends.native.live_regions import region_of_text
from qcompiler.backends.native.region import REGIONS
from qcompiler.backends.native.steps import Region, RegionError
from qcompiler.backends.torch.program.registry import NATIVE_REGION
from qcompiler.errors import ConfigError, InputError, QCompilerError
from tests.children import WAITING
from tests.native_nets import NETS, Through, conv, converted, example, net, region_of

OPERATOR = torch.ops.qcompiler.native_region.default
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def operators(graph: Any) -> list[Any]:
    return [node.target for node in graph.nodes if node.op == "call_function" and node.target is OPERATOR]


def compiled(module: nn.Module, **settings: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(module, backend="aot_eager", fullgraph=True, **settings)


def exported(module: nn.Module, x: Tensor, **settings: Any) -> Any:
    with torch.no_grad():
        return torch.export.export(module, (x,), **settings)


@pytest.mark.parametrize("name", NETS)
def test_a_network_exports_as_one_operator_of_any_batch(name: str) -> None:
    module, _, x = net(name)
    x = example((2, *x.shape[1:]))  # torch.export holds a size of 1 fixed
    program = exported(module, x, dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    assert len(operators(program.graph)) == 1
    assert set(program.state_dict) == set(module.state_dict())
    assert not program.constants  # all that it computes with stands under the user's names
    for batch in (1, 5):
        given = example((batch, *x.shape[1:]))
        assert torch.equal(program.module()(given), module(given)), batch


@pytest.mark.parametrize("name", ["residual", "squeeze and excite", "depthwise", "sequence", "volume", "pools", "to another's size", "cat"])
def test_sizes_of_space_stay_open_in_an_export(name: str) -> None:
    module, _, x = net(name)
    program = exported(module, x, dynamic_shapes=(dict.fromkeys(range(2, x.dim()), torch.export.Dim.AUTO),))
    for more in (0, 4, 8):
        given = example((*x.shape[:2], *(n + more for n in x.shape[2:])))
        assert torch.equal(program.module()(given), module(given)), more


ORDER = [3, 1, 0, 2, 5, 4, 7, 6]
MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda y: torch.roll(y, (1, 2), (2, 3)),
    "roll of all": lambda y: torch.roll(y, 3),
    "flip": lambda y: y.flip(-1),
    "mirrored": lambda y: F.pad(y, (1, 1, 2, 0), mode="reflect"),
    "repeat": lambda y: y.repeat(1, 1, 2, 1),
    "each again": lambda y: y.repeat_interleave(2, dim=2),
    "a list": lambda y: y[:, ORDER],
    "a tensor": lambda y: y.index_select(1, torch.tensor(ORDER)),
    "lower": lambda y: y.tril(),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_what_moves_elements_holds_no_size_of_an_export(move: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    module, _ = converted(Through(lambda m, x: m[1](move(m[0](x))), conv(3, 8), conv(8, 4, 1)), x := example((2, 3, 9, 8)))
    batch, height = torch.export.Dim("batch", max=64), torch.export.Dim("height", min=5, max=64)
    program = exported(module, x, dynamic_shapes=({0: batch, 2: height},))
    for given in (x, example((5, 3, 12, 8)), example((1, 3, 5, 8))):
        assert torch.equal(program.module()(given), module(given))


def test_a_script_is_refused_in_words() -> None:
    module, _, _ = net("conv")
    with pytest.raises(QCompilerError, match="native regions"):
        torch.jit.script(module)


def test_a_strict_export_has_the_same_operator() -> None:
    module, _, x = net("residual")
    program = exported(module, x, strict=True)
    assert len(operators(program.graph)) == 1 and torch.equal(program.module()(x), module(x))


LOADS = """
import sys, torch, qcompiler
program = torch.export.load(sys.argv[1]).module()
x, expected = torch.load(sys.argv[2])
assert torch.equal(program(x), expected)
traced = torch.jit.load(sys.argv[3])
assert torch.equal(traced(x), expected)
"""


def test_saved_programs_run_in_a_process_that_imports_the_package(tmp_path: Path) -> None:
    module, _, x = net("residual")
    given = example((3, *x.shape[1:]))
    torch.export.save(exported(module, x, dynamic_shapes=({0: torch.export.Dim("batch")},)), tmp_path / "net.pt2")
    torch.jit.save(torch.jit.trace(module, (x,)), tmp_path / "net.pt")
    torch.save((given, module(given)), tmp_path / "values")
    subprocess.run(
        [sys.executable, "-c", LOADS, *(tmp_path / name for name in ("net.pt2", "values", "net.pt"))], check=True, timeout=WAITING
    )


def test_an_exported_program_computes_with_the_weights_that_it_holds() -> None:
    module, _, x = net("residual")
    program = exported(module, x).module()
    before = module(x)
    assert torch.equal(program(x), before)
    changed = {name: value.clone() for name, value in module.state_dict().items()}
    changed["layers.1.weight"] = -changed["layers.1.weight"].clamp(-127, 127)
    changed["activation_scales"] = changed["activation_scales"] * 1.5
    program.load_state_dict(changed)
    module.load_state_dict(changed)
    assert torch.equal(program(x), module(x)) and not torch.equal(program(x), before)


def test_a_copy_of_an_exported_program_is_its_own() -> None:
    module, _, x = net("conv")
    program = exported(module, x)
    other = copy.deepcopy(program).module()
    del module
    gc.collect()
    assert torch.equal(other(x), program.module()(x))


def test_torch_compile_takes_it_as_one_operator_of_any_size() -> None:
    module, _, _ = net("residual")
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    run = torch.compile(module, backend=backend, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 10, 9), (3, 3, 12, 14), (5, 3, 20, 11)):
        assert torch.equal(run(example(shape)), module(example(shape)))
    assert len(graphs) == 1 and len(operators(graphs[0].graph)) == 1


def test_torch_compile_sees_other_weights() -> None:
    module, _, x = net("residual")
    run = compiled(module)
    before = run(x)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["layers.1.weight"] = -state["layers.1.weight"].clamp(-127, 127)
    state["activation_scales"] = state["activation_scales"] * 1.25
    module.load_state_dict(state)
    assert torch.equal(run(x), module(x)) and not torch.equal(run(x), before)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_several_modules_inside_of_a_compiled_model(backend: str) -> None:
    first, _, x = net("residual")
    second, _, _ = net("conv")
    other = copy.deepcopy(second)
    model = Through(lambda m, x: m[0](x * 2).mean() + m[1](x).relu().sum() + m[2](x + 1).sum(), first, second, other)
    torch._dynamo.reset()
    with torch.no_grad():
        run = torch.compile(model, backend=backend, fullgraph=True)
        assert torch.allclose(run(x), model(x), rtol=1e-5)
        assert torch.equal(run(x), run(x))


@pytest.mark.parametrize("mode", ["eager", "compiled", "exported", "traced"])
def test_no_gradient_flows_and_modes_change_nothing(mode: str) -> None:
    module, _, x = net("residual")
    expected = module(x)
    make = {"eager": lambda: module, "compiled": lambda: compiled(module), "exported": lambda: exported(module, x).module(),
            "traced": lambda: torch.jit.trace(module, (x,))}  # fmt: skip
    run = make[mode]()
    given = x.clone().requires_grad_()
    assert not run(given).requires_grad and torch.equal(run(given), expected)
    with torch.inference_mode():
        assert torch.equal(run(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(x)
        assert found.dtype is torch.float32 and torch.equal(found, expected)
    if mode != "exported":  # its modules have no mode
        run.train()
        assert torch.equal(run(x), expected)


def around(setting: str) -> Any:
    """What somebody set before a call."""
    if setting == "default dtype":
        stack = contextlib.ExitStack()
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        return stack
    return {"device": lambda: torch.device("meta"), "autocast": lambda: torch.autocast("cpu", torch.bfloat16)}[setting]()


@pytest.mark.parametrize("setting", ["default dtype", "device", "autocast"])
def test_what_is_set_around_an_exported_program_changes_nothing(setting: str, tables_of_sizes: tuple[Any, Any]) -> None:
    """Float32 was written into memory of another dtype, or of no device."""
    program, module = tables_of_sizes
    for batch, length in ((2, 9), (3, 9)):  # the second one's tables are made here
        x = example((batch, length, 6))
        expected = module(x)
        with around(setting):
            made = program(x)
        assert made.dtype is torch.float32 and torch.equal(made, expected)


@pytest.fixture(scope="module")
def tables_of_sizes() -> tuple[Any, Any]:
    """An exported program with values that its sizes settle, and its module."""

    def masked(m: Any, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        return m[1](m[0](x) + (places[None, :, None] > 4) * torch.full((x.shape[0], 1, 1), 0.5))  # type: ignore[no-any-return]

    module, _ = converted(Through(masked, nn.Linear(6, 8), nn.Linear(8, 3)), example((2, 9, 6)))
    return exported(module, example((2, 9, 6)), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},)).module(), module


def test_a_dispatch_mode_sees_one_operator() -> None:
    module, _, x = net("residual")
    seen: list[Any] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watch():
        found = module(x)
    assert torch.equal(found, module(x)) and seen.count(OPERATOR) == 1
    with FlopCounterMode(display=False):
        module(x)


def test_numbers_of_sizes_beside_tensors() -> None:
    """A region that hands out a size runs outside of a compiled graph, and is exported with the size as a symbol."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m[0](x)
        return m[1](y.roll(1, 2)).reshape(y.shape[0], -1)

    module, _ = converted(Through(forward, conv(3, 8), conv(8, 4, 1)), x := example((2, 3, 9, 9)))
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(module, backend="eager")(x), module(x))


def test_float_parts_between_regions_are_exported_with_them() -> None:
    module, _ = converted(Through(lambda m, x: m[1](m[0](x).logcumsumexp(2)), conv(3, 8), conv(8, 4, 1)), x := example((2, 3, 9, 9)))
    program = exported(module, x, dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    assert len(operators(program.graph)) == 2 and torch.equal(program.module()(x[:1]), module(x[:1]))
    assert torch.equal(compiled(module)(x), module(x))


def test_vmap_is_refused_in_words() -> None:
    module, _, x = net("residual")
    with pytest.raises((RuntimeError, InputError, ConfigError), match=r"native_region|vmap"):
        torch.func.vmap(module)(x[None])


def test_nothing_stays_of_modules_and_programs_that_are_gone() -> None:
    def held() -> list[Any]:
        return [reference for references in REGIONS.found.values() for reference in references]

    gc.collect()
    before = held()  # those of other tests, which may go meanwhile
    module, _, x = net("residual")
    other = copy.deepcopy(module)
    program, run = exported(module, x).module(), compiled(other)
    buffer = io.BytesIO()
    torch.export.save(exported(module, x), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for _ in range(3):
        assert torch.equal(program(x), run(x)) and torch.equal(loaded(x), run(x))
    ours = [reference for reference in held() if not any(reference is other for other in before)]
    assert len(ours) == 3  # of the module, its copy, and what was loaded
    gone = [weakref.ref(region_of(m)) for m in (module, other)]
    del module, other, program, run, loaded
    torch._dynamo.reset()
    gc.collect()
    assert [one() for one in gone] == [None, None]
    assert not [reference for reference in held() if any(reference is one for one in ours)]


def test_a_program_outlives_its_module() -> None:
    module, _, x = net("residual")
    expected = module(x)
    traced, program = torch.jit.trace(module, (x,)), exported(module, x).module()
    del module
    gc.collect()
    for _ in range(2):
        assert torch.equal(traced(x), expected) and torch.equal(program(x), expected)


def test_too_few_constants_are_counted() -> None:
    module, _, x = net("residual")
    region = region_of(module)
    constants, text = list(region.constants), region.description
    for count in range(len(constants) - 2):
        with pytest.raises(RegionError, match=f"is none of the {count} constants that are given"):
            OPERATOR([x], [*constants[:count], *constants[-2:]], text)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"dict":[["inputs",[]]]}', "x" * 100, "[" * 100_000, '{"tuple":[]}'])
def test_text_that_describes_no_region(text: str) -> None:
    with pytest.raises(RegionError):
        region_of_text(text)
    with pytest.raises(RegionError):
        OPERATOR([torch.zeros(1)], [torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)], text)


@pytest.mark.parametrize("change", [
    lambda c: c.clear(),
    lambda c: c.pop(),
    lambda c: c.pop(0),
    lambda c: c.__setitem__(-1, c[-1][:1]),
    lambda c: c.__setitem__(-2, c[-2].float()),
    lambda c: c.__setitem__(-2, c[-2] * float("nan")),
    lambda c: c.__setitem__(-1, c[-1] + 1000),
    lambda c: c.__setitem__(0, c[0].float()),
    lambda c: c.__setitem__(0, c[0][:, :1]),
    lambda c: c.reverse(),
])  # fmt: skip
def test_constants_that_do_not_fit_are_refused(change: Any) -> None:
    module, _, x = net("conv")
    region = region_of(module)
    constants = [tensor.clone() for tensor in region.constants]
    change(constants)
    with pytest.raises(qcompiler.QCompilerError):
        OPERATOR([x], constants, region.description)


@pytest.mark.parametrize("inputs", [[], [torch.zeros(1)], [torch.zeros(1, 3, 9, 9)] * 2, [torch.zeros(1, 4, 9, 9)]])
def test_inputs_that_do_not_fit_are_refused(inputs: list[Tensor]) -> None:
    module, _, _ = net("conv")
    region = region_of(module)
    with pytest.raises((qcompiler.QCompilerError, RuntimeError, ValueError)):
        OPERATOR(inputs, region.constants, region.description)


def test_a_region_that_hands_out_codes_is_refused() -> None:
    """Nothing would write the floats of it: they were what stood in memory."""
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    module = qcompiler.quantize(net, [torch.ones(2, 8)], progress=False, backend="native")
    (region,) = [call.args[0] for call in module.program.once if call.op == NATIVE_REGION]
    assert Region.from_data(region).outputs == tuple(region["outputs"])
    for codes in [out for out, op, *_ in region["steps"] if op == "quantize"]:
        with pytest.raises(RegionError, match="hands out the codes"):
            Region.from_data({**region, "outputs": [codes]})
