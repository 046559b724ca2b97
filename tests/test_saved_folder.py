"""Saved files in the hands of others: safetensors lists and reads them, and a folder is what a model hub shows."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import qcompiler as qc
from qcompiler.artifact import container
from qcompiler.artifact.read import file_of
from qcompiler.errors import ArtifactWriteError
from qcompiler.files.dtypes import DTYPES, is_plain
from qcompiler.files.safetensors import SAFETENSORS, read_safetensors
from tests.saved_files import parts

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
FILES = {"README.md", "config.json", "model.safetensors"}


class Net(nn.Module):
    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, 8), between, nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))


class Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() if x.shape[0] < 1000 else x


@pytest.fixture(scope="module")
def module() -> Any:
    torch.manual_seed(0)
    return qc.quantize(Net(nn.ReLU()).eval(), [X], progress=False)


@pytest.fixture(scope="module")
def with_leaf() -> Any:
    custom = qc.quantization.PrepareCustomConfig().set_non_traceable_module_names(["between"])
    prepared = qc.prepare_fx(Net(Own()).eval(), None, (X,), prepare_custom_config=custom)
    qc.calibrate(prepared, [X])
    return qc.convert_fx(prepared)


# ---- the file


def test_the_library_lists_and_reads_the_tensors(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    qc.save(module, path)
    state, found = module.state_dict(), load_file(path)
    assert set(found) == set(state) and all(torch.equal(found[n], state[n]) and found[n].dtype is state[n].dtype for n in state)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["qcompiler.format"] == "2.0"
    assert json.loads(metadata["qcompiler.program"])["backend"] == "torch"
    assert torch.equal(qc.load(path)(X), module(X))


def test_each_tensor_is_aligned_to_its_numbers(module: Any, tmp_path: Path) -> None:
    qc.save(module, tmp_path / "net.qc")
    data = (tmp_path / "net.qc").read_bytes()
    program, body = parts(data)
    start = len(data) - len(body)
    for name, entry in program["table"].items():
        assert (start + entry["data_offsets"][0]) % module.state_dict()[name].dtype.itemsize == 0


def written(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / "tensors"
    path.write_bytes(b"".join(container.chunks({"features": []}, tensors)))
    return path


def test_tensors_of_every_dtype(tmp_path: Path) -> None:
    """Those without a name there lie as their bytes, along a last dimension."""
    plain = {name: dtype for name, dtype in DTYPES.items() if is_plain(dtype)}
    held = {f"t_{name}": torch.arange(24, dtype=torch.uint8).repeat(d.itemsize).view(d).reshape(4, 6) for name, d in plain.items()}
    held |= {"scalar": torch.tensor(7), "one.float8": torch.zeros((), dtype=torch.float8_e5m2fnuz), "none": torch.empty(0, 3)}
    held |= {"turned": torch.arange(6).reshape(2, 3).t(), "ключ": torch.ones(1), 'a"b\\': torch.ones(2)}
    path = written(tmp_path, held)
    with open(path, "rb") as file:
        _, found, _ = container.read(file, path.stat().st_size)
    assert list(found) == sorted(held)
    for name, tensor in held.items():
        assert found[name].dtype is tensor.dtype and found[name].shape == tensor.shape
        flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(*flat)
    listed = load_file(path)
    assert all(torch.equal(listed[f"t_{name}"].view(torch.uint8), held[f"t_{name}"].view(torch.uint8)) for name in SAFETENSORS)
    assert listed["t_float4_e2m1fn_x2"].shape == (4, 6, 1) and listed["one.float8"].shape == (1,)


@pytest.mark.parametrize("name", ["__metadata__", "a\ud800"])
def test_names_that_the_format_cannot_spell(name: str, tmp_path: Path) -> None:
    with pytest.raises(qc.ConfigError, match="cannot be called"):
        written(tmp_path, {name: torch.ones(1)})


@pytest.mark.parametrize("more", [torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), torch.eye(2).to_sparse()])
def test_what_load_would_refuse_is_not_written(more: torch.Tensor, module: Any, tmp_path: Path) -> None:
    copied = qc.load(saved(module, tmp_path))
    copied.register_buffer("more", more)
    with pytest.raises(qc.ConfigError, match="'more' is not a plain tensor"):
        qc.save(copied, tmp_path / "other.qc")
    assert not (tmp_path / "other.qc").exists()


def test_weights_files_of_other_writers_are_read(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    assert read_safetensors(tmp_path / "w") == {}


# ---- the folder


def saved(module: Any, folder: Path) -> str:
    qc.save(module, f"{folder}/net/")
    return f"{folder}/net/"


def test_a_folder_has_card_config_and_weights(module: Any, tmp_path: Path) -> None:
    folder = saved(module, tmp_path)
    assert set(os.listdir(folder)) == FILES
    for path in (folder, folder.rstrip("/"), Path(folder)):
        assert torch.equal(qc.load(path)(X), module(X)) and Path(file_of(path)).name == "model.safetensors"
    qc.save(module, tmp_path / "alone.qc")
    assert (tmp_path / "alone.qc").read_bytes() == (Path(folder) / "model.safetensors").read_bytes()
    config, card = (json.loads((Path(folder) / "config.json").read_text()), (Path(folder) / "README.md").read_text())
    assert config["library_name"] == "qcompiler" and config["model"] == "Net" and config["engine"] == module.engine
    assert config["int8_mac_share"] == 1.0 and config["modules"] == [] and config["format"] == "2.0"
    assert f"| torch, engine {module.engine}" in card
    assert card.startswith("---\nlibrary_name: qcompiler\n") and qc.explain(module).verdict in card and "Nothing." in card
    before = {name: (Path(folder) / name).read_bytes() for name in FILES}
    qc.save(module, Path(folder))  # a folder that is there needs no slash
    assert before == {name: (Path(folder) / name).read_bytes() for name in FILES}


def test_the_cards_code_runs(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (Path(saved(module, tmp_path)) / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("this folder", "net"), names)
    assert torch.equal(names["model"](X), module(X))


def test_what_was_measured(module: Any, tmp_path: Path) -> None:
    """The card has the figures that it is given, and else says that there are none."""
    folder, figures = Path(saved(module, tmp_path)), {"top-1 of 50 photos | test": "71.2 %"}
    assert "Nothing was measured" in (folder / "README.md").read_text()
    qc.save(module, folder, measured=figures)
    card = (folder / "README.md").read_text()
    assert "| top-1 of 50 photos \\| test | 71.2 % |" in card and "Nothing was measured" not in card and "is not accuracy" in card
    assert json.loads((folder / "config.json").read_text())["measured"] == figures
    for wrong in ({"a": 1}, ["a"], "71 %"):
        with pytest.raises(qc.ConfigError, match="measured"):
            qc.save(module, folder, measured=wrong)  # type: ignore[arg-type]
    with pytest.raises(qc.ConfigError, match="has no card"):
        qc.save(module, tmp_path / "net.qc", measured=figures)


def test_what_stays_float_and_what_load_needs(with_leaf: Any, tmp_path: Path) -> None:
    with pytest.warns(qc.artifact.MissingModulesWarning) as caught:
        assert qc.save(with_leaf, f"{tmp_path}/a/") == ("between",)
    assert caught[0].filename == __file__
    card = (tmp_path / "a" / "README.md").read_text()
    assert "`between`" in card and "modules={...}" in card and "| between |" in card
    assert json.loads((tmp_path / "a" / "config.json").read_text())["modules"] == ["between"]
    assert torch.equal(qc.load(tmp_path / "a", {"between": Own()})(X), with_leaf(X))


def test_an_edited_card_is_kept(module: Any, with_leaf: Any, tmp_path: Path) -> None:
    folder = Path(saved(module, tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qc.artifact.MissingModulesWarning)
        qc.save(with_leaf, folder)  # one that nobody touched is written anew
    assert "`between`" in (folder / "README.md").read_text()
    for text in ("mine", (folder / "README.md").read_text() + "\nTop-1: 71.3 %\n"):
        (folder / "README.md").write_text(text)
        with pytest.warns(UserWarning, match="kept as it is") as caught:
            qc.save(module, folder)
        assert (folder / "README.md").read_text() == text and caught[0].filename == __file__
    assert torch.equal(qc.load(folder)(X), module(X))
    for config in ("[]", "{", "[" * 100_000):
        (folder / "config.json").write_text(config)
        with pytest.warns(UserWarning, match="kept as it is"):
            qc.save(module, folder)


def test_a_fifo_as_card_is_not_waited_for(module: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "README.md")
    with pytest.warns(UserWarning, match="kept as it is"):
        qc.save(module, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "model.safetensors").unlink()
    os.symlink("pipe", tmp_path / "model.safetensors")
    with pytest.raises(qc.ArtifactError, match="not a regular file"):
        qc.load(tmp_path)


def test_folders_that_cannot_be(module: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    for path in (f"{tmp_path}/file/", f"{tmp_path}/file/inner/", f"{tmp_path}/\0/"):
        with pytest.raises(ArtifactWriteError, match="cannot make the folder"):
            qc.save(module, path)
    assert (tmp_path / "file").read_bytes() == b"old"
    with pytest.raises(qc.ConfigError, match="converted module"):
        qc.save(nn.Linear(1, 1), f"{tmp_path}/new/")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    with pytest.raises(qc.ArtifactError, match="cannot be read"):
        qc.load(tmp_path)


def test_names_of_a_model_do_not_leave_their_cell(tmp_path: Path) -> None:
    hostile = "a|b`<script>\n# x"
    net = nn.Sequential()
    net.add_module(hostile, Own())
    net.add_module("l", nn.Linear(4, 4))
    custom = qc.quantization.PrepareCustomConfig().set_non_traceable_module_names([hostile])
    prepared = qc.prepare_fx(net.eval(), None, (X,), prepare_custom_config=custom)
    qc.calibrate(prepared, [X])
    with pytest.warns(qc.artifact.MissingModulesWarning):
        qc.save(qc.convert_fx(prepared), f"{tmp_path}/")
    card = (tmp_path / "README.md").read_text()
    assert "<script>" not in card and "a\\|b'&lt;script> # x" in card and "\n# x" not in card
