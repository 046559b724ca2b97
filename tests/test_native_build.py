"""Building and keeping libraries: which compiler, when from the cache, what is not run."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native import isa
from qcompiler.backends.native.build import cache, compiler, library
from qcompiler.backends.native.build.compiler import CompileError, Unit, find
from qcompiler.errors import ConfigError
from tests.children import WAITING

TEXT = "int answer(void) { return 42; }\n"


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unit:
    """A C file, and a cache folder of its own."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    source = tmp_path / "answer.c"
    source.write_text(TEXT)
    return Unit("answer", source, ("-std=c11", "-O1", "-fPIC"))


def built(*units: Unit) -> Path:
    return cache.library(find(), "answer", units, [])


def test_a_library_is_built_once(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(unit)
    assert ctypes.CDLL(str(path)).answer() == 42
    monkeypatch.setattr(cache, "link", lambda *_: pytest.fail("it was built again"))
    assert built(unit) == path


def test_its_record_says_how_it_was_made(unit: Unit) -> None:
    record = json.loads(built(unit).with_suffix(".json").read_text())
    assert record["flags"] == {"answer": list(unit.flags)} and record["compiler"] == list(find().command) and record["version"]


def test_other_sources_flags_or_headers_make_another_library(unit: Unit, tmp_path: Path) -> None:
    paths = {built(unit), built(Unit(unit.name, unit.source, (*unit.flags, "-DX")))}
    header = tmp_path / "a.h"
    header.write_text("/* */\n")
    paths.add(cache.library(find(), "answer", [unit], [header]))
    unit.source.write_text(TEXT.replace("42", "43"))
    paths.add(built(unit))
    assert len(paths) == 4


def test_equal_files_in_another_folder_make_the_same_library(unit: Unit, tmp_path: Path) -> None:
    """A second checkout or virtual environment takes what the first one built; another header makes another library."""
    paths = []
    for folder, answer in (("a", 42), ("b", 42), ("c", 43)):
        (tmp_path / folder).mkdir()
        source, header = tmp_path / folder / "answer.c", tmp_path / folder / "answer.h"
        source.write_text("#include <answer.h>\nint answer(void) { return ANSWER; }\n")
        header.write_text(f"#define ANSWER {answer}\n")
        paths.append(cache.library(find(), "answer", [Unit("answer", source, unit.flags, (tmp_path / folder,))], [header]))
    assert paths[0] == paths[1] != paths[2] and ctypes.CDLL(str(paths[2])).answer() == 43


def test_the_library_of_kernels_does_not_know_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {cache.hash_of(library.runtime_units("scalar"), library.headers())}
    kernels, run = isa.KERNELS, library.RUN
    for first, second in (("a", "b"), ("b", "a")):  # whichever folder comes first
        monkeypatch.setattr(isa, "KERNELS", shutil.copytree(kernels, tmp_path / first / "kernels"))
        monkeypatch.setattr(library, "RUN", shutil.copytree(run, tmp_path / second / "run"))
        keys.add(cache.hash_of(library.runtime_units("scalar"), library.headers()))
    assert len(keys) == 1


@pytest.mark.parametrize("broken", ["cut", "no record", "bad record"])
def test_a_broken_entry_is_built_again(broken: str, unit: Unit) -> None:
    path = built(unit)
    whole = path.read_bytes()
    record = path.with_suffix(".json")
    if broken == "cut":
        path.write_bytes(whole[:100])
    elif broken == "no record":
        record.unlink()
    else:
        record.write_text("[1]")
    assert built(unit) == path and path.stat().st_size == len(whole) and json.loads(record.read_text())["sha256"]


def test_nothing_half_made_stays(unit: Unit) -> None:
    unit.source.write_text("int answer(void) { return }\n")
    with pytest.raises(CompileError, match=r"answer\.c"):
        built(unit)
    assert not [path for path in cache.folder().iterdir() if path.suffix != ".lock"]


def test_a_folder_that_others_may_write_to_is_refused(unit: Unit) -> None:
    cache.folder().chmod(0o777)
    with pytest.raises(ConfigError, match="others may write") as error:
        built(unit)
    assert cache.VARIABLE in (error.value.hint or "")


@pytest.mark.parametrize("fails", ["lock", "folder", "record", "name", "compiler"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_takes_no_file_is_one_error(number: int, fails: str, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    owner, name = {
        "lock": (cache.fcntl, "flock"),
        "folder": (cache.tempfile, "mkdtemp"),
        "record": (Path, "write_text"),
        "name": (os, "replace"),
        "compiler": (cache.tempfile, "TemporaryFile"),  # it fails in a way of its own, and so does what is tried behind it
    }[fails]
    with monkeypatch.context() as patched, pytest.raises(ConfigError, match=os.strerror(number)) as error:
        patched.setattr(owner, name, full)
        built(replace(unit, flags=("--no-such-flag",)) if fails == "compiler" else unit)
    assert cache.VARIABLE in (error.value.hint or "") and str(cache.folder()) in str(error.value)
    assert not [path for path in cache.folder().iterdir() if path.suffix != ".lock"]
    assert ctypes.CDLL(str(built(unit))).answer() == 42


def test_a_library_that_is_there_needs_no_writing(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(unit)
    monkeypatch.setattr(cache, "_alone", lambda *_: pytest.fail("something is written"))
    assert built(unit) == path


def test_processes_that_build_at_the_same_time_each_find_a_whole_library(unit: Unit) -> None:
    unit.source.write_text("#include <stdio.h>\n" + TEXT)
    script = (
        "import sys, ctypes; from pathlib import Path\n"
        "from qcompiler.backends.native.build import cache; from qcompiler.backends.native.build.compiler import Unit, find\n"
        "path = cache.library(find(), 'answer', [Unit('answer', Path(sys.argv[1]), ('-fPIC',))], [])\n"
        "assert ctypes.CDLL(str(path)).answer() == 42\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(unit.source)]) for _ in range(3)]
    assert [process.wait(timeout=WAITING) for process in running] == [0, 0, 0]
    assert len(list(cache.folder().glob("*.so"))) == 1


def test_what_another_process_has_built_meanwhile_is_taken(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(unit)
    answers = iter([False, True])
    monkeypatch.setattr(cache, "_is_whole", lambda path, record: next(answers))
    monkeypatch.setattr(cache, "link", lambda *_: pytest.fail("it was built again"))
    assert built(unit) == path


def test_the_compiler_that_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    command = find().command[0]
    monkeypatch.setenv(compiler.VARIABLE, command)
    assert find().command == (command,)
    monkeypatch.setenv(compiler.VARIABLE, "/no/such/compiler --flag")
    with pytest.raises(ConfigError, match="starts no compiler"):
        find()


def test_no_compiler_is_one_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_candidates", lambda: iter(()))
    compiler._found.cache_clear()
    try:
        with pytest.raises(ConfigError, match="needs a C compiler") as error:
            find()
    finally:
        compiler._found.cache_clear()
    assert all(word in (error.value.hint or "") for word in ("gcc", "clang", "qcompiler[native]", compiler.VARIABLE))


@pytest.mark.parametrize("kept", ["whole", "of other sources", "of other flags", "broken", "nothing"])
def test_without_a_compiler_what_any_compiler_made_of_the_same_sources_is_taken(kept: str, unit: Unit) -> None:
    path = cache.library(find(), "answer", [unit], []) if kept != "nothing" else None
    if kept == "of other sources":
        unit.source.write_text(TEXT.replace("42", "43"))
    elif kept == "of other flags":
        unit = replace(unit, flags=(*unit.flags, "-DOTHER"))
    elif kept == "broken" and path is not None:
        path.write_bytes(path.read_bytes()[:100])
    if kept == "whole":
        assert cache.library(None, "answer", [unit], []) == path
        return
    with pytest.raises(ConfigError, match=r"needs a C compiler and finds none, and the cache folder .* has no answer") as error:
        cache.library(None, "answer", [unit], [])
    assert all(word in (error.value.hint or "") for word in ("gcc", "same version", cache.VARIABLE))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = torch.cat([y + y.mean(1, keepdim=True), torch.where(y > 0, y, 2 * y)[:, :1]], 1)
        result: Tensor = self.last((z @ z.transpose(2, 3)).amax(3)[:, :4].transpose(1, 2))
        return result


def test_a_module_runs_without_a_compiler_where_the_cache_was_filled(tmp_path: Path) -> None:
    """As in a container: a process that finds no compiler loads a file and has the bits that were made with one. Shapes are found without
    torch's own compiler and without sympy, whose imports take seconds."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    small = qcompiler.quantize(Joined().eval(), [x], backend="native", progress=False)
    qcompiler.save(small, tmp_path / "net.qc")
    torch.save((x, small(x)), tmp_path / "known.pt")
    code = (
        "import sys, torch, qcompiler\n"
        "from qcompiler.backends.native.build import compiler\n"
        "compiler._candidates = lambda: iter(())\n"
        "x, expected = torch.load(sys.argv[2])\n"
        "assert torch.equal(qcompiler.load(sys.argv[1])(x), expected)\n"
        "assert not {'sympy', 'torch._dynamo'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "net.qc", tmp_path / "known.pt"], check=True, timeout=WAITING)


def test_the_order_in_which_compilers_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: object())
    names = [command[-1].rpartition("/")[2] for command in compiler._candidates()]
    assert names == ["cc", "gcc", "clang", "cc"]
