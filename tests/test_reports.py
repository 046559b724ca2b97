"""Reports cannot lie: explain, drawings, pages, dumps, files and the command line say what the program that runs does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import qcompiler
from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.native.regions import regions_of
from qcompiler.cli import app
from qcompiler.debug import Recorder, compare
from qcompiler.debug.document import Document
from qcompiler.debug.explain import Explanation
from qcompiler.debug.op_steps import is_op
from qcompiler.debug.sources import document_of
from qcompiler.viz.boxes import draw
from qcompiler.viz.svg import to_svg
from tests import zoo
from tests.test_explain import Block

BACKENDS = ("torch", "native")
Facts = dict[str, tuple[str, int]]


class Layers(nn.Module):
    """Recurrent, in modes: its linears are int8 dynamic or float."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Lines(nn.Module):
    """What kernels of two dimensions compute by several calls each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.deep = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose1d(8, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.up(F.gelu(self.deep(F.relu(self.norm(self.first(x)))))))


class Pooled(nn.Module):
    """Pools and a flatten: in a loaded file nothing but their names says that they take integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.mean, self.out = nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.flatten(self.mean(self.pool(F.relu(self.conv(x)))), 1))


class HeldFloat(Pooled):
    """With a part that its qconfig keeps float."""


class Looks(nn.Module):
    """As image encoders begin: patches, a row and positions of their own, attention, a normalized projection."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 1, 32))
        self.places, self.norm = nn.Parameter(torch.randn(1, 17, 32)), nn.LayerNorm(32)
        self.attention, self.up, self.down = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 64), nn.Linear(64, 32)
        self.out = nn.Linear(32, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.first.expand(y.shape[0], -1, -1), y], 1) + self.places
        z = self.norm(y)
        y = y + self.attention(z, z, z, need_weights=False)[0]
        y = y + self.down(F.gelu(self.up(self.norm(y))))
        return F.normalize(self.out(y[:, 0]), dim=-1)


class Chooses(nn.Module):
    """Looks at its data between two values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.detach().amax() > 1e9) else self.conv(x)


class Parted(nn.Module):
    """With a choice between that data makes: two native regions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.part, self.out = nn.Conv2d(3, 8, 3), Chooses(), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.part(F.relu(self.conv(x))))


SMALL: dict[str, tuple[Any, tuple[int, ...]]] = {
    "block": (Block, (2, 3, 32, 32)),
    "layers": (Layers, (4, 7, 16)),
    "lines": (Lines, (3, 4, 20)),
    "pooled": (Pooled, (4, 3, 10, 10)),
    "held float": (HeldFloat, (4, 3, 10, 10)),
    "looks": (Looks, (2, 3, 16, 16)),
    "parted": (Parted, (2, 3, 8, 8)),
}
ZOO = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet", "densenet121", "efficientnet_b0")


def made(name: str, backend: str, debug: Any = None) -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(0)
    if name in SMALL:
        model, x = SMALL[name][0]().eval(), torch.randn(*SMALL[name][1])
    else:
        model, x = zoo.few(name), torch.randn(2, 3, 64, 64)
    mapping = qcompiler.get_default_qconfig_mapping()
    mapping = mapping.set_module_name("out", None) if isinstance(model, HeldFloat) else mapping
    return model, qcompiler.quantize(model, [x], mapping, progress=False, backend=backend, debug=debug), x


def told(explanation: Explanation) -> Facts:
    return {row.node: ("int8" if row.int8 else "float", row.macs) for row in explanation.rows}


def drawn(document: Document) -> tuple[dict[str, str], int, int]:
    """Kinds of the ops of the last stage, and the multiply-accumulates of all and of those in int8."""
    ops = [node for node in document.nodes_at(-1) if is_op(node)]
    kinds = {name: node["kind"] for node in ops for name in node.get("computes") or [node["name"]]}
    sums = [sum(node.get("macs", 0) for node in ops if node["kind"] in wanted) for wanted in (("int8", "float"), ("int8",))]
    return kinds, sums[0], sums[1]


def steps_have_the_colour_of_their_op(document: Document) -> bool:
    """Every step has its op's kind and is no op of its own, and what was made from the call of an op is not left without one."""
    for index in range(len(document.stages)):
        nodes = {node["name"]: node for node in document.nodes_at(index)}
        ops = {made: node["name"] for node in nodes.values() if is_op(node) for made in node.get("origin", ())}
        for node in nodes.values():
            op = nodes[node["step_of"]] if "step_of" in node else None
            if op is not None and (not is_op(op) or op["kind"] != node["kind"] or "macs" in node):
                return False
            made_for = {ops.get(made, "") for made in node.get("origin", ())}
            if node["kind"] == "other" and document.stages[index]["phase"] != "prepare" and len(made_for) == 1 and "" not in made_for:
                return False
    return True


def holds_codes(value: object) -> bool:
    """Whether a value of a running program is one of integers."""
    if isinstance(value, (tuple, list)):
        return any(map(holds_codes, value))
    return isinstance(value, Tensor) and (value.is_quantized or value.dtype in (torch.uint8, torch.int8))


def inputs_of_regions(module: nn.Module, x: Tensor) -> dict[NativeRegion, tuple[Tensor, ...]]:
    """What each native region takes in a call."""
    found: dict[NativeRegion, tuple[Tensor, ...]] = {}
    run = NativeRegion.__call__

    def noted(region: NativeRegion, *inputs: Tensor) -> tuple[Any, ...]:
        found[region] = inputs
        return run(region, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeRegion, "__call__", noted)
        module(x)
    assert list(found) == list(regions_of(module))
    return found


def executed(module: Any, x: Tensor) -> dict[str, bool]:
    """By the names of values: whether the program as it runs works on integers there, in or out."""
    steps, found = module._steps(), dict[str, bool]()
    env = steps.bind((x,), {})
    with torch.inference_mode():
        for step in steps.steps:
            env[step.name] = step.run(env)
            if step.kind == "call":
                takes = any(holds_codes(env[name]) for name in step.inputs if name in env)
                found[step.name] = takes or holds_codes(env[step.name]) or step.op.startswith("quantized::")
        for region, inputs in inputs_of_regions(module, x).items():
            seen = region.watch(*inputs)
            for layer, ops in region.computes.items():
                reads = next(one for one in region.network.layers if one.out == layer).reads
                products = any(getattr(one, "weight", None) is not None for one in region.network.layers if one.out == layer)
                found |= {name: any(holds_codes(seen.get(value)) for value in ((layer, *reads) if products else (layer,))) for name in ops}
    return found


def check(name: str, backend: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_DEBUG", str(folder / "dumps"))
    recorder = Recorder()
    _, module, x = made(name, backend, recorder)
    monkeypatch.delenv("QCOMPILER_DEBUG")
    explanation, file = qcompiler.explain(module), folder / "net.qc"
    expected, total = told(explanation), explanation.macs
    qcompiler.save(module, file)
    loaded = qcompiler.load(file)
    assert told(qcompiler.explain(loaded)) == expected and str(qcompiler.explain(loaded)) == str(explanation)
    kinds = {name: kind for name, (kind, _) in expected.items()}
    for document in (document_of(module), document_of(loaded), recorder.document(), document_of(folder / "dumps")):
        found, macs, int8_macs = drawn(document)
        assert steps_have_the_colour_of_their_op(document)
        assert found == kinds and macs == total and document.sample == explanation.sample
        assert total == 0 or int8_macs / macs == explanation.int8_mac_share
        assert not total or f"MACs {explanation.sample.unit}" in to_svg(draw(document))
    for one in (module, loaded):
        runs = executed(one, x)
        wrong = {n for n, kind in kinds.items() if n in runs and runs[n] != (kind == "int8") and "dynamic" not in mode(explanation, n)}
        assert not wrong and len(runs.keys() & kinds.keys()) > len(kinds) / 2
    data = json.loads(CliRunner().invoke(app, ["inspect", str(file), "--json"]).output)
    assert {row["node"]: (row["int8"], row["macs"]) for row in data["ops"]} == {n: (k == "int8", m) for n, (k, m) in expected.items()}


def mode(explanation: Explanation, node: str) -> str:
    return next(row.mode for row in explanation.rows if row.node == node)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SMALL)
def test_all_reports_agree_with_the_program(name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(name, backend, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ZOO)
def test_all_reports_of_the_zoo_agree(name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (name, backend) == ("shufflenet_v2_x0_5", "native"):
        pytest.skip("the pieces of a chunk are no values that a region shows")
    check(name, backend, tmp_path, monkeypatch)


class Functions(nn.Module):
    """A float function on the flattened results of an int8 convolution of 16 channels, 8 x 8."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.q, self.out, self.function = nn.Conv2d(3, 16, 3), nn.Linear(16, 48), nn.Linear(16, 16), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x).flatten(2).permute(2, 0, 1))


FUNCTIONS = {  # by hand: 64 positions of 2 samples and 16 channels
    "bilinear": (lambda m, x: F.bilinear(x, x, m.out.weight[:, None] * torch.ones(16, 1)), 64 * 2 * 16 * (16 * 16 + 16)),
    "tensordot": (lambda m, x: torch.tensordot(x, x, dims=([0, 1], [0, 1])), 16 * 16 * 128),
    "chain": (lambda m, x: torch.linalg.multi_dot([x[0], m.out.weight, m.out.weight]), 2 * 16 * 16 + 2 * 16 * 16),
    "inner": (lambda m, x: torch.inner(x[:, 0], m.out.weight), 64 * 16 * 16),
    "no product": (lambda m, x: torch.lerp(x, x, x), 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_without_a_row_are_counted(name: str) -> None:
    function, macs = FUNCTIONS[name]
    explanation = qcompiler.explain(qcompiler.quantize(Functions(function).eval(), [torch.randn(2, 3, 10, 10)], progress=False))
    conv = 2 * 16 * 64 * 27
    assert sum(row.macs for row in explanation.rows if not row.int8) == macs and not explanation.uncounted
    assert explanation.macs == conv + macs and explanation.int8_mac_share == conv / (conv + macs)


def test_a_model_without_products_has_no_share() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x).flatten(1)

    explanation = qcompiler.explain(qcompiler.quantize(Nothing().eval(), [torch.randn(4, 3, 8, 8)], progress=False))
    assert explanation.int8_mac_share != explanation.int8_mac_share
    assert str(explanation).startswith("0 of 2 ops in int8; nothing to multiply and accumulate") and "%" not in str(explanation)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_counts_are_those_of_a_sample(batch: int) -> None:
    module = qcompiler.quantize(Pooled().eval(), [torch.randn(batch, 3, 10, 10)], progress=False)
    one = 16 * 64 * 27 + 64 * 10
    explanation = qcompiler.explain(module)
    assert explanation.macs == batch * one and (explanation.sample.count, explanation.sample.shape) == (batch, "3x10x10")
    assert explanation.work == f"{one / 1e3:.3g} k per sample of 3x10x10" and "28.3 k per sample" in " ".join(str(explanation).split())
    assert "28.3 k MACs per sample" in to_svg(draw(document_of(module)))


def test_what_is_no_batch_is_counted_by_the_call() -> None:
    module = qcompiler.quantize(Functions(lambda m, x: x).eval(), [torch.randn(2, 3, 10, 10)], progress=False)
    assert qcompiler.explain(module).work.endswith("per call with 2x3x10x10")


@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "NET.PTH", "net.pt2", "net.tflite"])
def test_a_name_of_another_format_is_refused(name: str, tmp_path: Path) -> None:
    module = qcompiler.quantize(Pooled().eval(), [torch.randn(1, 3, 10, 10)], progress=False)
    with pytest.raises(qcompiler.ConfigError, match="a safetensors file, and the name says") as caught:
        qcompiler.save(module, tmp_path / name)
    assert ".qc" in caught.value.hint and not list(tmp_path.iterdir())


def foreign_files(folder: Path) -> dict[str, str]:
    torch.save({"a": torch.zeros(1)}, folder / "saved")
    (folder / "array").write_bytes(b"\x93NUMPY\x01\x00" + bytes(200))
    safetensors.torch.save_file({"a": torch.zeros(70_000)}, folder / "tensors")
    (folder / "other").write_bytes(b"something else" * 20)
    return {
        "saved": "torch.save",
        "array": "NumPy",
        "tensors": "without a program",
        "other": "not a file that qcompiler saved",
    }


def test_a_foreign_file_is_called_by_its_name(tmp_path: Path) -> None:
    for name, said in foreign_files(tmp_path).items():
        with pytest.raises(qcompiler.ArtifactError, match=said) as caught:
            qcompiler.load(tmp_path / name)
        assert "corrupt" not in str(caught.value) and caught.value.code == "artifact-magic"


@pytest.mark.parametrize("backend", BACKENDS)
def test_times_are_parts_of_a_whole(backend: str) -> None:
    """Of whole runs; what a native region computes in one piece is timed inside of it."""
    model, module, x = made("pooled", backend)
    found = compare(model, module, [x], profile=True)
    times: Any = found.times
    assert sum(times.steps.values()) == times.together > 0 and times.call > 0
    assert sum(row.ms or 0 for row in found) <= sum(times.steps.values()) * 1.0001
    assert document_of(module).with_numerics(found).times == found.to_times()
