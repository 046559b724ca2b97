"""The saved file: equal after load, the same bytes each time, and refused with one clear error when it is not what it was."""

from __future__ import annotations

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
from qcompiler.artifact import format_1
from qcompiler.backends.torch.program import other_cpu
from qcompiler.backends.torch.program.assemble import compile_graph
from qcompiler.backends.torch.program.other_cpu import OtherCPUWarning
from qcompiler.errors import ArtifactError, ArtifactUnsafeError, ArtifactVersionError, ArtifactWriteError, ConfigError
from qcompiler.files.atomic import atomic_write
from tests.counted_lines import counted_lines
from tests.lowered_net import ENGINES, INPUT, lowered
from tests.saved_files import DIGEST, PROGRAM, TABLE, changed, changed_1, hashed, parts, whole


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "net.qc"
    artifact.save(compile_graph(lowered(), name="Net", engine=ENGINES[0], user_attributes={"classes": ["cat", "dog"]}), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def old() -> bytes:
    """A file of format 1."""
    return (Path(__file__).with_name("older_files") / "format1-odd-x86-static.qc").read_bytes()


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


@pytest.mark.parametrize("which", ["saved", "old"])
def test_truncated_anywhere(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole_file = request.getfixturevalue(which)
    for end in [*range(0, len(whole_file), 64), len(whole_file) - 1]:
        with pytest.raises(ArtifactError, match="corrupt at"):
            attempt(tmp_path, whole_file[:end])
    with pytest.raises(ArtifactError, match="corrupt at"):
        attempt(tmp_path, whole_file + b"\0")


@pytest.mark.parametrize("which", ["saved", "old"])
def test_any_flipped_bit(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole_file = request.getfixturevalue(which)
    rng = random.Random(0)
    for at in [*range(40), *rng.sample(range(40, len(whole_file)), 250)]:
        data = bytearray(whole_file)
        data[at] ^= 1 << rng.randrange(8)
        with pytest.raises(ArtifactError):
            attempt(tmp_path, bytes(data))


def test_damage_names_its_section(saved: bytes, tmp_path: Path) -> None:
    _, body = parts(saved)
    data = bytearray(saved)
    data[-1] ^= 1
    with pytest.raises(ArtifactError, match=r"corrupt at tensor '.*its sha256 differs"):
        attempt(tmp_path, bytes(data))
    data = bytearray(saved)
    data[data.index(b"qcompiler.program") + 40] ^= 1
    with pytest.raises(ArtifactError, match=r"corrupt at header.*its sha256 differs"):
        attempt(tmp_path, bytes(data))
    with pytest.raises(ArtifactError, match="not a file that qcompiler saved"):
        attempt(tmp_path, b"PK\x03\x04" + bytes(60) + saved)
    with pytest.raises(ArtifactError, match="not a regular file"):
        artifact.load(os.devnull)
    assert body


def first(program: Any) -> Any:
    """The entry of a tensor in the table."""
    return program[TABLE]["features.0.weight"]


def held(program: Any) -> Any:
    """What the program says of it."""
    return program["tensors"]["features.0.weight"]


BOMBS = {
    "deep": lambda p: b"[" * 100_000 + b"]" * 100_000,
    "less deep": lambda p: b"[" * 90 + b"]" * 90,
    "many": lambda p: b"[" + b"0," * 3_000_000 + b"0]",
    "duplicate key": lambda p: b'{"a":1,"a":2}',
    "nan": lambda p: b'{"a":NaN}',
    "huge float": lambda p: b'{"a":1e999}',
    "huge int": lambda p: b'{"a":' + b"9" * 10_000 + b"}",
    "not an object": lambda p: b"[]",
    "no tensors": lambda p: p.pop("tensors") and None,
    "no table": lambda p: p[TABLE].clear(),
    "no program": lambda p: p.pop("program") and None,
    "shape": lambda p: first(p).__setitem__("shape", [2**40, 2**40]),
    "shape beyond 64 bits": lambda p: first(p).__setitem__("shape", [2**64]),
    "wide shape of nothing": lambda p: first(p).__setitem__("shape", [0, 2**60]),
    "many dimensions": lambda p: first(p)["shape"].extend([1] * 40),
    "negative": lambda p: first(p).__setitem__("shape", [-1]),
    "size": lambda p: first(p)["data_offsets"].__setitem__(1, 2**50),
    "overlap": lambda p: first(p).__setitem__("data_offsets", [0, first(p)["data_offsets"][1]]),
    "a field more": lambda p: first(p).__setitem__("more", 1),
    "name": lambda p: [d.__setitem__("../../etc", d.pop("features.0.weight")) for d in (p[TABLE], p["tensors"])] and None,
    "name of a module's own": lambda p: [d.__setitem__("forward", d.pop("features.0.weight")) for d in (p[TABLE], p["tensors"])] and None,
    "dtype": lambda p: held(p).__setitem__(0, "quint8"),
    "another dtype": lambda p: held(p).__setitem__(0, "uint8"),
    "a dtype of bytes": lambda p: held(p).__setitem__(0, "float8_e5m2fnuz"),
    "no digest": lambda p: held(p).pop(),
    "dropped tensor": lambda p: p["tensors"].pop("features.0.weight") and None,
    "dropped entry": lambda p: p[TABLE].pop("features.0.weight") and None,
    "qparams": lambda p: p["program"].__setitem__("qparams", 10**9),
}
BOMBS_1 = {
    name: BOMBS[name]
    for name in ("deep", "less deep", "many", "duplicate key", "nan", "huge float", "huge int", "not an object", "qparams")
} | {
    "no tensors": lambda h: h.pop("tensors") and None,
    "shape": lambda h: h["tensors"][0].__setitem__(2, [2**40, 2**40]),
    "negative": lambda h: h["tensors"][0].__setitem__(2, [-1]),
    "size": lambda h: h["tensors"][0].__setitem__(4, 2**50),
    "overlap": lambda h: h["tensors"][1].__setitem__(3, 0),
    "name": lambda h: h["tensors"][0].__setitem__(0, "../../etc"),
    "dtype": lambda h: h["tensors"][0].__setitem__(1, "quint8"),
    "dropped tensor": lambda h: h["tensors"].pop() and None,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_well_hashed_nonsense(bomb: str, saved: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as raised:
        attempt(tmp_path, changed(saved, BOMBS[bomb]))
    assert "sha256" not in str(raised.value)


@pytest.mark.parametrize("bomb", BOMBS_1)
def test_well_hashed_nonsense_of_format_1(bomb: str, old: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        attempt(tmp_path, changed_1(old, BOMBS_1[bomb]))


def headers(saved: bytes) -> dict[str, bytes]:
    """Headers that no writer of safetensors writes, with a right digest where there is one."""
    header = json.loads(saved[8 : 8 + int.from_bytes(saved[:8], "little")])
    metadata = header.pop("__metadata__") | {DIGEST: "0" * 64}
    name, entry = next(iter(header.items()))

    def text(**changes: Any) -> bytes:
        kept = {key: value for key, value in (metadata | changes).items() if value is not None}
        return json.dumps({"__metadata__": kept} | header, separators=(",", ":")).encode()

    return {
        "a tensor twice": text()[:-1] + f",{json.dumps(name)}:{json.dumps(entry)}}}".encode(),
        "metadata twice": text()[:-1] + f',"__metadata__":{json.dumps(metadata)}}}'.encode(),
        "a number in the metadata": text(format=3),
        "more metadata": text(more="x"),
        "no digest": text(**{DIGEST: None}),
        "no program": text(**{PROGRAM: None}),
        "a lone surrogate": text()[:-1] + f',"\\ud800":{json.dumps(entry)}}}'.encode(),
        "deep": b'{"a":' * 100_000,
        "many": b'{"a":[' + b"0," * 3_000_000 + b"0]}",
        "latin": '{"é":1}'.encode("latin-1"),
    }


def test_headers_that_nobody_writes(saved: bytes, tmp_path: Path) -> None:
    _, body = parts(saved)
    for name, header in headers(saved).items():
        with pytest.raises(ArtifactError, match="corrupt at") as raised:
            attempt(tmp_path, hashed(header, body))
        assert "sha256" not in str(raised.value), name


def test_many_calls_take_their_time_once(saved: bytes, tmp_path: Path) -> None:
    """The third 300 calls take as many lines as the second 300: no step looks at all calls for each of them."""

    def work(count: int) -> int:
        def change(program: Any) -> None:
            calls = program["program"]["calls"]
            program["program"]["calls"] = [{**calls[0], "out": f"v{i}"} for i in range(count)] + calls

        data = changed(saved, change)
        lines, loaded = counted_lines(lambda: attempt(tmp_path, data))
        assert loaded(INPUT) is not None
        return lines

    work(30)  # what is made once in a process
    first, second, third = map(work, (300, 600, 900))
    assert (third - second) / (second - first) < 1.005


@pytest.mark.parametrize(
    "op", ["os.system", "torch.load", "builtins.eval", "aten::from_file.default", "method.__class__", "runtime.silence"]
)
def test_operations_beyond_the_registry(op: str, saved: bytes, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["program"]["calls"][0]["op"] = op

    with pytest.raises(ArtifactUnsafeError, match="may call"):
        attempt(tmp_path, changed(saved, change))


def test_versions(saved: bytes, old: bytes, tmp_path: Path) -> None:
    def version(text: str) -> bytes:
        program, body = parts(saved)
        table = program.pop(TABLE)
        return whole(json.dumps(program).encode(), table, body, version=text)

    for text in ("3.0", "12.7"):
        with pytest.raises(ArtifactVersionError, match=rf"format {text}.*up to 2\.0") as raised:
            attempt(tmp_path, version(text))
        assert "upgrade" in str(raised.value.hint)
    with pytest.warns(UserWarning, match=r"format 2\.7"):
        assert attempt(tmp_path, version("2.7"))(INPUT) is not None
    for text in ("1.0", "", "2", "2.0.0", "-2.0", "2.x", "٢.0"):
        with pytest.raises(ArtifactError, match="no such version"):
            attempt(tmp_path, version(text))
    fields = list(format_1.PREFIX.unpack(old[: format_1.PREFIX.size]))
    fields[1:3] = 2, 0
    with pytest.raises(ArtifactVersionError, match=r"2\.0.*up to 2\.0"):
        attempt(tmp_path, format_1.PREFIX.pack(*fields) + old[format_1.PREFIX.size :])
    with pytest.raises(ArtifactVersionError, match="byte order"):
        attempt(tmp_path, changed_1(old, lambda h: h.__setitem__("byte_order", "big")))
    with pytest.raises(ArtifactVersionError, match="warp"):
        attempt(tmp_path, changed(saved, lambda h: h["features"].append("warp")))
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
