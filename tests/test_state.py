"""What a forward keeps from call to call: carried by every form of the int8 model, or refused with a word."""

from __future__ import annotations

import copy
import importlib.util
import io
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler import debug
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import ProgramError
from qcompiler.config.qconfig import default_dynamic_qconfig
from qcompiler.debug.parity import parity
from qcompiler.errors import ConfigError, InputError, TraceError
from qcompiler.quantization import quantize_dynamic
from tests.flow import ENGINES, seeded
from tests.hand_prepared import sqnr
from tests.stateful import CARRIED, MEMOS, REFUSED, UNREAD, Kept, Outer, forget, kind

PLAIN = [name for name, cls in CARRIED.items() if cls.shape == (2, 8) and name != "lstm_cell"]
SOME = ["gru", "zeros_at_first", "buffer_in_place", "helper_object", "odd_keys", "position"]
CALLS = 5
# 8 bits over a range of which one value uses a half leave about 30 dB; a state that is lost leaves less than 20.
DECIBELS = 25.0


@pytest.fixture(autouse=True)
def outside() -> Iterator[None]:
    forget()
    yield
    forget()


def batches(model: Any) -> list[Tensor]:
    generator = seeded(1)
    return [torch.randn(model.shape, generator=generator) for _ in range(CALLS)]


@torch.no_grad()
def run(model: Callable[..., Any], data: list[Tensor]) -> list[Tensor]:
    results = [model(x).clone() for x in data]  # a float model may change in place what it returned
    forget()
    return results


def quantized(cls: type[nn.Module], **options: Any) -> tuple[CompiledModule, list[Tensor]]:
    data = batches(cls)
    made = qc.quantize(cls(), data, progress=False, **options)
    forget()
    return made, data


def codes(model: Any) -> list[str]:
    return [remark.code for remark in qc.remarks(model)]


def require_close(expected: list[Tensor], got: list[Tensor]) -> None:
    found = [sqnr(a, b) for a, b in zip(expected, got, strict=True)]
    assert min(found) > DECIBELS, found


# ---- carried


@pytest.mark.parametrize("name", CARRIED)
def test_state_is_carried_from_where_the_float_model_began(name: str) -> None:
    model, data = CARRIED[name](), batches(CARRIED[name])
    module = qc.quantize(model, data, progress=False)
    forget()
    expected = run(CARRIED[name](), data)
    require_close(expected, run(module, data))
    assert "leaf" not in codes(module) and "state" in codes(module)
    assert module.program.states and set(module.program.states) <= set(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(expected, run(model, data), strict=True)), "quantize changed the model"


@pytest.mark.parametrize("name", PLAIN)
def test_state_of_a_submodule(name: str) -> None:
    data = batches(Kept)
    module = qc.quantize(Outer(CARRIED[name]), data, progress=False)
    forget()
    require_close(run(Outer(CARRIED[name]), data), run(module, data))
    assert "leaf" not in codes(module)


@pytest.mark.parametrize("name", ["number_at_first", "difference", "moving_average", "zeros_at_first"])
def test_a_start_computes_no_layer_again(name: str) -> None:
    module, _ = quantized(CARRIED[name])
    assert sum("linear" in call.op for call in module.program.calls) == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gru", "causal_conv", "rolled"])
def test_engines(name: str, engine: str) -> None:
    module, data = quantized(CARRIED[name], engine=engine)
    require_close(run(CARRIED[name](), data), run(module, data))


@pytest.mark.parametrize("name", ["gru", "lstm", "lstm_cell", "zeros_at_first", "set_once", "attribute_in_place", "list_items"])
def test_dynamic_flows(name: str) -> None:
    data = batches(CARRIED[name])
    expected = run(CARRIED[name](), data)
    prepared = qc.prepare_fx(CARRIED[name](), qc.QConfigMapping().set_global(default_dynamic_qconfig), (data[0],))
    require_close(expected, run(qc.convert_fx(prepared), data))
    require_close(expected, run(quantize_dynamic(CARRIED[name]()), data))


@pytest.mark.parametrize("name", SOME)
def test_reference_and_conversion_of_copies(name: str) -> None:
    data = batches(CARRIED[name])
    prepared = qc.prepare_fx(CARRIED[name](), None, (data[0],))
    qc.calibrate(prepared, data)
    copied = copy.deepcopy(prepared)
    other = qc.prepare_fx(CARRIED[name](), None, (data[0],))
    other.load_state_dict(prepared.state_dict())  # the states of any shape
    expected = run(CARRIED[name](), data)
    require_close(expected, run(qc.convert_to_reference_fx(prepared), data))
    first = run(qc.convert_fx(prepared), data)
    assert all(torch.equal(a, b) for a, b in zip(first, run(qc.convert_fx(copied), data), strict=True))


def _script_file(module: CompiledModule, folder: Path) -> Any:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    return torch.jit.load(file)


def _pickled(module: CompiledModule, folder: Path) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _saved(module: CompiledModule, folder: Path) -> Any:
    qc.save(module, folder / "module.qc")
    return qc.load(folder / "module.qc")


def _exported(module: CompiledModule, folder: Path) -> Any:
    qc.export_source(module, folder / "source")
    spec = importlib.util.spec_from_file_location(f"exported_{folder.name}", folder / "source" / "model.py")
    assert spec is not None and spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    return source.load()


def _from_state_dict(module: CompiledModule, folder: Path) -> Any:
    made = copy.deepcopy(module)
    for name in module.program.states:  # another state, of another shape
        owner, _, last = name.rpartition(".")
        setattr(made.get_submodule(owner), last, torch.zeros(0) if module.state_dict()[name].dim() else 0)
    made.load_state_dict(module.state_dict())
    return made


FORMS = {
    "deepcopy": lambda module, folder: copy.deepcopy(module),
    "pickle": _pickled,
    "save": _saved,
    "state_dict": _from_state_dict,
    "script": lambda module, folder: torch.jit.script(module),
    "script file": _script_file,
    "frozen script": lambda module, folder: torch.jit.freeze(torch.jit.script(module).eval()),
    "source": _exported,
}


@pytest.mark.parametrize("name", SOME)
def test_every_form_goes_on_from_where_it_was_made(name: str, tmp_path: Path) -> None:
    module, data = quantized(CARRIED[name])
    for calls in (0, 2):
        run(module, data[:calls])
        folder = tmp_path / str(calls)  # of its own: Python's cache knows a file by its size and the second of its change
        folder.mkdir()
        made = {form: make(module, folder) for form, make in FORMS.items()}
        again = torch.jit.script(module)
        expected = run(copy.deepcopy(module), data)
        for form, other in made.items():
            assert all(torch.equal(a, b) for a, b in zip(expected, run(other, data), strict=True)), form
        assert torch.equal(expected[0], run(again, data)[0]), "two scripts share a state"


@pytest.mark.parametrize("name", ["gru", "zeros_at_first", "new_dict_item", "counter", "assigned_buffer"])
def test_a_state_can_be_set(name: str) -> None:
    module, data = quantized(CARRIED[name])
    start = {state: module.state_dict()[state].clone() for state in module.program.states}
    expected = run(module, data)
    for state, value in start.items():
        owner, _, last = state.rpartition(".")
        unset = value.dim() == 1 and not value.numel()
        setattr(module.get_submodule(owner), last, None if unset else int(value) if not value.dim() else value)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(module, data), strict=True))


@pytest.mark.parametrize("name", ["gru", "zeros_at_first", "buffer_in_place"])
def test_another_batch_than_that_of_the_state_raises_as_in_float(name: str) -> None:
    module, data = quantized(CARRIED[name])
    run(module, data)
    larger = torch.cat([data[0], data[0][:1]])
    with pytest.raises(InputError):
        module(larger)
    fresh, _ = quantized(CARRIED["zeros_at_first"])
    assert fresh(torch.randn(5, 8, generator=seeded())).shape == (5, 8)


def test_results_do_not_change_with_later_calls() -> None:
    module, data = quantized(CARRIED["attribute_in_place"])
    first = module(data[0])
    kept = first.clone()
    module(data[1])
    assert torch.equal(first, kept)


def test_inference_mode() -> None:
    module, data = quantized(CARRIED["zeros_at_first"])
    expected = run(copy.deepcopy(module), data)
    with torch.inference_mode():
        assert torch.equal(module(data[0]), expected[0])
    assert torch.equal(module(data[1]), expected[1])


def test_jit_trace_is_refused() -> None:
    module, data = quantized(CARRIED["counter"])
    with pytest.raises(ConfigError, match=r"torch\.jit\.trace would fix what this module keeps between calls: n"):
        torch.jit.trace(module, (data[0],))


# ---- memos, values for a look, counters


@pytest.mark.parametrize("name", UNREAD)
def test_what_no_result_needs_is_not_kept(name: str) -> None:
    module, data = quantized(UNREAD[name])
    require_close(run(UNREAD[name](), data), run(module, data))
    texts = [remark.text for remark in qc.remarks(module) if remark.code == "state"]
    assert not module.program.states and len(texts) == 1 and "no result needs it" in texts[0]
    assert "leaf" not in codes(module)


@pytest.mark.parametrize("name", MEMOS)
def test_memos_are_no_state(name: str) -> None:
    module, data = quantized(MEMOS[name])
    require_close(run(MEMOS[name](), data), run(module, data))
    assert not module.program.states and not {"leaf", "state"} & set(codes(module))
    shorter = data[0][:, :2]
    require_close([MEMOS[name]()(shorter)], [module(shorter)])


def test_a_memo_of_sizes_beside_a_state() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        if s.pe is None or s.pe.shape[0] != x.shape[1]:
            s.pe = 0.1 * torch.arange(x.shape[1]).float()[:, None].expand(-1, 8)
        y = s.l(x) + s.pe
        s.h = torch.tanh(y.mean(1) + 0.5 * (torch.zeros_like(y[:, 0]) if s.h is None else s.h))
        return s.h

    cls = kind((2, 3, 8), table=None, pe=None, h=None)(forward)
    module, data = quantized(cls)
    require_close(run(cls(), data), run(module, data))
    mixed = [data[0], *(x[:, :2] for x in data)]
    require_close(run(cls(), mixed), run(qc.quantize(cls(), mixed, progress=False), mixed))


# ---- what cannot be carried


@pytest.mark.parametrize("name", REFUSED)
def test_the_root_is_refused_at_the_users_line(name: str) -> None:
    with pytest.raises(TraceError) as caught:
        qc.quantize(REFUSED[name](), batches(Kept), progress=False)
    assert "stateful.py:" in str(caught.value.where.source) and caught.value.hint


@pytest.mark.parametrize("name", REFUSED)
def test_a_submodule_stays_float_and_starts_as_it_was(name: str) -> None:
    data = batches(Kept)
    module = qc.quantize(Outer(REFUSED[name]), data, progress=False)
    expected, got = run(Outer(REFUSED[name]), data), run(module, data)
    leaves = [remark for remark in qc.remarks(module) if remark.code == "leaf"]
    assert len(leaves) == 1 and leaves[0].where.module_path == "inner"
    assert sqnr(torch.stack(expected), torch.stack(got)) > DECIBELS


@pytest.mark.parametrize("change", [lambda s, h: s.h.copy_(h), lambda s, h: torch.add(h, 0, out=s.h), lambda s, h: s.b.add_(h)])
def test_a_leafs_tensors_start_as_they_were(change: Callable[[Any, Tensor], Any]) -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.l(x + 0.5 * s.h + 0.1 * s.b)
        change(s, torch.tanh(y).detach())
        while float(y.detach().sum()) < -1000:  # a number of rounds that depends on data, for which it needs the module: no trace
            y = s._modules["l"](y)
        return y

    cls = kind(table=None, h=torch.zeros(2, 8), b=torch.zeros(2, 8))(forward)
    data = batches(Kept)
    expected = run(Outer(cls), data)
    module = qc.quantize(Outer(cls), data, progress=False)
    assert "leaf" in codes(module)
    assert sqnr(expected[0], run(module, data)[0]) > DECIBELS


def test_a_parameter_that_forward_replaces() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.l(x)
        s.l.bias.data = s.l.bias.data + 0.1
        return y

    model: Any = kind(table=None)(forward)()
    before = model.l.bias.clone()
    with pytest.raises(TraceError, match=r"gives the parameter `l\.bias` another value"):
        qc.quantize(model, batches(Kept), progress=False)
    assert torch.equal(model.l.bias, before)


@pytest.mark.parametrize("value", [lambda s, x: s.h + 0.1, lambda s, x: torch.tanh(x)])
def test_memory_that_forward_exchanges(value: Callable[[Any, Tensor], Tensor]) -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.l(x + 0.5 * s.h)
        s.h.set_(value(s, x))
        return y

    cls, data = kind(table=None, h=torch.zeros(2, 8))(forward), batches(Kept)
    with pytest.raises(TraceError):
        qc.quantize(cls(), data, progress=False)
    module = qc.quantize(Outer(cls), data, progress=False)
    assert "leaf" in codes(module) and sqnr(run(Outer(cls), data)[0], run(module, data)[0]) > DECIBELS


def test_a_graph_with_state_is_no_model() -> None:
    model = CARRIED["counter"]()
    graph = qc.fuse_fx(model, (batches(Kept)[0],))
    with pytest.raises(ConfigError, match="this graph keeps n between calls"):
        qc.prepare_fx(graph, None, (batches(Kept)[0],))


def test_two_names_of_one_memory() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.l(x + 0.5 * s.b)
        s.a.copy_(torch.tanh(y))
        return y

    cls = kind(table=None)(forward)
    model: Any = cls()
    model.a = model.b = torch.zeros(2, 8)
    with pytest.raises(TraceError, match="has a second name"):
        qc.quantize(model, batches(Kept), progress=False)


# ---- training


def trained(cls: type[nn.Module], shape: tuple[int, ...]) -> tuple[Any, list[Tensor]]:
    generator = seeded(2)
    data = [torch.randn(shape, generator=generator) for _ in range(12)]
    prepared = qc.prepare_qat_fx(cls().train(), None, (data[0],))
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    for x in data:
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    return prepared, data


@pytest.mark.parametrize("name", ["zeros_at_first", "attribute_in_place", "counter"])
def test_training_with_state(name: str) -> None:
    prepared, data = trained(CARRIED[name], (2, 8))
    module = qc.convert_fx(prepared)  # parity with the state of the beginning
    assert parity(prepared, module, data).holds
    state = module.program.states[0]
    before = module.state_dict()[state].clone()
    assert before.numel() == 0 or not before.any(), "training's state"
    simulated = copy.deepcopy(prepared).eval()
    simulated.load_state_dict(simulated.state_dict() | {state: before})
    require_close(run(simulated, data[:3]), run(module, data[:3]))


def test_a_buffer_keeps_what_training_made_of_it() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.l(x)
        s.mean.mul_(0.9).add_(0.1 * y.mean(0).detach())
        return y - s.mean

    cls = kind(table=None, mean=nn.Parameter(torch.zeros(8), requires_grad=False))(forward)
    prepared, _ = trained(cls, (32, 8))
    module = qc.convert_fx(prepared)
    assert torch.equal(module.mean, prepared.mean) and module.mean.any()


def test_statistics_of_training_alone_stay_with_their_module() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        if not s.training:
            return s.l(x) - s.mean
        mean = s.l(x).mean(0)
        with torch.no_grad():
            s.mean.mul_(0.9).add_(0.1 * mean)
        return s.l(x) - mean

    cls = kind(table=None, mean=nn.Parameter(torch.zeros(8), requires_grad=False))(forward)
    prepared, data = trained(lambda: Outer(cls), (32, 8))  # type: ignore[arg-type]
    module = qc.convert_fx(prepared)
    assert "leaf" in codes(module)
    mean = module.get_submodule("inner").mean.clone()  # type: ignore[operator, union-attr]
    module(data[0])
    assert mean.any() and torch.equal(mean, module.get_submodule("inner").mean)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="training"):
        qc.prepare_qat_fx(cls().train(), None, (data[0],))


# ---- tools


@pytest.mark.parametrize("name", ["zeros_at_first", "buffer_in_place", "helper_object", "gru"])
def test_compare_and_bisect_leave_states_alone(name: str) -> None:
    module, data = quantized(CARRIED[name])
    model, fresh = CARRIED[name](), copy.deepcopy(module)
    assert debug.compare(model, module, data).output > DECIBELS
    assert not debug.bisect(model, data)
    assert all(torch.equal(a, b) for a, b in zip(run(fresh, data), run(module, data), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(run(CARRIED[name](), data), run(model, data), strict=True))


def test_a_program_writes_its_own_tensors_alone() -> None:
    module, _ = quantized(CARRIED["assigned_buffer"])
    data = module.program.to_data()
    call = next(call for call in data["calls"] if call["op"] == "ops.write_state")
    call["args"] = [{"ref": "x"}, {"ref": "x"}]
    with pytest.raises(ProgramError, match="no tensor of the module"):
        Program.from_data(data)


def test_hooks_leave_nothing_in_the_users_model() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        return s.l(x) * 2

    model: Any = kind(table=None, seen={})(forward)()
    model.l.register_forward_hook(lambda module, args, result: model.seen.__setitem__("l", result))
    qc.quantize(model, batches(Kept), progress=False)
    assert all(type(value) is Tensor for value in model.seen.values())


class MakesAnew(OrderedDict):  # type: ignore[type-arg]
    """A table of classes that makes an object at each read, as those of activations in model libraries do."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key)(4)

    def update(self, *given: Any, **more: Any) -> None:
        raise TypeError("a table is not updated")

    def __len__(self) -> int:
        raise TypeError("a table is not counted")


class Closed(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise TypeError("read by its index alone")

    extend = clear = copy = __len__ = __iter__  # type: ignore[assignment]


class Counts(dict):  # type: ignore[type-arg]
    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) * 2

    items = values = keys = copy = clear = MakesAnew.__len__  # type: ignore[assignment]


TABLE = MakesAnew(narrow=lambda size: nn.Softplus(beta=size))


@pytest.mark.parametrize(
    "table", [lambda: TABLE, lambda: Closed([nn.Tanh(), 3]), lambda: Counts(a=2.0), lambda: deque([nn.Tanh()], maxlen=2)]
)
@pytest.mark.parametrize("kept", [False, True])
def test_containers_whose_methods_do_more_than_read(table: Callable[[], Any], kept: bool) -> None:
    """In a closure and as a global that forward names, beside a state and a condition on data."""
    made, key = table(), {MakesAnew: "narrow", Counts: "a"}.get(type(table()), 0)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(8, 8)
            self.last = torch.zeros(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            one = made[key]
            y = self.l(x)
            if y.sum() > 1e6:
                y = y + 1
            y = y * one if isinstance(one, float) else one(y) + (0 if TABLE is None else 1)
            if kept:
                self.last = y + self.last
                return self.last
            return y

    torch.manual_seed(0)
    model, data = Reads().eval(), [torch.randn(2, 8, generator=seeded(i)) for i in range(CALLS)]
    small = qc.quantize(model, data, progress=False)
    require_close(run(model, data), run(small, data))
    assert dict.__len__(made) == 1 if isinstance(made, dict) else list.__len__(made) == 2 if isinstance(made, Closed) else len(made) == 1


@pytest.mark.parametrize("flagged", [True, False])
def test_hooks_that_the_first_call_registers(flagged: bool) -> None:
    """Model libraries capture results of inner layers so: a later call finds the hooks, not only the flag that they are there."""
    caught: list[Any] = []

    class Captures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 8)
            self.hooked = False

        def forward(self, x: Tensor) -> Tensor:
            caught.clear()
            if not self.hooked if flagged else not self.a._forward_hooks:
                self.a.register_forward_hook(lambda module, args, result: caught.append(result))
                self.hooked = flagged
            y = self.b(self.a(x))
            return y + caught[0] * len(caught)

    torch.manual_seed(0)
    model, data = Captures().eval(), [torch.randn(2, 8, generator=seeded(i)) for i in range(CALLS)]
    small = qc.quantize(model, data, progress=False)
    assert not model.a._forward_hooks and not model.hooked
    with torch.no_grad():
        require_close([model(x) for x in data], [small(x) for x in data])
