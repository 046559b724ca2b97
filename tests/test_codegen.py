"""Program and CompiledModule: equal results in every form a module is kept in, and names that cannot do harm."""

from __future__ import annotations

import copy
import gc
import importlib.util
import inspect
import io
import linecache
import operator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from qcompiler.backends.torch.program.assemble import compile_graph
from qcompiler.backends.torch.program.build import build
from qcompiler.backends.torch.program.export import export_source
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.registry import UnknownOpError
from qcompiler.backends.torch.program.statements import ProgramError
from qcompiler.errors import ConfigError, InputError, QCompilerError
from tests.lowered_net import ENGINES, INPUT, lowered


def compiled(engine: str = ENGINES[0], **options: Any) -> CompiledModule:
    return compile_graph(lowered(**options), name="Net", engine=engine)


def same(a: Any, b: Any) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1]["logits"], b[1]["logits"])


def source_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported_model", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("engine", ENGINES)
def test_every_form_is_bit_equal(engine: str, tmp_path: Path) -> None:
    gm = lowered()
    with quantized_engine(engine), torch.no_grad():
        expected = gm(INPUT)
    module = compile_graph(gm, name="Net", engine=engine)
    assert same(module(INPUT), expected)
    assert same(copy.deepcopy(module)(INPUT), expected)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    assert same(torch.load(buffer, weights_only=False)(INPUT), expected)
    assert same(source_module(export_source(module, tmp_path)).load()(INPUT), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_is_bit_equal(engine: str, how: str, tmp_path: Path) -> None:
    module = compiled(engine)
    expected = module(INPUT)
    scripted = torch.jit.script(module) if how == "script" else torch.jit.trace(module, (INPUT,), strict=False)
    torch.jit.save(scripted, str(tmp_path / "m.pt"))
    loaded = torch.jit.load(str(tmp_path / "m.pt"))
    for form in (scripted, loaded, torch.jit.freeze(loaded.eval())):
        assert same(form(INPUT), expected)


def test_state_dict_is_plain_and_loads_into_a_fresh_conversion() -> None:
    first, second = compiled(seed=1, scale=0.04), compiled(seed=2, scale=0.07)
    state = first.state_dict()
    assert {"features.0.weight", "fc.weight_scale", "activation_scales", "activation_zero_points"} <= set(state)
    assert all(not t.is_quantized for t in state.values())
    assert state["activation_scales"].tolist() == [0.02, 0.04, 0.08, 0.3]
    assert not same(first(INPUT), second(INPUT))
    second.load_state_dict(state)
    assert same(first(INPUT), second(INPUT)) and "0.04" in second.code
    outer = nn.Sequential(compiled(seed=3))
    outer.load_state_dict({f"0.{k}": v for k, v in state.items()}, assign=True)
    assert same(outer(INPUT), first(INPUT))


def test_the_graphs_tensors_are_copied() -> None:
    gm = lowered()
    before = gm.get_buffer("features.0.weight").clone()
    module = compile_graph(gm)
    module.load_state_dict(compiled(seed=5).state_dict())
    assert torch.equal(gm.get_buffer("features.0.weight"), before)


def test_it_is_an_ordinary_module() -> None:
    module = compile_graph(lowered(), name="Net", user_attributes={"classes": ["cat"], "forward": None})
    assert type(module).__name__ == "Net" and module.classes == ["cat"]
    assert list(inspect.signature(module.forward).parameters) == ["x", "flag"]
    assert "engine=" in repr(module) and not module.training
    expected = module(INPUT)
    calls: list[str] = []
    handle = module.register_forward_hook(lambda *_: calls.append("hook"))
    assert same(module.to("cpu").float().train().eval()(x=INPUT), expected) and calls
    handle.remove()
    assert module.activation_scales.dtype is torch.float64
    for refused in (module.half, module.double, lambda: module.to("meta")):
        with pytest.raises(ConfigError):
            refused()
    assert same(module(INPUT), expected)
    assert copy.deepcopy(module).classes == ["cat"]


def test_threads_see_no_difference() -> None:
    module = compiled()
    expected = module(INPUT)
    with ThreadPoolExecutor(8) as pool:
        assert all(same(r, expected) for r in pool.map(lambda _: module(INPUT), range(100)))


@pytest.mark.parametrize("args", [(), (INPUT, None, 3), (INPUT[0],), (INPUT.double(),), (3,)])
def test_wrong_inputs_are_refused_with_the_signature(args: Any) -> None:
    with pytest.raises(InputError, match="x"):
        compiled()(*args)
    with pytest.raises(InputError, match=r"Net\(x, flag=None\)"):
        compiled()(INPUT, image=1)


def test_source_is_shown_in_tracebacks_and_forgotten_with_the_module() -> None:
    def generated() -> set[str]:
        return {name for name in linecache.cache if name.startswith("<qcompiler")}

    gc.collect()
    before = generated()
    module = compiled()
    assert "features.0 (Conv2d) net.py:12" in "".join(linecache.getlines(module.forward.__code__.co_filename))
    for _ in range(20):
        compiled()
    del module
    gc.collect()
    assert generated() <= before  # other tests' modules may have gone meanwhile


def test_json_is_canonical_and_complete() -> None:
    program = build(lowered()).program
    text = program.to_json()
    assert Program.from_json(text) == program and Program.from_json(text).to_json() == text
    older = text.replace(f'"isa":"{program.isa}",', "")
    assert older != text and Program.from_json(older).isa == ""
    assert text == build(lowered()).program.to_json()
    assert program.qparams == 4 and "somewhere" not in text


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('"torch.flatten"', '"torch.load"', UnknownOpError),
        ('"torch.flatten"', '"os.system"', UnknownOpError),
        ('"torch.flatten"', '"aten::from_file.default"', UnknownOpError),
        ('"method.dequantize"', '"method.__reduce__"', UnknownOpError),
        ('"method.dequantize"', '"method.numpy"', UnknownOpError),
        ('"runtime.prepack_linear"', '"torch.empty"', UnknownOpError),
        ('"out":"flatten"', '"out":"x\\nimport os"', ProgramError),
        ('"out":"flatten"', '"out":"x"', ProgramError),
        ('{"scale":1}', '{"scale":99}', ProgramError),
        ('{"const":"fc.weight"}', '{"const":"fc.__class__"}', ProgramError),
        ('{"ref":"flatten"}', '{"ref":"nowhere"}', ProgramError),
        ('{"dtype":"quint8"}', '{"dtype":"__name__"}', ProgramError),
    ],
)
def test_hostile_programs_are_refused(old: str, new: str, error: type[Exception]) -> None:
    text = build(lowered()).program.to_json()
    assert old in text
    with pytest.raises(error):
        Program.from_json(text.replace(old, new))


def test_hostile_labels_stay_in_comments(tmp_path: Path) -> None:
    module = compiled(label='a"""\nimport os; os.abort()\r\u2028é')
    assert "\n" not in module.program.calls[1].comment
    assert same(source_module(export_source(module, tmp_path)).load()(INPUT), module(INPUT))


def test_odd_names_and_arguments_run() -> None:
    graph, root = fx.Graph(), nn.Module()
    root.register_buffer("0", torch.ones(4))
    root.register_buffer("engine", torch.ones(4))  # a property of CompiledModule
    root.register_buffer("activation_scales", torch.ones(4))
    first, second = graph.placeholder("torch"), graph.placeholder("F", default_value=2.0)
    names = [graph.get_attr(n) for n in ("0", "engine", "activation_scales")]
    total = graph.call_function(torch.clamp, (first,), {"max": float("inf")})
    for node in (*names, second):
        total = graph.call_function(torch.add, (total, node))
    total = graph.create_node("call_function", torch.flatten, (total,), {}, name="class_")
    picked = graph.call_function(operator.getitem, (total, (slice(None, -1),)))
    size = graph.call_function(getattr, (picked, "shape"))
    graph.output({"b": picked, "a": [size, None, torch.float32]})
    gm = fx.GraphModule(root, graph)
    module = compile_graph(gm)
    x = torch.arange(4.0)
    got = module(x)
    assert list(got) == ["b", "a"] and torch.equal(got["b"], x[:-1] + 5) and got["a"] == [torch.Size([3]), None, torch.float32]
    assert "activation_scales_" in module.state_dict() and torch.equal(copy.deepcopy(module)(x)["b"], got["b"])


def test_float_leaf_modules_and_functions_of_the_user(tmp_path: Path) -> None:
    head = nn.Linear(5, 2)
    module = compile_graph(lowered(leaf=head))
    assert module.program.leaves == ("head",) and module.head is head and "head.weight" in module.state_dict()
    with torch.no_grad():
        expected = module(INPUT)
        exported = source_module(export_source(module, tmp_path)).load(modules={"head": head})
        assert same(exported(INPUT), expected) and same(copy.deepcopy(module)(INPUT), expected)
        assert same(torch.jit.script(module)(INPUT), expected)


def test_a_target_without_name_is_refused_at_its_node() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.from_file, ("x",)))
    with pytest.raises(QCompilerError) as caught:
        compile_graph(fx.GraphModule(nn.Module(), graph))
    assert caught.value.where.node == "from_file"
