"""Numbers that depend on data are values of the graph: what uses them follows each call, what needs them at once is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcompiler as qc
from qcompiler.errors import InputError, TraceError
from qcompiler.trace import TraceOptions, trace

from .data_models import sqnr

Forward = Callable[..., Any]


class Net(nn.Module):
    def __init__(self, function: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.m = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.register_buffer("positions", torch.randn(12, 8))
        self.function = function

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> Any:
        return self.function(self, x, n)


FOLLOW: dict[str, Forward] = {
    "int as a bound": lambda s, x, n: s.m(s.l(x)[:, : int(n.max())].relu()),
    "item as a bound": lambda s, x, n: s.m(s.l(x)[:, n.min().item() : n.max().item()]),
    "int of an item": lambda s, x, n: s.m(s.l(x)[:, : int(n.max().item())]),
    "a bound of a buffer": lambda s, x, n: s.m(s.l(x)[:, : int(n.max())] + s.positions[: int(n.max())]),
    "narrow": lambda s, x, n: s.m(s.l(x).narrow(1, 0, int(n.max()))),
    "an index": lambda s, x, n: s.m(s.l(x)[:, int(n.max()) - 1]),
    "reshape": lambda s, x, n: s.m(s.l(x)[:, : int(n.max())].reshape(x.shape[0] * int(n.max()), 8)),
    "expand": lambda s, x, n: s.m(s.l(x[:, :1]).expand(-1, int(n.max()), -1)),
    "repeat": lambda s, x, n: s.m(s.l(x[:, :1]).repeat(1, int(n.max()), 1)),
    "a mask of lengths": lambda s, x, n: s.m(s.l(x) * (torch.arange(x.shape[1])[None] < n[:, None]).unsqueeze(-1)),
    "arange": lambda s, x, n: s.m(s.l(x)[:, : int(n.max())] * (torch.arange(int(n.max()))[None] < n[:, None]).unsqueeze(-1)),
    "zeros": lambda s, x, n: s.m(s.l(x)[:, : int(n.max())] + torch.zeros(x.shape[0], int(n.max()), 8)),
    "new_zeros": lambda s, x, n: s.m(torch.cat([s.l(x), x.new_zeros(x.shape[0], int(n.max()), 8)], 1)),
    "full": lambda s, x, n: s.m(s.l(x)) + torch.full((1, int(n.max()), 1), 0.5).mean(),
    "pad": lambda s, x, n: s.m(F.pad(s.l(x)[:, : int(n.max())], (0, 0, 0, x.shape[1] - int(n.max())))),
    "split": lambda s, x, n: s.m(s.l(x).split([int(n.max()), x.shape[1] - int(n.max())], 1)[0]),
    "where": lambda s, x, n: s.m(torch.where(torch.arange(x.shape[1])[None, :, None] < n.max().item(), s.l(x), 0.0)),
    "a factor": lambda s, x, n: s.m(s.l(x)) * (float(n.max()) / 10),
    "min and max": lambda s, x, n: s.m(s.l(x)[:, : max(2, min(int(n.max()), 5, x.shape[1]))]),
    "len": lambda s, x, n: s.m(s.l(x)) * len((n > 3).nonzero()),
    "numel": lambda s, x, n: s.m(s.l(x)) * n[n > 3].numel(),
    "a masked mean": lambda s, x, n: s.m(s.l(x))[n > 0].sum(0) / (n > 0).sum().item(),
    "a width behind": lambda s, x, n: s.m(s.l(x)[:, : int(n.max())]).unflatten(-1, (2, 4)).flatten(2),
    "isinstance": lambda s, x, n: s.m(s.l(x)[:, : int(n.max())]) if isinstance(n.max().item(), int) else x,
    "a result": lambda s, x, n: (s.m(s.l(x)), n.max().item()),
    "bool": lambda s, x, n: s.m(s.l(x)) * bool(n.max() > 3),
}


def _inputs(batch: int, length: int, *lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, length, 8), torch.tensor(lengths)


def _same(a: Any, b: Any) -> bool:
    return all(map(_same, a, b)) if isinstance(a, tuple) else torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize("forward", FOLLOW.values(), ids=FOLLOW)
def test_numbers_of_data_follow_each_call(forward: Forward) -> None:
    model = Net(forward).eval()
    result = trace(model, _inputs(3, 10, 2, 7, 5), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))
    assert not result.remarks
    for inputs in (_inputs(3, 10, 2, 4, 5), _inputs(2, 12, 9, 2), _inputs(1, 11, 4)):
        assert _same(result.graph_module(*inputs), model(*inputs))


AT_ONCE: dict[str, Forward] = {
    "range": lambda s, x, n: sum(s.l(x[:, i]) for i in range(int(n.max()))),
    "a module": lambda s, x, n: s.layers[int(n.max()) % 2](x),
    "a module by a tensor": lambda s, x, n: s.layers[n.max() % 2](x),
    "a key": lambda s, x, n: x * {7: 1.0}.get(int(n.max()), 2.0),
    "a text": lambda s, x, n: x if f"{int(n.max())}" == "7" else -x,
    "a list": lambda s, x, n: x * len([0] * int(n.max())),
    "hits": lambda s, x, n: sum(x[i] for i in (n > 3).nonzero()),
    "numpy": lambda s, x, n: x * n.numpy().max(),
    "math": lambda s, x, n: x[:, : round(float(n.max()) * 0.5)].sum() if n.max() in (3, 4) else x,
}


@pytest.mark.parametrize("forward", AT_ONCE.values(), ids=AT_ONCE)
def test_what_needs_the_number_at_once_runs_as_it_stands(forward: Forward) -> None:
    model = Net(forward).eval()
    result = trace(model, _inputs(3, 10, 2, 7, 5), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))
    (remark,) = [remark for remark in result.remarks if remark.kind == "float-statement"]
    assert "test_data_numbers.py" in str(remark.where)
    for inputs in (_inputs(3, 10, 2, 4, 5), _inputs(3, 12, 9, 2, 3), _inputs(3, 11, 4, 4, 3)):
        assert _same(result.graph_module(*inputs), model(*inputs))


@pytest.mark.parametrize(("cut", "seen", "given"), [(lambda x: x.unbind(1), 7, 5), (lambda x: x.split(2, 1), 4, 3)])
def test_a_number_of_pieces_that_data_give_is_guarded(cut: Callable[[Any], Any], seen: int, given: int) -> None:
    model = Net(lambda s, x, n: sum(piece.sum() for piece in cut(x[:, : int(n.max())]))).eval()
    result = trace(model, _inputs(3, 10, 2, 7, 5), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))
    inputs = _inputs(3, 12, 7, 1, 3)
    assert torch.equal(result.graph_module(*inputs), model(*inputs))
    with pytest.raises(InputError, match=f"expected {seen} items, got {given}"):
        result.graph_module(*_inputs(3, 10, 2, 4, 5))


def test_a_loop_that_binds_names_of_its_function_is_refused() -> None:
    model = Net(lambda s, x, n: [x := x + 1 for _ in iter(lambda: bool(x.sum() < 9), False)]).eval()
    with pytest.raises(TraceError, match=r"test_data_numbers\.py") as caught:
        trace(model, _inputs(3, 10, 2, 7, 5), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))
    assert caught.value.hint


def test_a_list_of_numbers_is_as_long_as_its_tensor() -> None:
    model = Net(lambda s, x, n: s.m(torch.cat([s.l(x)[i, :k] for i, k in enumerate(n.tolist())]))).eval()
    result = trace(model, _inputs(3, 10, 2, 7, 5), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))
    inputs = _inputs(3, 12, 9, 1, 3)
    assert torch.equal(result.graph_module(*inputs), model(*inputs))
    with pytest.raises(InputError, match="number of pieces"):
        result.graph_module(*_inputs(2, 12, 9, 1))


def test_a_file_that_tells_types_apart_keeps_its_builtins(tmp_path: Path) -> None:
    source = "def forward(s, x, n):\n    return x[:, : int(n.max())]{}\n"
    for number, (tail, stands_in) in enumerate(((" if type(3) is int else x", False), (" if type(3) == int else x", True))):
        path = tmp_path / f"module{number}.py"
        path.write_text(source.format(tail))
        scope: dict[str, Any] = {}
        exec(compile(path.read_text(), str(path), "exec"), scope)
        model = Net(scope["forward"]).eval()
        result = trace(model, _inputs(3, 10, 2, 7, 5), options=TraceOptions(lambda *_: False))
        assert result.graph_module(*_inputs(1, 9, 4)).shape == (1, 4, 8)
        assert [remark.kind for remark in result.remarks] == ([] if stands_in else ["float-statement"])
        assert "int" not in scope


def test_builtins_are_left_as_they_were() -> None:
    model = Net(FOLLOW["min and max"]).eval()
    trace(model, _inputs(3, 10, 2, 7, 5), options=TraceOptions(lambda module, _: isinstance(module, nn.Linear)))
    assert not {"int", "float", "bool", "len", "min", "max"} & set(globals())


@pytest.mark.parametrize("name", ["int as a bound", "a bound of a buffer", "arange", "pad", "where", "reshape"])
def test_compiled_modules_follow_them(name: str, tmp_path: Path) -> None:
    model = Net(FOLLOW[name]).eval()
    got = qc.quantize(model, [_inputs(8, 10, 2, 7, 5, 10, 3, 9, 1, 4) for _ in range(3)], progress=False)
    assert all(row.int8 for row in qc.explain(got).rows if row.op == "linear")
    qc.save(got, tmp_path / "m")
    forms = [qc.load(tmp_path / "m"), torch.jit.script(got)]
    for inputs in (_inputs(3, 10, 2, 4, 5), _inputs(2, 12, 9, 2), _inputs(1, 11, 4)):
        expected, result = model(*inputs), got(*inputs)
        assert sqnr(expected, result) > 25  # two linears of 8 bits have about 35 dB; other inputs than calibration's are clipped
        assert all(torch.equal(form(*inputs), result) for form in forms)


def test_training_follows_them() -> None:
    model = Net(FOLLOW["int as a bound"]).train()
    prepared = qc.prepare_qat_fx(model, None, _inputs(3, 10, 2, 7, 5))
    for inputs in (_inputs(3, 10, 2, 4, 5), _inputs(2, 12, 9, 2)):
        prepared(*inputs).square().mean().backward()
    got = qc.convert_fx(prepared)
    inputs = _inputs(2, 9, 4, 6)
    assert sqnr(prepared.eval()(*inputs), got(*inputs)) > 30  # equal but for steps


def test_the_layers_around_a_statement_stay_int8() -> None:
    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while x.abs().max() > 1:
                x = x / 2
            return self.l(x)

    model = nn.Sequential(nn.Linear(8, 8), Child(), nn.Linear(8, 8)).eval()
    got = qc.quantize(model, [torch.randn(4, 8)], progress=False)
    explanation = qc.explain(got)
    assert all(row.int8 for row in explanation.rows if row.op == "linear")
    assert "(1 statement run as it stands with 0 parameters)" in " ".join(str(explanation).split())
    (remark,) = [remark for remark in qc.remarks(got) if remark.code == "float-statement" and remark.pass_name == "trace"]
    assert "while x.abs().max() > 1" in remark.text and "test_data_numbers.py" in str(remark.where)
