"""Arguments and results in containers: run, scripted, saved and exported alike; what differs from the examples is refused."""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qcompiler import QConfigMapping, convert_fx, export_source, load, prepare_fx, remarks, save
from qcompiler.artifact import StandInWarning
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import ProgramError
from qcompiler.errors import ConfigError, InputError, QCompilerError, TraceError
from qcompiler.executable.form_data import form_from_data, form_to_data
from qcompiler.ir.form import Form, as_number, misfit
from tests.flow import flow, randn

A, B, C = randn(4, 8), randn(4, 8, seed=1), randn(4, 8, seed=2)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Counted(NamedTuple):
    a: Tensor
    n: int


@dataclasses.dataclass
class Data:
    a: Any
    b: Any = None
    n: int = 3


class Net(nn.Module):
    """Two layers, and a forward that a test gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.m = nn.Linear(8, 8), nn.Linear(8, 8)


def net(forward: Callable[..., Any]) -> nn.Module:
    return type("Net", (Net,), {"forward": forward})().eval()


def same(a: Any, b: Any) -> bool:
    a, b = (pytree.tree_leaves(vars(v) if dataclasses.is_dataclass(v) else v) for v in (a, b))
    return len(a) == len(b) and all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


def two(s: Any, xs: Any) -> Tensor:
    return s.l(xs[0]) + s.m(xs[1])


def default(s: Any, x: Tensor, y: Any = None) -> Tensor:
    return s.l(x) if y is None else s.l(x) + (y if isinstance(y, (Tensor, float)) else y[0])


def holes(s: Any, xs: Any) -> Tensor:
    return s.l(xs[0]) + (0 if xs[1] is None else xs[1]) + s.m(xs[2])


def flagged(s: Any, x: Tensor, flag: bool = True, n: int = 3, mode: str = "a") -> Tensor:
    return s.l(x) * n if flag and mode == "a" else s.l(x) - n


SCRIPTED: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "list": (two, ([A, B],), {}),
    "tuple": (two, ((A, B),), {}),
    "named tuple": (lambda s, p: s.l(p.a) + p.b, (Pair(A, B),), {}),
    "dict": (lambda s, d: s.l(d["a"]) + d["b"], ({"a": A, "b": B},), {}),
    "ordered dict": (lambda s, d: s.l(d["a"]) + d["b"], (collections.OrderedDict(a=A, b=B),), {}),
    "dict of integers": (two, ({0: A, 1: B},), {}),
    "dict of text": (lambda s, x, d: s.l(x) if d["mode"] == "a" else x, (A, {"mode": "a"}), {}),
    "dict of lists": (lambda s, d: s.l(d["a"][0]) + d["b"][1], ({"a": [A], "b": [B, C]},), {}),
    "list of lists": (lambda s, xs: s.l(xs[0][0]) + xs[1][1], ([[A], [B, C]],), {}),
    "list of dicts": (lambda s, xs: s.l(xs[0]["k"]) + xs[1]["k"], ([{"k": A}, {"k": B}],), {}),
    "tuple of unlike": (lambda s, xs: s.l(xs[0]) + s.m(xs[1][0]) * xs[2], ((A, [B], 0.5),), {}),
    "list with None": (holes, ([A, None, C],), {}),
    "list of three": (holes, ([A, B, C],), {}),
    "tuple with None": (holes, ((A, None, C),), {}),
    "empty list": (lambda s, x, xs: s.l(x) + sum(xs), (A, []), {}),
    "empty tuple": (lambda s, x, xs: s.l(x) + sum(xs), (A, ()), {}),
    "empty dict": (lambda s, x, d: s.l(x) + len(d), (A, {}), {}),
    "default of None, tensor": (default, (A, B), {}),
    "default of None, list": (default, (A, [B]), {}),
    "default of None, number": (default, (A, 0.5), {}),
    "default of None, none": (default, (A,), {}),
    "None without default": (lambda s, x, y: s.l(x) if y is None else y, (A, None), {}),
    "flags": (flagged, (A, False), {}),
    "flags at their defaults": (flagged, (A,), {}),
    "keyword-only": (lambda s, x, *, y: s.l(x) + y, (A,), {"y": B}),
    "args": (lambda s, *xs: s.l(xs[0]) + xs[1], (A, B), {}),
    "kwargs": (lambda s, x, **k: s.l(x) + k["y"], (A,), {"y": B}),
    "the same twice": (lambda s, x, y: s.l(x) + s.m(y), (A, A), {}),
    "views of one": (lambda s, x, y: s.l(x) + s.m(y), (A[:, :8], A.view(4, 8)), {}),
    "inputs and constants as results": (lambda s, x: (s.l(x), x, None, 3, "text"), (A,), {}),
    "nested results": (lambda s, x: ([s.l(x), x], {"k": (s.m(x),)}), (A,), {}),
    "named result": (lambda s, x: Pair(s.l(x), x), (A,), {}),
    "named result with a number": (lambda s, x: Counted(s.l(x), 3), (A,), {}),
}


@pytest.mark.parametrize("case", SCRIPTED)
def test_scripts_saved_and_exported_forms_are_equal(case: str, tmp_path: Path) -> None:
    forward, args, kwargs = SCRIPTED[case]
    model = net(forward)
    prepared = prepare_fx(model, None, args, example_kwargs=kwargs)
    assert same(prepared(*args, **kwargs), model(*args, **kwargs))
    module = convert_fx(prepared)
    expected = module(*args, **kwargs)
    script = torch.jit.script(module)
    stream = io.BytesIO()
    torch.jit.save(script, stream)
    stream.seek(0)
    save(module, tmp_path / "m.qc")
    loaded = load(tmp_path / "m.qc")
    classes = {"Pair": Pair, "Counted": Counted}
    source = source_module(export_source(module, tmp_path)).load(modules={n: classes[n.rpartition(".")[2]] for n in module.program.records})
    for other in (script, torch.jit.load(stream), loaded, copy.deepcopy(module), torch.jit.script(loaded), source):
        assert same(other(*args, **kwargs), expected)


def source_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(("forward", "args", "named"), [
    (lambda s, xs: s.l(xs[0]) + xs[1][0], ([A, [B]],), "argument xs, which is a list of unlike items"),
    (lambda s, d: s.l(d["x"]) * d["n"], ({"x": A, "n": 2.0},), "argument d, which is a dict of unlike items"),
    (lambda s, d: s.l(d["q"]["x"][0]), ({"q": {"x": [A, (B,)]}},), r"argument d\['q'\]\['x'\], which is a list of unlike items"),
    (lambda s, d: s.l(d.a), (Data(A, B),), "argument d, which is Data"),
    (lambda s, x: {"a": s.l(x), "n": 3}, (A,), "result that is a dict of unlike items"),
    (lambda s, x: Data(s.l(x), x), (A,), "result of the class tests.test_arguments.Data"),
])  # fmt: skip
def test_what_torchscript_has_no_type_for_is_one_error(forward: Callable[..., Any], args: tuple[Any, ...], named: str) -> None:
    module = flow(net(forward), args).module
    assert same(module(*args), module(*args))
    with pytest.raises(ConfigError, match=named) as caught:
        torch.jit.script(module)
    assert caught.value.hint


REFUSED: dict[str, tuple[Callable[..., Any], tuple[Any, ...], list[tuple[Any, ...]]]] = {
    "list": (two, ([A, B],), [([A, B, C],), ([A],), (A[:2],), ([A, None],), ([A, B[0]],), ([A, B.long()],), ({0: A, 1: B},)]),
    "read one only": (lambda s, xs: s.l(xs[0]), ([A, B],), [([A, B, C],), ([A],), (A,)]),
    "dict": (lambda s, d: sum(map(s.l, d.values())), ({"a": A, "b": B},), [({"a": A},), ({"b": B, "a": A},), ({"a": A, "b": B, "c": C},)]),
    "None in a list": (holes, ([A, None, C],), [([A, B, C],)]),
    "text in a dict": (lambda s, x, d: s.l(x) if d["mode"] == "a" else x, (A, {"mode": "a"}), [(A, {"mode": "b"})]),
    "empty list": (lambda s, x, xs: s.l(x) + sum(xs), (A, []), [(A, [B])]),
    "default list": (default, (A, [B]), [(A,), (A, []), (A, B)]),
    "default": (default, (A,), [(A, B), (A, [B])]),
    "flags": (flagged, (A,), [(A, False), (A, True, 4), (A, True, 3, "b")]),
    "none": (lambda s, x, y: s.l(x) if y is None else y, (A, None), [(A, B)]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_form_is_refused_in_every_spelling(case: str) -> None:
    forward, args, others = REFUSED[case]
    found = flow(net(forward), args)
    script = torch.jit.script(found.module)
    for other in others:
        for module in (found.prepared, found.module):
            with pytest.raises(InputError):
                module(*other)
        with pytest.raises(Exception, match=r"holds|xpected|Unwrapping|dimension|quantize|None"):
            script(*other)


def test_fields_of_objects_are_inputs() -> None:
    class Inner:
        def __init__(self, x: Tensor, mode: str) -> None:
            self.x, self.mode = x, mode

    class Outer:
        def __init__(self, inner: Inner) -> None:
            self.items, self.n = [inner], 2.0

    def forward(s: Any, o: Any) -> Tensor:
        return s.l(o.items[0].x) * o.n if o.items[0].mode == "a" else o.items[0].x

    model = net(forward)
    module = flow(model, (Outer(Inner(A, "a")),)).module
    other = Outer(Inner(B, "a"))
    other.n = 3.0
    # the sums of eight products on steps of about 1/40 of their size: 20 dB are far below what 8 bits give
    error = (module(other) - model(other)).square().sum()
    assert 10 * torch.log10(model(other).square().sum() / error) > 20
    with pytest.raises(InputError, match=r"o\.items\[0\]\.mode"):
        module(Outer(Inner(A, "b")))


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Settings:
    def __init__(self, mode: str, width: float, more: Any = None) -> None:
        self.mode, self.width, self.more = mode, width, more


@pytest.mark.parametrize(("first", "other", "named"), [
    (Color.RED, Color.BLUE, "expected Color.RED, got Color.BLUE"),
    (torch.float64, torch.float32, "holds the argument 'o' fixed"),
    (Settings("a", 2.0), Settings("b", 2.0), r"holds the argument 'o\.mode' fixed"),
    (Settings("a", 2.0, Settings("c", 1.0)), Settings("a", 2.0, Settings("d", 1.0)), r"holds the argument 'o\.more\.mode' fixed"),
    (Settings("a", 2.0, [1, "x"]), Settings("a", 2.0, [1, "y"]), r"holds the argument 'o\.more\[1\]' fixed"),
])  # fmt: skip
def test_settings_that_are_no_tensors_are_compared(first: Any, other: Any, named: str) -> None:
    found = flow(net(lambda s, x, o: s.l(x)), (A, first))
    assert torch.equal(found.module(A, first), copy.deepcopy(found.module)(A, first))
    for module in (found.prepared, found.module):
        with pytest.raises(InputError, match=named):
            module(A, other)


def test_an_object_that_nobody_can_compare_leaves_a_remark() -> None:
    module = flow(net(lambda s, x, f: f(s.l(x))), (A, torch.relu)).module
    assert any("held as it was" in r.text for r in remarks(module))


def test_arguments_that_forward_changes_are_named() -> None:
    def forward(s: Any, x: Tensor, d: Any, xs: Any) -> Tensor:
        d["y"] = s.l(x)
        xs.append(d["y"])
        return d["y"]  # type: ignore[no-any-return]

    given: tuple[Any, Any] = {"x": A}, [B]
    module = flow(net(forward), (A, *given)).module
    module(A, *given)
    assert list(given[0]) == ["x"] and len(given[1]) == 1
    assert [r.text.split("'")[1] for r in remarks(module) if r.code == "argument-changed"] == ["d", "xs"]


def test_dataclass_results_load_without_their_class(tmp_path: Path) -> None:
    module = flow(net(lambda s, x: Data(s.l(x), {"more": x})), (A,)).module
    assert save(module, tmp_path / "m.qc") == ()
    with pytest.warns(StandInWarning, match="plain records"):
        loaded = load(tmp_path / "m.qc")
    found, expected = loaded(A), module(A)
    assert torch.equal(found.a, expected.a) and found.n == 3 and torch.equal(found["b"]["more"], A) and list(found) == ["a", "b", "n"]
    (name,) = module.program.records
    assert type(load(tmp_path / "m.qc", modules={name: Data})(A)) is Data
    with pytest.raises(ConfigError, match="not what the results were made of"):
        load(tmp_path / "m.qc", modules={name: Pair})


def test_results_of_a_file_are_made_of_names_and_values() -> None:
    module = flow(net(lambda s, x: Data(s.l(x))), (A,)).module
    data = module.program.to_data()
    (call,) = [c for c in data["calls"] if c["op"].startswith("record.")]
    for index, bad in ((0, "call"), (0, "tree"), (1, {"tuple": ["a"]}), (1, {"tuple": ["a", "b", "c()"]})):
        changed = copy.deepcopy(data)
        next(c for c in changed["calls"] if c["op"] == call["op"])["args"][index] = bad
        with pytest.raises(ProgramError):
            Program.from_data(changed)
    guarded = flow(net(two), ([A, B],)).module.program.to_data()
    next(c for c in guarded["calls"] if c["op"].startswith("guard."))["args"].pop()
    with pytest.raises(ProgramError, match="no check of a value"):
        Program.from_data(guarded)
    changed = copy.deepcopy(data)
    next(c for c in changed["calls"] if c["op"] == call["op"])["op"] = "record.os.system()"
    with pytest.raises(QCompilerError):
        Program.from_data(changed)


@pytest.mark.parametrize("example", [
    A, 1, 0.5, float("inf"), True, None, "a", [A, None], (A, (1, "b")), Pair(A, B), {"a": [A], "b": 2}, {}, Data(A),
])  # fmt: skip
def test_forms_survive_json(example: Any) -> None:
    form = Form.of(example)
    assert form_from_data(form_to_data(form)) == form and misfit(form, example, "x") is None and str(form)


@pytest.mark.parametrize("bad", [
    None, {}, {"kind": "call"}, {"kind": "list", "parts": 3}, {"kind": "list", "keys": ["a"], "parts": [{"kind": "value", "value": 1}]},
    {"kind": "dict", "keys": ["a"]}, {"kind": "dict", "keys": [[]], "parts": [{"kind": "value", "value": None}]},
    {"kind": "number", "name": "str", "value": "1"}, {"kind": "tensor", "shape": ["a"]}, {"kind": "value", "value": [1]},
])  # fmt: skip
def test_forms_of_hostile_files_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="bad form"):
        form_from_data(bad)


def test_numbers_of_every_kind() -> None:
    import numpy as np

    for value in (2, np.int64(2), torch.tensor(2), np.float32(2), torch.tensor(2.0)):
        assert as_number(value, float) == 2.0 and type(as_number(value, float)) is float
    for value in (2.0, True, None, "2", torch.tensor([2]), np.float32(2), torch.tensor(1j)):
        assert as_number(value, int) is None
    assert as_number(torch.tensor(3), int) == 3


def test_dicts_with_other_keys_are_refused() -> None:
    with pytest.raises(TraceError, match="neither text nor integers"):
        prepare_fx(net(lambda s, d: s.l(d[A.dtype])), None, ({A.dtype: A},))


def test_a_transposed_float_weight_is_held_as_a_file_holds_it(tmp_path: Path) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return torch.addmm(s.m.bias, x, s.m.weight.t())

    module = flow(net(forward), (randn(40, 8),), mapping=QConfigMapping().set_global(None)).module
    save(module, tmp_path / "m.qc")
    assert all(buffer.is_contiguous() for buffer in module.buffers())
    assert torch.equal(load(tmp_path / "m.qc")(A), module(A))
