"""What two states of the tree make of the same models: `python tests/same_programs.py BASE` compares the work tree with a commit.

    python tests/same_programs.py BASE                              # every model and way: hours
    python tests/same_programs.py BASE --models resnet18 sequence   # some models
    python tests/same_programs.py BASE --ways x86 native            # some ways: engines of the torch back end, native, training

A refactor must change no program: each model is compiled by both trees, in a process each, and the emitted code, the tensors, the remarks
and the plan and the C of native regions are compared as text. A result is a file in `--folder`, and those of BASE are kept there, so
that a stopped run goes on. Exit status 1, and the differences, where something changed.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
WAYS: dict[str, dict[str, str]] = {
    "x86": {"engine": "x86"}, "vnni": {"engine": "x86", "isa": "avx512_vnni"}, "fbgemm": {"engine": "fbgemm"},
    "onednn": {"engine": "onednn"}, "qnnpack": {"engine": "qnnpack"}, "native": {"backend": "native"}, "training": {"engine": "x86"},
}  # fmt: skip
SHOWN = 40  # lines of a difference


class Recurrent(nn.Module):
    """An LSTM between linears, which hands out its state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(12, 16), nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, (h, _) = self.lstm(torch.relu(self.first(x)))
        return self.last(x), h


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _tensors(state: dict[str, Any]) -> Iterator[str]:
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            plain = value.detach().contiguous()
            yield f"{name} {value.dtype} {tuple(value.shape)} {_digest(plain.flatten().view(torch.uint8).numpy().tobytes())}"
        else:
            yield f"{name} {value!r}"


def _native(module: Any) -> Iterator[str]:
    """The plan of a native module, and the C of one that is native as a whole."""
    import qcompiler

    yield qcompiler.native_plan(module)
    with tempfile.TemporaryDirectory() as folder:
        try:
            written = qcompiler.export_c(module, Path(folder) / "c")
        except qcompiler.QCompilerError as error:
            yield f"export_c: {error.message}"
            return
        yield from (f"{path.name} {_digest(path.read_bytes())}" for path in sorted(written.glob("*")) if path.is_file())


def _compiled(model: Any, inputs: tuple[Any, ...], mapping: Any, way: str) -> Iterator[str]:
    """The text of everything that a compile makes."""
    import qcompiler

    trains = way == "training"
    prepare: Callable[..., Any] = qcompiler.prepare_qat_fx if trains else qcompiler.prepare_fx
    prepared = prepare(model.train(trains), mapping, inputs, **WAYS[way])
    prepared(*inputs)
    module = qcompiler.convert_fx(prepared.eval(), check_parity=False)
    yield module.code
    yield from _tensors(module.state_dict())
    yield from (f"{r.pass_name} {r.code} {r.node}: {r.text}" for r in qcompiler.remarks(module))  # without places in a tree's files
    if way == "native":
        yield from _native(module)


def _models() -> dict[str, Callable[[], tuple[Any, tuple[Any, ...], Any]]]:
    """By name: the model, the arguments of one call, the qconfig mapping."""
    from tests import sweep_torchvision
    from tests.quantized_zoo import ENTRIES

    small = {name: (lambda e=entry: (e.model(), e.inputs(), e.mapping)) for name, entry in ENTRIES.items()}
    small["lstm"] = lambda: (Recurrent().eval(), (torch.randn(2, 7, 12),), None)
    return {name: lambda n=name: (*sweep_torchvision.build(n), None) for name in sweep_torchvision.names()} | small  # type: ignore[misc]


def _write(folder: Path, models: list[str] | None, ways: list[str]) -> None:
    """One file for each model and way, written by the tree that PYTHONPATH names."""
    torch.set_num_threads(1)
    makers = _models()
    for name in models or makers:
        for way in ways:
            path = folder / f"{name.replace(' ', '_')}-{way}.txt"
            if path.exists():
                continue
            torch.manual_seed(0)
            model, inputs, mapping = makers[name]()
            try:
                text = "\n".join(_compiled(model, inputs, None if way == "training" else mapping, way))
            except Exception as error:  # what fails must fail alike
                text = f"{type(error).__name__}: {error}"
            path.with_suffix(".part").write_text(text + "\n", encoding="utf-8")
            path.with_suffix(".part").rename(path)


def _child(tree: Path, folder: Path, models: list[str] | None, ways: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--write", str(folder), "--ways", *ways]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONWARNINGS": "ignore"}
    subprocess.run([*command, *(["--models", *models] if models else [])], cwd=tree, env=environment, check=True)


def _differences(old: Path, new: Path) -> Iterator[str]:
    for path in sorted(p.name for p in new.glob("*.txt")):  # the old folder holds what earlier runs asked for, too
        before, after = (
            (folder / path).read_text(encoding="utf-8").splitlines() if (folder / path).exists() else [] for folder in (old, new)
        )
        if before != after:
            yield f"== {path}"
            yield from list(difflib.unified_diff(before, after, "before", "after", lineterm="", n=0))[:SHOWN]


def _compare(base: str, folder: Path, models: list[str] | None, ways: list[str]) -> int:
    commit = subprocess.run(["git", "rev-parse", "--short", base], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as tree:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)
        _child(Path(tree), folder / commit, models, ways)
    with tempfile.TemporaryDirectory() as made:  # the work tree changes: its results are never kept
        _child(ROOT, Path(made), models, ways)
        found = list(_differences(folder / commit, Path(made)))
        count = len(list(Path(made).glob("*.txt")))
    print("\n".join(found))
    print(f"{sum(line.startswith('== ') for line in found)} of {count} programs differ from those of {commit}")
    return bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("base", nargs="?", help="the commit to compare with")
    parser.add_argument("--models", nargs="+", help="names of torchvision's constructors, or of tests/quantized_zoo.py")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "same_programs", help="where results of BASE are kept")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        _write(options.write, options.models, options.ways)
        return 0
    return _compare(options.base or "HEAD", options.folder.resolve(), options.models, options.ways)


if __name__ == "__main__":
    sys.exit(main())
