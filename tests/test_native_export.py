"""export_c: the folder builds without a warning, and the program computes the same bits as the module."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import qcompiler
from qcompiler.backends.native import isa
from qcompiler.backends.native.build.compiler import Unit, find, link
from qcompiler.backends.native.build.library import RUN, headers
from qcompiler.backends.native.export.folder import identifier
from qcompiler.cli import app
from qcompiler.errors import ArtifactWriteError, ConfigError
from tests.native_nets import Through, conv, converted, example, net

FEW = """#include "kernels/qc.h"
#include <string.h>
extern const qc_kernels qc_kernels_scalar;
const qc_kernels *qc_select(const char *cap) { return cap && strcmp(cap, "scalar") ? 0 : &qc_kernels_scalar; }
"""
STRICT = ("-Wall", "-Wextra", "-Werror", "-std=c11", "-ffp-contract=off", "-O1")


def built(folder: Path, name: str) -> Path:
    """The example program, with the portable kernels alone."""
    (folder / "few.c").write_text(FEW)
    sources = ["main.c", f"{name}.c", f"{name}_layers.c", "few.c", "kernels/run.c", "kernels/workers.c"]
    find().run([*STRICT, "-DQC_ISA=QC_SCALAR", "-Ikernels", "-o", "program", *sources, "kernels/kernels.c", "-lpthread", "-lm"], folder)
    return folder / "program"


def printed(program: Path, weights: Path, *inputs: Tensor) -> list[tuple[int, float]]:
    values = program.parent / "input.f32"
    values.write_bytes(b"".join(x.contiguous().numpy().tobytes() for x in inputs))
    done = subprocess.run([program, weights, values, "2"], check=True, capture_output=True, text=True)
    return [(int(place), float(value)) for place, value in map(str.split, done.stdout.splitlines())]


@pytest.mark.parametrize("name", ["residual", "shuffle", "sequence"])
def test_the_program_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    module, _, x = net(name)
    folder = qcompiler.export_c(module, tmp_path / "c", name="small_net")
    program = built(folder, "small_net")
    shown = printed(program, folder / "small_net.weights", x)
    flat = module(x).flatten()
    assert shown and all(torch.tensor(value, dtype=torch.float32) == flat[place] for place, value in shown)
    assert torch.tensor(shown[0][1], dtype=torch.float32) == flat.max()


def test_several_sizes_stand_in_one_program(tmp_path: Path) -> None:
    module, _, _ = net("conv")
    folder = qcompiler.export_c(module, tmp_path / "c", sizes=[(1, 3, 9, 9), (2, 3, 12, 20)])
    text = (folder / "sequential.h").read_text()
    assert "SEQUENTIAL_SIZES 2" in text and "2 x 3 x 12 x 20" in text


def test_a_network_with_torch_in_it_is_refused(tmp_path: Path) -> None:
    module, _ = converted(Through(lambda m, x: m[1](m[0](x).cumsum(2)), conv(3, 8), conv(8, 4, 1)), example((1, 3, 9, 9)))
    with pytest.raises(ConfigError, match="runs in torch"):
        qcompiler.export_c(module, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("sizes", [[], [(1, 3, 9)], [(1, 4, 9, 9)], [((1, 3, 9, 9), (1, 3, 9, 9))]])
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
    program = built(first, "a")
    wrong = other / "a.weights"
    wrong.write_bytes(b"x" + wrong.read_bytes()[1:])
    (tmp_path / "in").write_bytes(bytes(400))
    assert subprocess.run([program, wrong, tmp_path / "in"], check=False, capture_output=True).returncode == 1
    (first / "a.weights").write_bytes((first / "a.weights").read_bytes()[:-8])
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
    assert "native region: 3 layers" in shown.output and "linear 20 -> 33" in shown.output


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_builds_all_instruction_sets(tmp_path: Path) -> None:
    module, _, x = net("residual")
    folder = qcompiler.export_c(module, tmp_path / "c", name="small_net")
    for command in (["cmake", "-B", "build", "-DCMAKE_BUILD_TYPE=Release"], ["cmake", "--build", "build"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    shown = printed(folder / "build" / "run_small_net", folder / "small_net.weights", x)
    assert torch.tensor(shown[0][1], dtype=torch.float32) == module(x).max()


@pytest.mark.slow
@pytest.mark.parametrize("instructions", isa.isas(isa.architecture()))
def test_kernels_compile_without_a_warning(instructions: str, tmp_path: Path) -> None:
    flags = (*isa.flags(isa.architecture(), instructions), "-Wall", "-Wextra", "-Werror")
    link(find(), [Unit("kernels", isa.KERNELS / "kernels.c", flags)], tmp_path, tmp_path / "kernels.so")


def test_the_runtime_compiles_without_a_warning(tmp_path: Path) -> None:
    units = [Unit(name, RUN / f"{name}.c", (*STRICT, "-fPIC", f"-I{isa.KERNELS}")) for name in ("run", "workers")]
    link(find(), units, tmp_path, tmp_path / "run.so")
    assert {"net.h", "qc.h"} <= {path.name for path in headers()}


def test_torch_jit_and_python_source_are_refused_with_a_way_out(tmp_path: Path) -> None:
    module, _, x = net("linear")
    with pytest.raises(ConfigError, match="export_c"):
        torch.jit.trace(module, (x,))
    with pytest.raises(ConfigError, match="export_c"):
        torch.jit.script(module)
    with pytest.raises(ConfigError, match="export_c"):
        qcompiler.export_source(module, tmp_path)
