"""export_c: the folder builds without a warning, and the program computes the same bits as the module."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import qcompiler
from qcompiler.backends.native import isa
from qcompiler.backends.native.build.compiler import Compiler, Unit, find, link
from qcompiler.backends.native.build.library import RUN, headers
from qcompiler.backends.native.export.folder import identifier
from qcompiler.backends.native.plan import samples
from qcompiler.cli import app
from qcompiler.errors import ArtifactWriteError, ConfigError
from tests.native_nets import Through, conv, converted, example, net

FEW = """#include "kernels/qc.h"
#include <string.h>
extern const qc_kernels qc_kernels_scalar;
const qc_kernels *qc_select(const char *cap) { return cap && strcmp(cap, "scalar") ? 0 : &qc_kernels_scalar; }
"""
STRICT = ("-Wall", "-Wextra", "-Werror", "-std=c11", "-pedantic", "-ffp-contract=off", "-O1")


def compilers() -> list[Any]:
    """The machine's compiler, and zig where it is installed."""
    missing = importlib.util.find_spec("ziglang") is None
    zig = pytest.param("zig", marks=[pytest.mark.slow, pytest.mark.skipif(missing, reason="ziglang is not installed")])
    return ["cc", zig]


def compiler(name: str) -> Compiler:
    return find() if name == "cc" else Compiler((sys.executable, "-m", "ziglang", "cc"), "zig")


_objects: dict[tuple[str, str], dict[str, bytes]] = {}


def kernels_of(folder: Path, by: str) -> list[str]:
    """The portable kernels and what runs a network, compiled in the folder; folders with the same files share them, which saves seconds."""
    files = sorted((folder / "kernels").iterdir())
    key = by, hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()
    names = [f"{name}.o" for name in ("run", "workers", "kernels")]
    if key not in _objects:
        for name in names:
            source = f"kernels/{name.removesuffix('.o')}.c"
            compiler(by).run([*STRICT, "-fPIC", "-DQC_ISA=QC_SCALAR", "-Ikernels", "-c", source, "-o", name], folder)
        _objects[key] = {name: (folder / name).read_bytes() for name in names}
    for name, content in _objects[key].items():
        (folder / name).write_bytes(content)
    return names


def build(folder: Path, name: str, *flags: str, by: str = "cc", main: str = "main.c") -> Path:
    """The example program, or a library, with the portable kernels alone; any warning fails."""
    (folder / "few.c").write_text(FEW)
    sources = [main, f"{name}.c", f"{name}_layers.c", "few.c", *kernels_of(folder, by)]
    command = [*STRICT, *flags, "-Ikernels", "-o", "program", *filter(None, sources), "-lpthread", "-lm"]
    compiler(by).run(command, folder)
    return folder / "program"


def computed(program: Path, name: str, inputs: Sequence[Tensor], sizes: int = 0) -> tuple[str, np.ndarray]:
    """What the program prints, and all results as floats."""
    values, results = program.parent / "input.f32", program.parent / "results.f32"
    values.write_bytes(b"".join(x.contiguous().numpy().tobytes() for x in inputs))
    command = [program, program.parent / f"{name}.weights", values, "2", str(sizes), results]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout, np.fromfile(results, np.float32)


def flat(results: Any) -> np.ndarray:
    return np.concatenate([leaf.numpy().reshape(-1) for leaf in torch.utils._pytree.tree_leaves(results) if isinstance(leaf, Tensor)])


@pytest.mark.parametrize("by", compilers())
@pytest.mark.parametrize("name", ["residual", "shuffle", "sequence"])
def test_the_program_computes_the_same_bits(name: str, by: str, tmp_path: Path) -> None:
    module, _, x = net(name)
    folder = qcompiler.export_c(module, tmp_path / "c", name="small_net")
    shown, results = computed(build(folder, "small_net", by=by), "small_net", [x])
    expected = flat(module(x))
    assert np.array_equal(results, expected)
    place, value = shown.splitlines()[0].split()
    assert float(value) == expected[int(place)] == expected.max()


def test_several_sizes_stand_in_one_program(tmp_path: Path) -> None:
    module, _, _ = net("conv")
    sizes = [(1, 3, 9, 9), (2, 3, 12, 20), (5, 3, 7, 31)]
    folder = qcompiler.export_c(module, tmp_path / "c", sizes=sizes)
    text = (folder / "sequential.h").read_text()
    assert "SEQUENTIAL_SIZES 3" in text and "2 x 3 x 12 x 20" in text
    program = build(folder, "sequential")
    for index, shape in enumerate(sizes):
        assert np.array_equal(computed(program, "sequential", [x := example(shape)], index)[1], flat(module(x)))
    for wrong in ("3", "-1"):
        command = [program, folder / "sequential.weights", folder / "input.f32", "1", wrong]
        assert subprocess.run(command, check=False, capture_output=True).returncode == 2


class Two(nn.Module):
    """Two inputs, a dict of results with a tuple in it, one value twice, and a size."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3), nn.Linear(8, 5)

    def forward(self, image: Tensor, mask: Tensor) -> dict[str, Any]:
        both = torch.relu(self.left(image) + self.right(mask))
        scores = self.head(both.mean((2, 3)))
        return {"scores": scores, "maps": (both, scores), "batch": both.shape[0], "größe */": self.left(image)}


def two() -> tuple[Any, tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    given = (example((2, 3, 9, 8)), example((2, 1, 9, 8), 6))
    prepared = qcompiler.prepare_fx(Two().eval(), None, given, backend="native")
    qcompiler.calibrate(prepared, [given])
    return qcompiler.convert_fx(prepared), given


def test_several_inputs_and_named_results(tmp_path: Path) -> None:
    module, given = two()
    folder = qcompiler.export_c(module, tmp_path / "c", sizes=[[x.shape for x in given], [(1, 3, 5, 5), (1, 1, 5, 5)]], name="two")
    text = (folder / "two.h").read_text()
    assert "#define TWO_INPUT_IMAGE 0" in text and "#define TWO_INPUT_MASK 1" in text
    assert "#define TWO_OUTPUT_SCORES" in text and "['scores'], ['maps'][1]" in text and "['batch'] is 2" in text
    results = module(*given)
    expected = {"SCORES_MAPS_1": results["scores"], "MAPS_0": results["maps"][0], "GR_E": results["größe */"]}
    order = sorted(expected, key=lambda name: int(re.search(rf"TWO_OUTPUT_{name} (\d+)", text)[1]))  # type: ignore[index]
    program = build(folder, "two")
    assert np.array_equal(computed(program, "two", given)[1], flat([expected[name] for name in order]))
    small = tuple(x[:1, :, :5, :5] for x in given)
    again = module(*small)
    expected = {"SCORES_MAPS_1": again["scores"], "MAPS_0": again["maps"][0], "GR_E": again["größe */"]}
    assert np.array_equal(computed(program, "two", small, 1)[1], flat([expected[name] for name in order]))


@dataclass
class Answer:
    scores: Tensor
    rows: int
    more: tuple[Tensor, Tensor] | None = None


class Checked(nn.Module):
    """Numbers of rows go in; a check of a size, and a size of the input among the results, stand beside the region."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(30, 8), nn.Linear(8, 5)

    def forward(self, words: Tensor, mask: Tensor, unused: Tensor | None = None) -> Answer:
        torch._assert(words.shape[1] == mask.shape[1], "one bit for each word")
        assert unused is None and words.shape[1] < 9
        made = self.head(self.words(words) * mask.bool()[..., None])
        return Answer(made, words.shape[0] + 1)


def test_checks_and_sizes_and_objects_of_results_stand_beside_the_region(tmp_path: Path) -> None:
    given = torch.randint(0, 30, (2, 6)), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    module = qcompiler.quantize(Checked().eval(), [given], backend="native", progress=False)
    folder = qcompiler.export_c(module, tmp_path / "c", sizes=[[(2, 6), (2, 6)], [(3, 4), (3, 4)]], name="checked")
    text = (folder / "checked.h").read_text()
    assert "['scores'] 3 x 4 x 5" in text and "['rows'] is 3" in text and "['rows'] is 4" in text
    assert "words, whole numbers as floats: rows 0 to 29 of a table" in text
    found = computed(build(folder, "checked"), "checked", [x.float() for x in given])[1]
    assert np.array_equal(found, flat(module(*given).scores))
    assert "us" in qcompiler.native_plan(module, *given)
    with pytest.raises(qcompiler.QCompilerError):
        qcompiler.export_c(module, tmp_path / "other", sizes=[[(2, 6), (2, 5)]])
    with pytest.raises(qcompiler.QCompilerError):
        qcompiler.export_c(module, tmp_path / "long", sizes=[[(2, 12), (2, 12)]])
    assert not (tmp_path / "other").exists() and not (tmp_path / "long").exists()


class Codes(ctypes.Structure):
    _fields_ = [("scale", ctypes.c_float), ("zero", ctypes.c_int), ("low", ctypes.c_int), ("high", ctypes.c_int)]


def pointers(arrays: Sequence[np.ndarray]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def library(folder: Path, name: str) -> Any:
    made = ctypes.CDLL(str(build(folder, name, "-shared", "-fPIC", main="")))
    for function, kind in (("load", ctypes.c_void_p), ("input_codes", ctypes.POINTER(Codes)), ("output_codes", ctypes.POINTER(Codes)),
                           ("input_length", ctypes.c_int64), ("output_length", ctypes.c_int64)):  # fmt: skip
        if hasattr(made, f"{name}_{function}"):
            getattr(made, f"{name}_{function}").restype = kind
    return made


@pytest.mark.parametrize("name", ["residual", "sequence", "volume", "linear", "tokens", "depthwise"])
def test_codes_go_in_and_come_out(name: str, tmp_path: Path) -> None:
    """A run on the codes of an input gives the codes of the results: no more than the ends of the network are left out."""
    module, _, x = net(name)
    folder = qcompiler.export_c(module, tmp_path / "c", name="n")
    made = library(folder, "n")
    network = ctypes.c_void_p(made.n_load(str(folder / "n.weights").encode(), None))
    c = made.n_input_codes(0).contents
    codes = np.clip(np.rint(x.numpy() * (np.float32(1) / np.float32(c.scale))) + c.zero, c.low, c.high).astype(np.uint8)
    floats = (codes.astype(np.float32) - c.zero) * np.float32(c.scale)
    expected = module(torch.from_numpy(floats)).numpy()
    out = made.n_output_codes(0)
    result = np.zeros(expected.shape, np.uint8 if out else np.float32)
    for threads in (1, 3):
        assert made.n_run_codes(network, 0, pointers([codes]), pointers([result]), threads) == 0
        o = out.contents if out else None
        values = (result.astype(np.float32) - o.zero) * np.float32(o.scale) if o else result
        assert np.array_equal(values, expected)
    assert not made.n_input_codes(1) and not made.n_input_codes(-1) and made.n_input_length(0, 1) == made.n_output_length(-1, 0) == -1
    assert made.n_run_codes(network, 1, pointers([codes]), pointers([result]), 1) == 2
    made.n_free(network)


@pytest.mark.parametrize("name", ["residual", "tokens"])
def test_a_batch_is_computed_a_few_samples_at_a_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the module does it: with floats, and with codes, whose tensors are as wide as an element of a byte each."""
    module, _, first = net(name)
    x = example((5, *first.shape[1:]), 7)
    expected = module(x).numpy()
    monkeypatch.setattr(samples, "NEAR", 0)
    folder = qcompiler.export_c(module, tmp_path / "c", name="n", sizes=[tuple(first.shape), tuple(x.shape)])
    assert "all_sizes_step_1" in (folder / "n.c").read_text() and "5 x" in (folder / "n.h").read_text()
    made = library(folder, "n")
    network = ctypes.c_void_p(made.n_load(str(folder / "n.weights").encode(), None))
    assert made.n_input_length(1, 0) == x.numel() and made.n_output_length(1, 0) == expected.size
    c, out = made.n_input_codes(0).contents, made.n_output_codes(0)
    codes = np.clip(np.rint(x.numpy() * (np.float32(1) / np.float32(c.scale))) + c.zero, c.low, c.high).astype(np.uint8)
    coded = module(torch.from_numpy((codes.astype(np.float32) - c.zero) * np.float32(c.scale))).numpy()
    for threads in (1, 2, 3):
        result = np.zeros(expected.shape, np.float32)
        assert made.n_run(network, 1, pointers([x.numpy()]), pointers([result]), threads) == 0
        assert np.array_equal(result, expected)
        result = np.zeros(expected.shape, np.uint8 if out else np.float32)
        assert made.n_run_codes(network, 1, pointers([codes]), pointers([result]), threads) == 0
        o = out.contents if out else None
        assert np.array_equal((result.astype(np.float32) - o.zero) * np.float32(o.scale) if o else result, coded)
    made.n_free(network)


def test_a_network_with_torch_in_it_is_refused(tmp_path: Path) -> None:
    module, _ = converted(Through(lambda m, x: m[1](m[0](x).logcumsumexp(2)), conv(3, 8), conv(8, 4, 1)), example((1, 3, 9, 9)))
    with pytest.raises(ConfigError, match="runs in torch"):
        qcompiler.export_c(module, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "sizes", [[], [(1, 3, 9)], [(1, 4, 9, 9)], [((1, 3, 9, 9), (1, 3, 9, 9))], [(0, 3, 9, 9)], [(1, 3, 9, -9)], [(1, 3, 2, 2)]]
)
def test_sizes_that_do_not_fit(sizes: Any, tmp_path: Path) -> None:
    module, _, _ = net("conv")
    with pytest.raises(qcompiler.QCompilerError):
        qcompiler.export_c(module, tmp_path / "c", sizes=sizes)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    module, _, _ = net("linear")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactWriteError, match="empty folder"):
        qcompiler.export_c(module, tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    first = qcompiler.export_c(net("linear")[0], tmp_path / "a", name="a")
    other = qcompiler.export_c(net("rows")[0], tmp_path / "b", name="a")
    program = build(first, "a")
    wrong = other / "a.weights"
    wrong.write_bytes(b"x" + wrong.read_bytes()[1:])
    (tmp_path / "in").write_bytes(bytes(400))
    assert subprocess.run([program, wrong, tmp_path / "in"], check=False, capture_output=True).returncode == 1
    whole = (first / "a.weights").read_bytes()
    for damaged in (
        whole[:-8],
        whole[:40],
        b"",
        whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        whole[:16] + b"\xff" * 8 + whole[24:],
    ):
        (first / "a.weights").write_bytes(damaged)
        assert subprocess.run([program, first / "a.weights", tmp_path / "in"], check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize(("text", "found"), [("MobileNetV2", "mobilenetv2"), ("2d-net", "net_2d_net"), ("größe", "gr__e"), ("", "net")])
def test_names_that_c_takes(text: str, found: str) -> None:
    assert identifier(text) == found


def test_the_command_writes_it(tmp_path: Path) -> None:
    module, _, _ = net("linear")
    qcompiler.save(module, tmp_path / "net.qc")
    made = CliRunner().invoke(app, ["export-c", str(tmp_path / "net.qc"), str(tmp_path / "c"), "--name", "mlp", "--shape", "7x20"])
    assert made.exit_code == 0, made.output
    assert "7 x 20" in (tmp_path / "c" / "mlp.h").read_text()
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "net.qc"), "--plan"])
    assert "native region: " in shown.output and "linear 20 -> 33" in shown.output


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_builds_all_instruction_sets_without_a_warning(tmp_path: Path) -> None:
    module, _, x = net("residual")
    folder = qcompiler.export_c(module, tmp_path / "c", name="small_net")
    strict = "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror"
    for command in (["cmake", "-B", "build", "-DCMAKE_BUILD_TYPE=Release", strict], ["cmake", "--build", "build"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    program = (folder / "build" / "run_small_net").rename(folder / "program")
    assert np.array_equal(computed(program, "small_net", [x])[1], flat(module(x)))


def test_the_runtime_compiles_without_a_warning(tmp_path: Path) -> None:
    units = [Unit(name, RUN / f"{name}.c", (*STRICT, "-fPIC", f"-I{isa.KERNELS}")) for name in ("run", "workers")]
    link(find(), units, tmp_path, tmp_path / "run.so")
    assert {"net.h", "qc.h"} <= {path.name for path in headers()}


def test_torch_jit_script_and_python_source_are_refused_with_a_way_out(tmp_path: Path) -> None:
    module, _, _ = net("linear")
    for model in (module, torch.nn.Sequential(module)):
        with pytest.raises(ConfigError, match=r"torch\.jit\.trace .* export_c"):
            torch.jit.script(model)
    with pytest.raises(ConfigError, match="export_c"):
        qcompiler.export_source(module, tmp_path)


class Several(nn.Module):
    """Of two inputs and a dict; what it computes is `op`'s."""

    def __init__(self, op: Callable[..., Any]) -> None:
        super().__init__()
        self.left, self.right, self.words, self.op = nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(9, 4), op
        self.register_buffer("starts", torch.tensor([0, 3, 6]))

    def forward(self, a: Tensor, b: Tensor, more: dict[str, Any]) -> Any:
        return self.op(self, a, b, more)


def several(op: Callable[..., Any]) -> tuple[Any, tuple[Any, ...]]:
    torch.manual_seed(0)
    given = (example((3, 4)), example((3, 4), 6), {"c": example((3, 4), 7), "rows": torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 2]])})
    return qcompiler.quantize(Several(op).eval(), [given], backend="native", progress=False), given


def test_inputs_and_results_are_in_the_order_of_the_forward(tmp_path: Path) -> None:
    """However the network computes: `sizes=` and the C take them so."""

    def op(m: Any, a: Tensor, b: Tensor, more: dict[str, Any]) -> Any:
        last = torch.relu(m.left(more["c"]))
        middle = m.right(b)
        return m.left(a) + middle, middle, last

    module, given = several(op)
    folder = qcompiler.export_c(module, tmp_path / "c", name="net")
    assert [line.split(",")[0] for line in (folder / "net.h").read_text().splitlines() if line.startswith("   input")] == [
        "   input 0: a", "   input 1: b", "   input 2: more['c']",
    ]  # fmt: skip
    _, results = computed(build(folder, "net"), "net", [given[0], given[1], given[2]["c"]])
    assert np.array_equal(results, flat(module(*given)))


BESIDE: dict[str, Callable[..., Any]] = {
    "add": lambda m, a, b, more: m.left(m.words(more["rows"] + m.starts).sum(1)),  # numbers of rows that torch would compute
    "getitem": lambda m, a, b, more: (m.left(a), more["rows"][:, 0]),
    "mul": lambda m, a, b, more: (y := m.left(a), y.argmax(-1) * 2),
}


@pytest.mark.parametrize("name", BESIDE)
def test_whole_numbers_that_torch_computes_are_not_asked_of_the_caller(name: str, tmp_path: Path) -> None:
    module, _ = several(BESIDE[name])
    with pytest.raises(ConfigError, match=f"native as a whole.*beside it operator.{name}"):
        qcompiler.export_c(module, tmp_path / "c")


def test_a_part_of_an_argument_is_no_result(tmp_path: Path) -> None:
    module, _ = several(lambda m, a, b, more: (m.left(a), more["c"]))
    with pytest.raises(ConfigError, match=r"\[1\] of the model is its input \"more\['c'\]\" as it came"):
        qcompiler.export_c(module, tmp_path / "c")
