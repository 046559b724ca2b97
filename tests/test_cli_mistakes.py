"""Every command with wrong paths, wrong files and wrong sizes: exit code 1, one message of ours, and what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from qcompiler.cli import app

Image = pytest.importorskip("PIL.Image")

SOURCE = """
import torch
from torch import nn

def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def fixed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 15 * 15, 10))

def gray():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, a, b):
        return self.fc(a) + b
"""


def call(line: str) -> Result:
    return CliRunner().invoke(app, line.split(), env={"COLUMNS": "100", "TERM": "dumb"})


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, before, path = tmp_path_factory.mktemp("mistakes"), os.getcwd(), list(sys.path)
    os.chdir(folder)
    random = np.random.default_rng(0)

    def photo(name: str, *shape: int) -> None:
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(name)

    Path("mistaken_models.py").write_text(SOURCE, encoding="utf-8")
    for i in range(2):
        photo(f"photos/{i}.png", 40, 50, 3)
        photo(f"mixed/{i}.png", 40, 50, 3)
    photo("one/a.png", 9, 7)
    photo("long.jpg", 200, 200, 3)
    Path("mixed/0b.jpg").write_bytes(b"no image")
    Path("cut.jpg").write_bytes(Path("long.jpg").read_bytes()[:2000])
    Path("empty").mkdir()
    Path("text.txt").write_text("hello")
    Path("damaged.qc").write_bytes(b"x" * 500)
    np.save("doubles.npy", random.standard_normal((2, 3, 32, 32)))
    np.save("two.npy", random.standard_normal((2, 2, 32, 32)).astype(np.float32))
    np.save("unbatched.npy", random.standard_normal((3, 32, 32)).astype(np.float32))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("one_channel.npy", random.standard_normal((2, 1, 32, 32)).astype(np.float32))
    torch.save((torch.randn(2, 4), torch.randn(2, 4)), "pair.pt")
    for name in ("conv", "fixed"):
        assert call(f"quantize mistaken_models.py:{name} --calibrate photos --size 32 -o {name}.qc").exit_code == 0
    assert call("quantize mistaken_models.py:gray --calibrate one_channel.npy -o gray.qc").exit_code == 0
    yield folder
    os.chdir(before)
    sys.path[:] = path
    sys.modules.pop("mistaken_models", None)


CONV = "quantize mistaken_models.py:conv"
MISTAKES = {
    f"{CONV} --calibrate nowhere -o a.qc": "there is no nowhere",
    f"{CONV} --calibrate empty -o a.qc": "neither images nor arrays",
    f"{CONV} --calibrate text.txt -o a.qc": "neither images nor arrays",
    f"{CONV} --calibrate mixed -o a.qc": "mixed/0b.jpg",
    f"{CONV} --calibrate objects.npy -o a.qc": "objects.npy",
    f"{CONV} --calibrate two.npy -o a.qc": "one batch as it stands",
    f"{CONV} --calibrate photos -o nowhere/a.qc": "in no folder that exists",
    f"{CONV} --calibrate photos -o photos": "it is a folder",
    f"{CONV} --calibrate photos -o a.qc --size 32 --source text.txt": "cannot make the folder",
    f"{CONV} --calibrate photos -o a.qc --weights text.txt": "no file of torch.save",
    f"{CONV} --calibrate photos -o a.qc --weights nowhere.pth": "there is no file nowhere.pth",
    f"{CONV} --calibrate photos -o a.qc --keep-float nothing": "'nothing'",
    "quantize mistaken_models.py:fixed --calibrate photos -o a.qc": "an image is given as 3 x 224 x 224: --size",
    "quantize mistaken_models.py:gray --calibrate photos -o a.qc": "an image is given as 3 x",
    "quantize mistaken_models.py:nobody --calibrate photos -o a.qc": "has no nobody",
    "quantize mistaken_models.py --calibrate photos -o a.qc": "MODEL is package.module:factory",
    "inspect nowhere.qc": "No such file",
    "inspect photos": "Is a directory",
    "inspect damaged.qc": "not a file that qcompiler saved",
    "run conv.qc nowhere.jpg": "there is no file",
    "run nowhere.qc photos/0.png": "No such file",
    "run conv.qc cut.jpg": "truncated",
    "run conv.qc text.txt": "cannot tell what text.txt holds",
    "run conv.qc two.npy": "made with (input: torch.float32[2, 3, 32, 32])",
    "run conv.qc unbatched.npy": "inputs along its first dimension",
    "run conv.qc pair.pt": "too many positional arguments",
    "run gray.qc photos/0.png --size 32": "made with (input: torch.float32[2, 1, 32, 32])",
    "run fixed.qc photos/0.png": "an image is given as 3 x 224 x 224: --size",
    "run conv.qc photos/0.png -o nowhere/x.npy": "in no folder that exists",
    "run conv.qc photos/0.png --labels nowhere.txt": "No such file",
    "viz nowhere.qc": "there is no file",
    "viz empty": "holds no dumps",
    "viz conv.qc -o x.foo": "no format has this ending",
    "viz conv.qc -o nowhere/x.html": "cannot write",
    "viz conv.qc --numerics text.txt": "cannot read text.txt",
    "viz conv.qc --numerics nowhere.json": "No such file",
    "viz mistaken_models.py:fixed": "an image is given as 3 x 224 x 224",
    "viz mistaken_models.py:conv --example two.npy": "one batch as it stands",
    "viz mistaken_models.py:Two": "--size",
    "compare mistaken_models.py:conv conv.qc --data empty": "neither images nor arrays",
    "compare mistaken_models.py:conv nowhere.qc --data photos": "No such file",
    "compare mistaken_models.py:fixed fixed.qc --data photos": "an image is given as 3 x 224 x 224",
    "bisect mistaken_models.py:conv --data empty": "neither images nor arrays",
    "bisect mistaken_models.py:conv --data two.npy": "one batch as it stands",
    "dumps show nowhere": "No such file",
    "dumps show empty": "holds no dumps",
    "dumps show text.txt": "Not a directory",
    "dumps diff empty input final": "holds no dumps",
    "dumps html empty": "holds no dumps",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake(line: str) -> None:
    made = call(line)
    assert isinstance(made.exception, SystemExit) and made.exit_code == 1, made.exception
    output = " ".join(made.output.split())
    assert MISTAKES[line] in output and output.startswith("error (")
    for alien in ("Traceback", "primitive", "Errno", "expected one of", "allow_unsafe", "weights_only"):
        assert alien not in output


@pytest.mark.parametrize("command", ["quantize", "inspect", "run", "viz", "compare", "bisect", "dumps show", "dumps diff", "dumps html"])
def test_missing_arguments(command: str) -> None:
    made = call(command)
    assert made.exit_code == 2 and "Missing" in made.output and "--help" in made.output


@pytest.mark.parametrize("data", ["one", "photos/0.png", "doubles.npy"])
def test_what_is_taken(data: str) -> None:
    made = call(f"{CONV} --calibrate {data} --size 32 -o taken.qc")
    assert made.exit_code == 0, made.output
    assert call(f"run taken.qc {'one/a.png' if data == 'one' else data} --size 32").exit_code == 0
