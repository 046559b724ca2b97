"""The saved file: equal after load, the same bytes each time, and refused with one clear error when it is not what it was."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompiler import artifact
from qcompiler.backends.torch.program import other_cpu
from qcompiler.backends.torch.program.assemble import compile_graph
from qcompiler.backends.torch.program.other_cpu import OtherCPUWarning
from qcompiler.errors import ArtifactError, ArtifactUnsafeError, ArtifactVersionError, ArtifactWriteError, ConfigError
from qcompiler.files.atomic import atomic_write
from tests.lowered_net import ENGINES, INPUT, lowered


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "net.qc"
    artifact.save(compile_graph(lowered(), name="Net", engine=ENGINES[0], user_attributes={"classes": ["cat", "dog"]}), path)
    return path.read_bytes()


@pytest.mark.parametrize(("isa", "here", "engine", "warns"), [
    ("avx512_vnni", "avx2", "x86", True), ("avx512_amx", "avx512", "fbgemm", True), ("avx2", "avx2", "x86", False),
    ("avx2", "avx512_vnni", "x86", False), ("avx512_vnni", "avx512_amx", "onednn", False), ("avx512_vnni", "avx2", "qnnpack", False),
    ("", "avx2", "x86", False),
])  # fmt: skip
def test_a_module_for_cpus_with_vnni_warns_on_one_without(
    isa: str, here: str, engine: str, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine not in ENGINES:
        pytest.skip(f"no {engine}")
    monkeypatch.setattr(other_cpu, "host_isa", lambda: isa)
    module = compile_graph(lowered(), name="Net", engine=engine, isa=isa)
    artifact.save(module, tmp_path / "a.qc")
    data = pickle.dumps(module)
    monkeypatch.setattr(other_cpu, "host_isa", lambda: here)
    for build in (lambda: artifact.load(tmp_path / "a.qc"), lambda: pickle.loads(data)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert build().program.isa == isa
        assert [w.category for w in caught if "VNNI" in str(w.message)] == [OtherCPUWarning] * warns


def attempt(tmp_path: Path, data: bytes, **options: Any) -> Any:
    path = tmp_path / "try.qc"
    path.write_bytes(data)
    return artifact.load(path, **options)


def changed(data: bytes, change: Any) -> bytes:
    """The file with its header changed and all hashes right again: what an attacker would write."""
    magic, major, minor, zero, length, _ = artifact.PREFIX.unpack(data[: artifact.PREFIX.size])
    start = artifact.PREFIX.size
    header = json.loads(data[start : start + length])
    text = change(header)
    raw = text if isinstance(text, bytes) else json.dumps(header).encode()
    body = data[start + length + -(start + length) % artifact.ALIGN : -artifact.DIGEST]
    new = artifact.PREFIX.pack(magic, major, minor, zero, len(raw), hashlib.sha256(raw).digest()) + raw
    new += bytes(-len(new) % artifact.ALIGN) + body
    return new + hashlib.sha256(new).digest()


@pytest.mark.parametrize("engine", ENGINES)
def test_round_trip(engine: str, tmp_path: Path) -> None:
    module = compile_graph(lowered(), name="Net", engine=engine, user_attributes={"classes": ("a", 1), "fn": print})
    artifact.save(module, tmp_path / "a.qc")
    loaded = artifact.load(tmp_path / "a.qc")
    assert torch.equal(loaded(INPUT)[0], module(INPUT)[0]) and type(loaded).__name__ == "Net" and loaded.engine == engine
    assert loaded.classes == ("a", 1) and set(loaded.state_dict()) == set(module.state_dict())
    artifact.save(loaded, tmp_path / "b.qc")
    assert (tmp_path / "a.qc").read_bytes() == (tmp_path / "b.qc").read_bytes()


def test_the_same_bytes_in_another_process(saved: bytes, tmp_path: Path) -> None:
    code = (
        "import sys; from qcompiler import artifact; from qcompiler.backends.torch.program.assemble import compile_graph\n"
        "from tests.lowered_net import ENGINES, lowered\n"
        "artifact.save(compile_graph(lowered(), name='Net', engine=ENGINES[0], user_attributes={'classes': ['cat', 'dog']}), sys.argv[1])"
    )
    root = str(Path(__file__).resolve().parent.parent)
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "o.qc")], check=True, env=env, cwd=root)
    assert (tmp_path / "o.qc").read_bytes() == saved


def test_truncated_anywhere(saved: bytes, tmp_path: Path) -> None:
    for end in [*range(0, len(saved), 64), len(saved) - 1]:
        with pytest.raises(ArtifactError, match="corrupt at"):
            attempt(tmp_path, saved[:end])
    with pytest.raises(ArtifactError, match="corrupt at"):
        attempt(tmp_path, saved + b"\0")


def test_any_flipped_bit(saved: bytes, tmp_path: Path) -> None:
    rng = random.Random(0)
    places = [*range(artifact.PREFIX.size), *rng.sample(range(artifact.PREFIX.size, len(saved)), 250)]
    for at in places:
        data = bytearray(saved)
        data[at] ^= 1 << rng.randrange(8)
        with pytest.raises(ArtifactError):
            attempt(tmp_path, bytes(data))


def test_damage_names_its_section(saved: bytes, tmp_path: Path) -> None:
    data = bytearray(saved)
    data[-40] ^= 1
    with pytest.raises(ArtifactError, match=r"corrupt at (tensor 'features\.0\.weight|padding)"):
        attempt(tmp_path, bytes(data))
    with pytest.raises(ArtifactError, match="not a file that qcompiler saved"):
        attempt(tmp_path, b"PK\x03\x04" + saved[4:])
    with pytest.raises(ArtifactError, match="not a regular file"):
        artifact.load(os.devnull)


BOMBS = {
    "deep": lambda h: b"[" * 100_000 + b"]" * 100_000,
    "less deep": lambda h: b"[" * 90 + b"]" * 90,
    "many": lambda h: b"[" + b"0," * 3_000_000 + b"0]",
    "duplicate key": lambda h: b'{"a":1,"a":2}',
    "nan": lambda h: b'{"a":NaN}',
    "huge float": lambda h: b'{"a":1e999}',
    "huge int": lambda h: b'{"a":' + b"9" * 10_000 + b"}",
    "not an object": lambda h: b"[]",
    "no tensors": lambda h: h.pop("tensors") and None,
    "no program": lambda h: h.pop("program") and None,
    "shape": lambda h: h["tensors"][0].__setitem__(2, [2**40, 2**40]),
    "negative": lambda h: h["tensors"][0].__setitem__(2, [-1]),
    "size": lambda h: h["tensors"][0].__setitem__(4, 2**50),
    "overlap": lambda h: h["tensors"][1].__setitem__(3, 0),
    "name": lambda h: h["tensors"][0].__setitem__(0, "../../etc"),
    "dtype": lambda h: h["tensors"][0].__setitem__(1, "quint8"),
    "dropped tensor": lambda h: h["tensors"].pop(),
    "qparams": lambda h: h["program"].__setitem__("qparams", 10**9),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_well_hashed_nonsense(bomb: str, saved: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        attempt(tmp_path, changed(saved, BOMBS[bomb]))


@pytest.mark.parametrize(
    "op", ["os.system", "torch.load", "builtins.eval", "aten::from_file.default", "method.__class__", "runtime.silence"]
)
def test_operations_beyond_the_registry(op: str, saved: bytes, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["program"]["calls"][0]["op"] = op

    with pytest.raises(ArtifactUnsafeError, match="may call"):
        attempt(tmp_path, changed(saved, change))


def test_versions(saved: bytes, tmp_path: Path) -> None:
    def version(major: int, minor: int) -> bytes:
        fields = list(artifact.PREFIX.unpack(saved[: artifact.PREFIX.size]))
        fields[1:3] = major, minor
        new = artifact.PREFIX.pack(*fields) + saved[artifact.PREFIX.size : -artifact.DIGEST]
        return new + hashlib.sha256(new).digest()

    with pytest.raises(ArtifactVersionError, match=r"2\.0.*up to 1\.0"):
        attempt(tmp_path, version(2, 0))
    with pytest.warns(UserWarning, match=r"format 1\.7"):
        assert attempt(tmp_path, version(1, 7))(INPUT) is not None
    with pytest.raises(ArtifactVersionError, match="warp"):
        attempt(tmp_path, changed(saved, lambda h: h["features"].append("warp")))
    with pytest.raises(ArtifactVersionError, match="byte order"):
        attempt(tmp_path, changed(saved, lambda h: h.__setitem__("byte_order", "big")))
    with pytest.raises(ConfigError, match="compiled for engine 'tpu'"):
        attempt(tmp_path, changed(saved, lambda h: h.__setitem__("engine", "tpu")))


def test_attributes_of_a_file_hide_nothing(saved: bytes, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["attributes"] |= {"forward": 1, "_buffers": {"dict": []}, "_program": 2, "training": 5}

    loaded = attempt(tmp_path, changed(saved, change))
    assert loaded.classes == ["cat", "dog"] and loaded.training is False and loaded(INPUT) is not None


def test_float_leaves_are_named_and_given_back(tmp_path: Path) -> None:
    module = compile_graph(lowered(leaf=nn.Linear(5, 2)))
    with pytest.warns(artifact.MissingModulesWarning, match="head"):
        assert artifact.save(module, tmp_path / "a.qc") == ("head",)
    with pytest.raises(ConfigError, match="needs modules= for head"):
        artifact.load(tmp_path / "a.qc")
    with pytest.raises(ConfigError, match="tail"):
        artifact.load(tmp_path / "a.qc", {"head": nn.Linear(5, 2), "tail": nn.Linear(5, 2)})
    loaded = artifact.load(tmp_path / "a.qc", {"head": nn.Linear(5, 2)})  # its weights come from the file
    assert torch.equal(loaded(INPUT)[0], module(INPUT)[0])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.qc"
    target.write_bytes(b"old")
    target.chmod(0o640)

    def chunks(error: BaseException) -> Any:
        yield b"new"
        raise error

    for error, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), ArtifactWriteError)):
        with pytest.raises(raised):
            atomic_write(target, chunks(error))
        assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.qc"]
    (tmp_path / ".a.qc.0123.qcsave").write_bytes(b"from a killed writer")
    atomic_write(target, [b"new"])
    assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.qc"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    with pytest.raises(ArtifactWriteError):
        atomic_write(tmp_path / "absent" / "a.qc", [b"x"])


def test_save_takes_only_compiled_modules(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="converted module"):
        artifact.save(nn.Linear(1, 1), tmp_path / "a.qc")  # type: ignore[arg-type]
