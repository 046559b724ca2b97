"""Files that somebody changed, with every hash made right again: each is refused with a documented error, or runs.

    python -m tests.fuzz_artifacts --count 20000 [--log FILE]

Each mutation is loaded, called, explained, drawn, exported and saved again in a child process with bounded memory; a file that
crashes it, hangs, or raises anything but a QCompilerError is printed with its seed. What runs must run alike after a second save.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qcompiler
from qcompiler import artifact, viz
from qcompiler.backends.torch.program.export import export_source
from qcompiler.errors import QCompilerError
from tests import children
from tests.native_cache import native_cache
from tests.saved_files import TABLE, parts, whole

SECONDS = 20.0  # of processor time, for all that is done with a file: one that takes longer counts as a hang
NUMBERS = (0, -1, 1, 2, 3, 255, 2**16, 2**26, 2**31, 2**32 + 1, 2**62, -(2**63), 0.0, -1.0, 1e-45, 1e308)
TEXTS = (
    "", "x", "self", "class", 'x"""; import os; """', "..\\..", "../../etc/passwd", "__class__", "a\nb", "\ud800", "é", "x" * 5000, "0",
    "{}", "</script><script>alert(1)</script>", "torch.float32", "resize_", "os.system",
)  # fmt: skip
ODD = (
    None, True, [], {}, [[]], {"float": "nan"}, {"float": "inf"}, {"ref": "x"}, {"const": "weight"}, {"scale": 0}, {"zero_point": 0},
    {"tuple": []}, {"dict": []}, {"dtype": "float64"}, {"dtype": "bits8"}, {"slice": [None, None, 0]}, {"ellipsis": True},
    {"complex": [1.0, 2.0]}, {"device": "meta"}, {"memory_format": "channels_last"},
)  # fmt: skip


class Net(nn.Module):
    """Convolutions of most kinds, a table, a recurrent layer, an embedding, sums, cats and a loop over pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.embedding = nn.Embedding(7, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.fc = nn.Linear(14, 5)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.conv(x))
        z = nn.functional.gelu(self.depthwise(y)) + y
        u = nn.functional.interpolate(self.up(z), scale_factor=0.5)
        pooled = torch.cat([z.mean([2, 3]), self.lstm(self.embedding(ids))[0][:, -1]], 1)
        return {"map": torch.cat([u, z], 1), "scores": self.fc(pooled).softmax(-1)}


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 8, 8, generator=generator), torch.randint(0, 7, (2, 5), generator=generator)


def originals(folder: Path) -> list[bytes]:
    """The files that are changed: of a network for each of two engines and the native back end, of linears for one and the latter."""
    torch.manual_seed(0)
    nets = {"net": (Net(), example()), "mlp": (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(3, 4),))}
    found = []
    for name, (net, inputs) in nets.items():
        for kind in ("x86", "qnnpack", "native") if name == "net" else ("x86", "native"):
            settings = {"backend": kind} if kind == "native" else {"engine": kind}
            if shutil.which("cc") if kind == "native" else kind in torch.backends.quantized.supported_engines:
                artifact.save(qcompiler.quantize(net.eval(), [inputs], progress=False, **settings), folder / "file.qc")
                found.append((folder / "file.qc").read_bytes())
    return found


# ---- mutations


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in JSON data, but for the hashes."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from _places(value, (*path, key))


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def _hostile(rng: random.Random, header: Any, value: Any) -> Any:
    """Something else in the place of a value: near it more often than far from it."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.7:
        return rng.choice((*NUMBERS, value + 1, -value, value * 1000))
    if isinstance(value, str) and rng.random() < 0.6:
        texts = [t for p in _places(header["program"]) if isinstance(t := _at(header["program"], p), str)]
        return rng.choice((*TEXTS, *rng.sample(texts, min(8, len(texts)))))
    if rng.random() < 0.4:
        return copy.deepcopy(_at(header, rng.choice(list(_places(header)))))
    return copy.deepcopy(rng.choice((*NUMBERS, *TEXTS, *ODD)))


def _mutate_header(rng: random.Random, header: Any) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        section = rng.choice(("program", "program", "program", "attributes", "tensors", TABLE, None))
        top: tuple[Any, ...] = (section,) if section else ()
        if section is not None and section not in header:
            continue
        paths = [p for p in _places(_at(header, top), top) if len(p) > len(top)] or [("engine",)]
        *owner, key = rng.choice(paths)
        holder = _at(header, tuple(owner))
        if rng.random() < 0.15 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(rng.choice(holder))) if rng.random() < 0.5 else holder.pop(key)
        elif rng.random() < 0.08:
            holder.pop(key)
        else:
            holder[key] = _hostile(rng, header, holder[key])


def _mutate_tensor(rng: random.Random, header: Any, body: bytearray) -> None:
    """Other bytes in a tensor, its hash made right; scales become nan, inf, 0 and negative."""
    name = rng.choice([name for name, entry in header[TABLE].items() if entry["data_offsets"][0] < entry["data_offsets"][1]])
    start, end = header[TABLE][name]["data_offsets"]
    raw = bytearray(body[start:end])
    values = torch.frombuffer(raw, dtype=getattr(torch, header["tensors"][name][0]))
    for _ in range(rng.choice((1, 1, 5))):
        index = rng.randrange(values.numel())
        bad = (float("nan"), float("inf"), 0.0, -1.0, 1e-45, 1e30) if values.is_floating_point() else (0, 127, -1, 1 << 30, 255, -128)
        values[index] = torch.tensor(rng.choice(bad)).to(values.dtype)
    body[start:end] = raw
    header["tensors"][name][1] = hashlib.sha256(raw).hexdigest()


def mutated(data: bytes, seed: int) -> bytes:
    """The file with a few changes that `seed` decides, and all hashes right."""
    rng = random.Random(seed)
    header, start = parts(data)
    body = bytearray(start)
    if rng.random() < 0.15:
        _mutate_tensor(rng, header, body)
    else:
        _mutate_header(rng, header)
    table = header.pop(TABLE, {})
    return whole(json.dumps(header, sort_keys=True).encode(), table if isinstance(table, dict) else {}, bytes(body))


# ---- what is done with each


def _leaves(value: Any) -> list[Any]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _equal(a: Any, b: Any) -> bool:
    one, other = _leaves(a), _leaves(b)
    return len(one) == len(other) and all(x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(one, other))


def examine(data: bytes, folder: Path) -> str:
    """What became of one file: "refused: Class", "refused at call: Class", "ran". Raises what no user should see."""
    path = folder / "try.qc"
    path.write_bytes(data)
    try:
        module = artifact.load(path)
    except QCompilerError as error:
        return f"refused: {type(error).__name__}"
    try:
        str(qcompiler.explain(module)), [str(r) for r in qcompiler.remarks(module)], repr(module), viz.save(module, folder / "graph.html")
    except QCompilerError as error:
        return f"refused by explain: {error.code}"
    copied = copy.deepcopy(module)
    artifact.save(module, folder / "again.qc")
    if module._backend == "torch":
        export_source(module, folder / "source")
        compile((folder / "source" / "model.py").read_text(), "model.py", "exec")
    inputs = example() if len(module.program.inputs) == 2 else (torch.ones(3, 4),)
    try:
        with torch.no_grad():
            result = module(*inputs)
    except QCompilerError as error:
        return f"refused at call: {type(error).__name__}"
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return "out of memory at call"  # torch's own error, as for a model of these sizes: a call may ask for any
    assert _equal(result, copied(*inputs)) and _equal(result, artifact.load(folder / "again.qc")(*inputs)), "other bits after a second save"
    return "ran"


def work(first: int, count: int, files: list[str]) -> None:
    """A child: each case is a mutation of one of the files."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    datas = [Path(f).read_bytes() for f in files]
    with tempfile.TemporaryDirectory() as folder:
        children.work(first, count, lambda seed: examine(mutated(datas[seed % len(datas)], seed), Path(folder)), SECONDS)


def run(count: int, seed: int, datas: list[bytes], log: Path | None = None) -> children.Results:
    """What became of each mutation."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.qc" for i in range(len(datas))]
        for file, data in zip(files, datas):
            file.write_bytes(data)
        command = ["tests.fuzz_artifacts", *(word for file in files for word in ("--file", str(file)))]
        done = children.Log(log, *(hashlib.sha256(data).hexdigest() for data in datas))
        return children.run(command, seed, count, done, native_cache(Path(folder)), chunk=1000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a file with what is done: the same command goes on behind it")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--file", action="append", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work, options.file)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return children.report(run(options.count, options.seed, originals(Path(folder)), options.log))


if __name__ == "__main__":
    sys.exit(main())
