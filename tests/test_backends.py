"""The boundary: another back end goes the whole way, from prepare to a loaded file, and no room but its own knows it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import qcompiler as qc
from qcompiler import backends, debug
from qcompiler.backends import Backend, backend_of, register, unregister
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.cli import app
from qcompiler.debug import document_of
from qcompiler.errors import ArtifactError, ConfigError, PassError
from qcompiler.executable import Executable, Payload
from qcompiler.ir.types import quant_of
from qcompiler.quantization.backend_config import get_onednn_backend_config
from qcompiler.target import Neutral, Target
from tests.children import WAITING
from tests.flow import ENGINES, randn, randomized
from tests.saved_files import parts
from tests.toy_backend import BACKEND, Breaks, LeaveSigmoidFloat, ToyModule, ToyTarget, registered

X = randn(2, 3, 8, 8)


class Net(nn.Module):
    """Ops that all back ends know, one that a toy refuses at prepare (tanh), and one whose kernel it lacks (sigmoid)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.c = nn.Conv2d(8, 4, 1)
        self.steps = 7  # an attribute of the user's with a name that a back end might want

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.bn(self.a(x)))
        gate = torch.sigmoid(self.b(y))
        pooled = (y * gate).mean((2, 3))
        return {"logits": self.fc(pooled), "tanh": self.c(torch.tanh(y))}


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    with registered():
        yield


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


def prepared(**options: Any) -> Any:
    made = qc.prepare_fx(net(), None, (X,), **options)
    qc.calibrate(made, [X, -X])
    return made


def test_the_registry() -> None:
    assert {"torch", "reference", "toy"} <= set(backends.names())
    assert backend_of("toy") is BACKEND and backend_of("torch").name == "torch"
    register("toy", BACKEND)  # the same once more
    with pytest.raises(ConfigError, match="registered already"):
        register("toy", Backend("toy", BACKEND.target))
    with pytest.raises(ConfigError, match="unknown backend 'tpu'"):
        backend_of("tpu")
    unregister("toy")
    with pytest.raises(ConfigError, match="unknown backend 'toy'"):
        prepared(backend="toy")


@pytest.mark.parametrize("made", [Neutral(), ToyTarget(), *(TorchTarget(engine) for engine in ENGINES)], ids=str)
def test_targets(made: Any) -> None:
    assert isinstance(made, Target) and made == copy.deepcopy(made) and len({made, copy.deepcopy(made)}) == 1
    assert made.qconfigs in ENGINES and backend_of(made.backend).target(None, None).backend == made.backend


def test_the_whole_way(tmp_path: Path) -> None:
    observed = prepared(backend="toy")
    reference, module = qc.convert_to_reference_fx(observed), qc.convert_fx(observed)
    assert type(module) is ToyModule and isinstance(module, Executable)
    want, got = reference(X), module(X)
    assert list(got) == ["logits", "tanh"] and all(torch.equal(want[key], got[key]) for key in want), "it interprets QUANTIZED"
    assert set(module.state_dict()) >= {"a.weight", "a.weight_scale", "a.bias", "fc.weight"} and module.steps == 7
    assert module.state_dict()["a.weight"].dtype is torch.int8

    qc.save(module, tmp_path / "toy.qc")
    loaded = qc.load(tmp_path / "toy.qc")
    assert type(loaded) is ToyModule and loaded.steps == 7
    assert all(torch.equal(want[key], loaded(X)[key]) for key in want)
    assert str(qc.explain(loaded)) == str(qc.explain(module)) and qc.remarks(loaded) == qc.remarks(module)
    module.load_state_dict(loaded.state_dict())
    copied = copy.deepcopy(module)
    assert all(torch.equal(want[key], copied(X)[key]) for key in want)


def test_explain_tells_what_the_back_end_left_float() -> None:
    observed = prepared(backend="toy")
    module = qc.convert_fx(observed)
    rows = {row.op: row for row in qc.explain(module).rows}
    assert (rows["tanh"].int8, rows["tanh"].code, rows["tanh"].reason) == (False, "no-kernel", "no toy has a tanh")
    assert (rows["sigmoid"].int8, rows["sigmoid"].code, rows["sigmoid"].reason) == (False, "no-kernel", "a toy's sigmoid is float")
    assert rows["conv2d"].int8 and rows["linear"].int8
    assert next(row for row in qc.explain(observed).rows if row.op == "sigmoid").int8, "prepare did not know"
    assert any(r.pass_name == "leave_sigmoid_float" and r.code == "no-kernel" for r in qc.remarks(module))


def test_compare_and_drawings() -> None:
    model, module = net(), qc.convert_fx(prepared(backend="toy"))
    found = debug.compare(model, module, [X])
    assert found.output > 25 and {node.module_path for node in found.nodes} >= {"a", "b", "fc"} and not found.unmatched
    nodes = document_of(module).nodes_at(-1)
    assert any(node["op"] == "conv2d" for node in nodes) and nodes[-1]["kind"] == "output"
    assert next(node for node in nodes if node["op"] == "linear")["macs"] == 2 * 8 * 5
    torch_module = qc.convert_fx(prepared())
    assert abs(debug.compare(model, torch_module, [X]).output - found.output) < 6


def test_bisect_finds_a_pass_of_the_back_end() -> None:
    class Spoil(LeaveSigmoidFloat):
        def run(self, gm: Any, context: Any) -> bool:
            for node in gm.graph.nodes:
                if node.target is torch.tanh:
                    node.target = torch.neg
            return True

    assert not debug.bisect(net(), [(X,)], backend="toy")
    spoilt = debug.bisect(net(), [(X,)], backend="toy", replace={"leave_sigmoid_float": Spoil()})
    assert spoilt.pass_name == "leave_sigmoid_float"


def test_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    observed = qc.prepare_qat_fx(Net().train(), None, (X,), backend="toy")
    optimizer = torch.optim.SGD(observed.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        observed(X)["logits"].square().mean().backward()
        optimizer.step()
    module = qc.convert_fx(observed)
    assert type(module) is ToyModule and debug.parity(observed, module, [X]).holds
    assert any(remark.code == "parity" for remark in qc.remarks(module))


def test_call_forms(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
            y = self.fc(x)
            return y if bias is None else y + bias

    x = randn(3, 4)
    made = qc.prepare_fx(Masked().eval(), None, (x,), example_kwargs=[{}, {"bias": x}], backend="toy")
    qc.calibrate(made, [(x,), {"x": x, "bias": x}])
    module = qc.convert_fx(made)
    qc.save(module, tmp_path / "forms.qc")
    loaded = qc.load(tmp_path / "forms.qc")
    assert torch.equal(loaded(x), module(x)) and torch.equal(loaded(x, x), module(x, x)) and not torch.equal(module(x), module(x, x))


def test_files_name_their_back_end(tmp_path: Path) -> None:
    module = qc.convert_fx(prepared(backend="toy"))
    qc.save(module, tmp_path / "m.qc")
    header, _ = parts((tmp_path / "m.qc").read_bytes())
    assert header["backend"] == "toy" and header["features"] == ["back ends"] and "engine" not in header and "toy" in header
    unregister("toy")
    with pytest.raises(ConfigError, match=r"m\.qc: unknown backend 'toy'"):
        qc.load(tmp_path / "m.qc")


def test_commands_take_its_files(tmp_path: Path) -> None:
    file, data = tmp_path / "toy.qc", tmp_path / "x.pt"
    qc.save(qc.convert_fx(prepared(backend="toy")), file)
    torch.save(X, data)

    def shown(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "a toy's sigmoid is float" in shown("inspect", file)
    assert "logits: float32 [2, 5]" in shown("run", file, data)
    assert "100.0% in int8" in shown("viz", file)
    shown("viz", file, "-o", tmp_path / "toy.html")
    assert "toy.html" in {path.name for path in tmp_path.iterdir()}
    refused = CliRunner().invoke(app, ["inspect", str(file), "--json"])
    assert refused.exit_code == 1 and "the back end toy does not tell its scales" in refused.output


def test_a_payload_may_not_hide_the_compilers_own(tmp_path: Path) -> None:
    module = qc.convert_fx(prepared(backend="toy"))
    module._payload = lambda: Payload({"tensors": []})  # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigError, match="writes tensors, which is the compiler's own"):
        qc.save(module, tmp_path / "m.qc")


def test_a_back_end_refuses_what_it_did_not_write(tmp_path: Path) -> None:
    module = qc.convert_fx(prepared(backend="toy"))
    data = dict(module._payload().data)
    module._payload = lambda: Payload({**data, "toy": [*data["toy"], {**data["toy"][-1], "op": "os.system"}]})  # type: ignore[method-assign]
    qc.save(module, tmp_path / "m.qc")
    with pytest.raises(ArtifactError, match="ops that no toy knows"):
        qc.load(tmp_path / "m.qc")


# One model, another back end than it was prepared for.


def test_what_was_decided_names_itself() -> None:
    with pytest.raises(ConfigError, match="prepared for torch, the model cannot be built for toy: %fc was decided to hand") as error:
        qc.convert_fx(prepared(), backend="toy")
    assert error.value.code == "backend-decision" and 'backend="toy"' in str(error.value.hint)


def test_a_residual_inside_is_decided_by_whoever_builds() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(self.b(y) + y)

    config = get_onednn_backend_config()
    made = qc.prepare_fx(Residual().eval(), None, (X,), engine="onednn", backend_config=config)
    qc.calibrate(made, [X])
    inside = [call.op for call in qc.convert_fx(made).program.calls]  # type: ignore[attr-defined]
    assert "runtime.conv2d_add_onednn" in inside
    rows = {row.op: row.int8 for row in qc.explain(qc.convert_fx(made, backend="toy")).rows}
    assert rows["add"] and "conv2d_add" not in rows


@pytest.mark.parametrize("isa", ["avx2", "avx512_vnni"])
def test_bits_that_training_saw(isa: str) -> None:
    """8 bits for a back end whose sums hold them cannot become 7; 7 bits can be built for all."""
    torch.manual_seed(0)
    made = qc.prepare_qat_fx(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).train(), None, (X,), engine="onednn", isa=isa)
    made(X)
    toy = qc.convert_fx(made, backend="toy")
    assert debug.parity(made, toy, [X]).holds

    class Narrow(ToyTarget):
        def activation_bits(self, row: Any, node: Any) -> int:
            return 7

    register("narrow", Backend("narrow", lambda engine, isa: Narrow(), (), BACKEND.build, BACKEND.load))
    try:
        if isa == "avx2":
            qc.convert_fx(made, backend="narrow")
        else:
            with pytest.raises(ConfigError, match="trained on activations of more than the 7 bits"):
                qc.convert_fx(made, backend="narrow")
    finally:
        unregister("narrow")


@pytest.mark.parametrize("engine", ["onednn", "qnnpack"])
def test_what_allows_it_is_built(engine: str) -> None:
    """No floats are handed out there, so the toy can have all that was decided; tanh it lacks, and leaves float."""
    mapping = qc.get_default_qconfig_mapping(engine)
    made, own = (qc.prepare_fx(net(), mapping, (X,), **options) for options in ({"engine": engine}, {"backend": "toy"}))
    for observed in (made, own):
        qc.calibrate(observed, [X, -X])
    module = qc.convert_fx(made, backend="toy")
    want, got = qc.convert_fx(own)(X), module(X)
    assert all(torch.equal(want[key], got[key]) for key in want), "as if it had been prepared for the toy"
    rows = {row.op: row for row in qc.explain(module).rows}
    assert (rows["tanh"].int8, rows["tanh"].reason) == (False, "no toy has a tanh")
    assert next(row for row in qc.explain(made).rows if row.op == "tanh").int8, "the prepared model is as it was"
    assert sum(remark.text == "stays float: no toy has a tanh" for remark in qc.remarks(module)) == 1
    back = qc.convert_fx(prepared(backend="toy"), backend="torch")
    assert debug.compare(net(), back, [X]).output > 25


def test_reference_builds_nothing() -> None:
    made = prepared(backend="reference")
    assert isinstance(qc.convert_to_reference_fx(made)(X), dict)
    with pytest.raises(ConfigError, match="the back end reference builds no modules"):
        qc.convert_fx(made)
    with pytest.raises(ConfigError, match="no engines"):
        prepared(backend="reference", engine="x86")
    found = [quant_of(node).qparams for node in qc.convert_to_reference_fx(made).graph.nodes]
    assert {qparams.quant_max for qparams in found if qparams is not None} == {255}


def test_settings_go_to_the_target() -> None:
    with pytest.raises(ConfigError, match="a toy has no engine"):
        prepared(backend="toy", engine="x86")
    assert prepared(backend="toy", isa="wooden").meta["qcompiler"].settings.target == ToyTarget("wooden")


def test_dumps_name_the_target(tmp_path: Path) -> None:
    made = qc.prepare_fx(net(), None, (X,), backend="toy", debug=tmp_path)
    qc.calibrate(made, [X])
    qc.convert_fx(made, debug=tmp_path)
    runs = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("run.json"))]
    assert [run["target"] for run in runs] == [{"backend": "toy", "isa": "toy"}] * 2


def test_quantize_takes_a_back_end() -> None:
    assert type(qc.quantize(net(), [X], progress=False, backend="toy")) is ToyModule


def test_a_crash_of_a_back_end_happens_again_where_nobody_registered_it(tmp_path: Path) -> None:
    broken = Backend("broken", BACKEND.target, (Breaks(),), BACKEND.build)
    made = prepared(backend="toy")
    register("broken", broken)
    try:
        with pytest.raises(PassError, match="a toy breaks") as caught:
            qc.convert_fx(made, backend="broken", debug=tmp_path)
    finally:
        unregister("broken")
    assert caught.value.reproducer is not None
    script = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", script, caught.value.reproducer], cwd=tmp_path, capture_output=True, text=True, timeout=WAITING
    )
    assert done.returncode == 1 and "KeyError: 'a toy breaks'" in done.stderr
