"""A module is as fast at any shape and number of threads as at its first: oneDNN makes no primitive in later calls.

Counted, not timed: oneDNN itself tells what it makes and runs (`torch.backends.mkldnn.verbose`).
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
import qcompiler.backends.torch.program.module
import qcompiler.quantization
from qcompiler.backends.torch.runtime.by_shape import ENGINE_LOCK, PacksByShape
from qcompiler.nn import quantized
from tests.children import WAITING
from tests.cpu import SEVEN_BITS

ONEDNN = [e for e in ("x86", "onednn") if e in torch.backends.quantized.supported_engines]
pytestmark = pytest.mark.skipif(len(ONEDNN) < 2, reason="this torch has no oneDNN")


class Conv(nn.Module):
    """Convolutions of each kind that oneDNN packs: dense, grouped, depthwise, strided, dilated, pointwise; transposed; a linear."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        self.layers = nn.Sequential(conv(4, 16, 3, padding=1), nn.ReLU(), conv(16, 16, 3, padding=1, groups=4), conv(16, 16, 3, groups=16),
                                    conv(16, 8, 1), conv(8, 8, 3, stride=2, padding=1), conv(8, 8, 3, dilation=2, padding=2),
                                    up(8, 8, 2, stride=2))  # fmt: skip
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.layers(x).flatten(2).mean(2).relu())
        return y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.LSTM(8, 16, batch_first=True), nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.cell, self.head = nn.LSTMCell(32, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.rest(self.first(x)[0])
        made: torch.Tensor = self.head(self.cell(y[:, -1])[0])
        return made


def conv_inputs(dims: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(dims)
    return [torch.randn(batch, 4, *(size,) * dims, generator=generator) for batch, size in ((4, 9), (1, 9), (2, 12))]


@functools.cache
def original(dims: int, engine: str) -> Any:
    torch.manual_seed(0)
    return qcompiler.quantize(Conv(dims).eval(), conv_inputs(dims)[:1], engine=engine, progress=False)


def compiled(dims: int, engine: str) -> tuple[Any, list[torch.Tensor]]:
    """A module that was never called, and inputs of three shapes."""
    return copy.deepcopy(original(dims, engine)), conv_inputs(dims)


@pytest.fixture
def created(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[Callable[[], Any]], int]]:
    """Counts the primitives that oneDNN makes, found ready or not, while a function runs."""

    def count(run: Callable[[], Any]) -> int:
        capfd.readouterr()
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
            run()
        lines = capfd.readouterr().out.splitlines()
        if SEVEN_BITS and not any(",exec," in line for line in lines):
            pytest.skip("without VNNI x86 packs with fbgemm")
        assert any(",exec," in line for line in lines), "oneDNN says nothing"
        return sum(",create:" in line for line in lines)

    threads = torch.get_num_threads()
    yield count
    torch.set_num_threads(threads)


def in_turn(module: Callable[..., Any], inputs: list[torch.Tensor], threads: tuple[int, ...] = (1,)) -> list[torch.Tensor]:
    results = []
    for count in threads:
        torch.set_num_threads(count)
        results += [module(x) for x in inputs]
    return results


def exported(module: Any, folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported", qcompiler.export_source(module, folder))
    assert spec is not None and spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    return source.load()


def loaded(module: Any, folder: Path) -> Any:
    qcompiler.save(module, str(folder / "net.qc"))
    return qcompiler.load(str(folder / "net.qc"))


def restored(module: Any, folder: Path) -> Any:
    module.load_state_dict(module.state_dict())
    return module


FORMS = {
    "itself": lambda module, folder: module,
    "deepcopy": lambda module, folder: copy.deepcopy(module),
    "pickle": lambda module, folder: pickle.loads(pickle.dumps(module)),
    "state_dict": restored,
    "file": loaded,
    "source": exported,
    "deepcopy of source": lambda module, folder: copy.deepcopy(exported(module, folder)),
}


@pytest.mark.parametrize("engine", ["x86", "onednn"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_fast_at_shapes_in_turn(form: str, engine: str, tmp_path: Path, created: Callable[..., int]) -> None:
    module, inputs = compiled(2, engine)
    expected = [copy.deepcopy(module)(x) for x in inputs] * 2
    module(inputs[0]), module(inputs[1]), module(inputs[1])  # what a copy is made of has sets of its own
    made = FORMS[form](module, tmp_path)
    with torch.inference_mode():
        for _ in range(2):
            assert all(map(torch.equal, in_turn(made, inputs, (1, 2))[:3], expected))
        in_turn(made, inputs[:2], (1, 2))
    assert created(lambda: in_turn(made, inputs[:2], (1, 2))) == 0
    assert all(map(torch.equal, in_turn(made, inputs, (1, 2)), expected))


@pytest.mark.parametrize("engine", ["x86", "onednn"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(dims: int, engine: str, created: Callable[..., int]) -> None:
    module, inputs = compiled(dims, engine)
    for _ in range(3):
        in_turn(module, inputs)
    assert created(lambda: in_turn(module, inputs)) == 0


def dynamic(model: nn.Module, x: torch.Tensor, engine: str) -> Any:
    mapping = qcompiler.QConfigMapping().set_global(qcompiler.config.qconfig.default_dynamic_qconfig)
    return qcompiler.convert_fx(qcompiler.prepare_fx(model.eval(), mapping, (x,), engine=engine))


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)), Recurrent], ids=["linear", "recurrent"]
)
def test_dynamic_layers_on_onednn(make: Callable[[], nn.Module], created: Callable[..., int]) -> None:
    inputs = [torch.randn(batch, steps, 8) for batch, steps in ((4, 3), (1, 3), (2, 5))]
    module = dynamic(make(), inputs[0], "onednn")
    expected = [copy.deepcopy(module)(x) for x in inputs]
    for _ in range(3):
        in_turn(module, inputs)
    assert created(lambda: in_turn(module, inputs)) == 0
    assert all(map(torch.equal, in_turn(module, inputs), expected))


def test_nested_and_optional_arguments(created: Callable[..., int]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3)

        def forward(self, pair: Any, more: torch.Tensor | None = None) -> torch.Tensor:
            return self.conv(pair[0]) + self.conv(pair[1]["x"])  # type: ignore[no-any-return]

    inputs = [([x, {"x": x * 0.5}],) for x in conv_inputs(2)]
    module = qcompiler.quantize(Two().eval(), inputs[:1], engine="x86", progress=False)
    for _ in range(3):
        [module(*x) for x in inputs]
    assert created(lambda: [module(*x) for x in inputs]) == 0


def test_a_module_of_one_op(created: Callable[..., int]) -> None:
    """nn.quantized modules, with a second rank on the same packs."""
    with qcompiler.backends.torch.program.module.quantized_engine("x86"):
        module = quantized.Conv2d(4, 8, 3)
    inputs = [torch.quantize_per_tensor(x, 0.1, 3, torch.quint8) for x in (*conv_inputs(2), torch.randn(4, 7, 7))]
    for _ in range(3):
        in_turn(module, inputs)
    assert created(lambda: in_turn(module, inputs)) == 0


@pytest.mark.parametrize("make", [
    lambda: nn.Linear(8, 6), lambda: nn.LSTM(8, 6, 2, bidirectional=True), lambda: nn.GRU(8, 6), lambda: nn.LSTMCell(8, 6),
    lambda: nn.RNNCell(8, 6),
], ids=["Linear", "LSTM", "GRU", "LSTMCell", "RNNCell"])  # fmt: skip
def test_dynamic_modules_on_onednn(make: Callable[[], nn.Module], created: Callable[..., int]) -> None:
    model = nn.Sequential(make()).eval()
    with qcompiler.backends.torch.program.module.quantized_engine("onednn"):
        module = qcompiler.quantization.quantize_dynamic(model)
    sizes = [(4, 8), (1, 8), (2, 8)] if isinstance(model[0], nn.RNNCellBase) else [(3, 4, 8), (3, 1, 8), (5, 2, 8)]
    inputs = [torch.randn(size, generator=torch.Generator().manual_seed(0)) for size in sizes]
    expected = [copy.deepcopy(module)(x) for x in inputs]
    for _ in range(3):
        in_turn(module, inputs)
    assert created(lambda: in_turn(module, inputs)) == 0
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(module(x), y, rtol=0, atol=0)
        torch.testing.assert_close(torch.jit.script(module)(x), y, rtol=0, atol=0)
    assert "_by_shape" not in module[0].__getstate__()


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_script_is_fast_at_its_own_first_shape(how: str, created: Callable[..., int]) -> None:
    module, inputs = compiled(2, "x86")
    in_turn(module, inputs)
    for x in inputs:
        made = torch.jit.script(module) if how == "script" else torch.jit.trace(module, (x,))
        assert torch.equal(made(x), module(x)) and torch.equal(made(x), module(x))
        assert created(lambda made=made, x=x: made(x)) == 0  # type: ignore[misc]


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_engines_without_such_packs_choose_nothing(engine: str) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch lacks it")
    module, inputs = compiled(2, engine)
    assert "packs_for" not in module.code and not in_turn(module, inputs)[0].isnan().any()


def sets_of(module: Any) -> PacksByShape:
    return module._bound.by_shape  # type: ignore[no-any-return]


def test_the_number_of_sets_is_bounded_and_all_give_equal_results() -> None:
    module, inputs = compiled(2, "x86")
    many = [inputs[0][:, :, :height] for height in (9, 8, 7, 6, 5, 9, 8, 7, 6, 5)] + [inputs[0][:batch] for batch in (1, 2, 3, 4)]
    expected = [copy.deepcopy(module)(x) for x in many]
    for _ in range(40):
        assert all(map(torch.equal, in_turn(module, many), expected))
    sets = sets_of(module)
    assert len(sets.sets) == sets.LIMIT + 1 and len(sets.met) <= sets.REMEMBERED


def test_a_set_that_is_no_longer_used_makes_room() -> None:
    module, inputs = compiled(2, "x86")
    old, new = [inputs[0][:, :, :height] for height in (9, 8, 7, 6, 5)], [inputs[0][:batch] for batch in (1, 2, 3)]
    for _ in range(10):
        in_turn(module, old)
    for _ in range(300):
        in_turn(module, new)
    kept = [key[0][0] for key in sets_of(module).sets]
    assert all(x.shape in kept for x in new)


def test_what_is_met_once_gets_no_set() -> None:
    module, _ = compiled(2, "x86")
    for batch in range(1, 100):
        module(torch.zeros(batch, 4, 9, 9))
    assert len(sets_of(module).sets) == 1 and len(sets_of(module).met) == PacksByShape.REMEMBERED


def test_sets_share_the_plain_weights() -> None:
    module, inputs = compiled(2, "x86")
    for _ in range(3):
        in_turn(module, inputs)
    sets = sets_of(module)
    plain = sets.plain
    module(inputs[2][:1]), module(inputs[2][:1])
    assert len(sets.sets) == 4 and sets.plain is plain


def test_many_threads_at_once() -> None:
    module, inputs = compiled(2, "x86")
    expected = [copy.deepcopy(module)(x) for x in inputs]
    failures: list[Any] = []
    start = threading.Barrier(16)

    def work() -> None:
        start.wait()
        for k in range(30):
            index = k % len(inputs)
            if not torch.equal(module(inputs[index]), expected[index]):
                failures.append(k)

    workers = [threading.Thread(target=work) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_a_call_waits_for_nobody() -> None:
    """Also in a process that was forked while another thread packed: the first set serves."""
    module, inputs = compiled(2, "x86")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ENGINE_LOCK:
            held.set()
            done.wait(WAITING)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(WAITING)
    try:
        for _ in range(3):
            in_turn(module, inputs)
        assert not sets_of(module).sets
    finally:
        done.set()
        holder.join()


@pytest.mark.parametrize("engine", ["x86", "onednn"])
@pytest.mark.parametrize("moment", ["x86", "onednn", "fbgemm", "qnnpack"])
def test_the_engine_of_the_moment_stays(engine: str, moment: str) -> None:
    """Under one whose kernels ask which engine is set, none is set even for a moment: another thread might be in such a kernel."""
    if moment not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch lacks it")
    module, inputs = compiled(2, engine)
    expected = [copy.deepcopy(module)(x) for x in inputs]
    with qcompiler.backends.torch.program.module.quantized_engine(moment):
        for _ in range(3):
            assert all(map(torch.equal, in_turn(module, inputs), expected))
        assert torch.backends.quantized.engine == moment
    assert len(sets_of(module).sets) == (3 if moment in (engine, "x86", "fbgemm") else 1)


def test_sets_made_under_inference_mode_serve_outside_of_it() -> None:
    module, inputs = compiled(2, "x86")
    with torch.inference_mode():
        for _ in range(3):
            in_turn(module, inputs)
    results = in_turn(module, [x.requires_grad_() for x in inputs])
    assert not any(r.is_inference() for r in results)


def test_odd_arguments_get_their_message() -> None:
    module, inputs = compiled(2, "x86")
    for value in (None, 3, [1], inputs[0].double(), inputs[0][0], inputs[0].numpy()):
        with pytest.raises(qcompiler.InputError, match="input 'x' must be"):
            module(value)
