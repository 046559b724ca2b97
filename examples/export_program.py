"""A network as a .pt2 file: quantized, written as a program of torch.export, and run by a process that has torch and not this package.

The weights are seeded, not trained: what counts is that the other process computes the bits of the reference graph, at another batch and
another size than the example's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr

ALONE = """
import sys, torch
folder = sys.argv[1]
program = torch.export.load(f"{folder}/small.pt2").module()
with torch.no_grad():
    torch.save([program(x) for x in torch.load(f"{folder}/inputs.pt")], f"{folder}/results.pt")
assert not any(name.partition(".")[0] == "qcompiler" for name in sys.modules)
"""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Hardswish(), nn.Conv2d(16, 16, 1))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head((x + self.block(x)).mean((2, 3)))
        return y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write the files; default: a temporary folder")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, data = Network().eval(), [torch.randn(2, 3, 64, 64) for _ in range(4)]

    prepared = qcompiler.prepare_fx(model, None, (data[0],), backend="reference")
    qcompiler.calibrate(prepared, data, progress=False)
    reference = qcompiler.convert_to_reference_fx(prepared)
    program = qcompiler.export_program(prepared)
    torch.export.save(program, folder / "small.pt2")
    print(f"{folder / 'small.pt2'}: {(folder / 'small.pt2').stat().st_size:,} bytes")

    inputs = [data[0], torch.randn(5, 3, 48, 80)]
    torch.save(inputs, folder / "inputs.pt")
    subprocess.run([sys.executable, "-c", ALONE, str(folder)], check=True)
    for x, made in zip(inputs, torch.load(folder / "results.pt"), strict=True):
        with torch.no_grad():
            assert torch.equal(made, reference(x))
            print(f"{tuple(x.shape)}: the bits of the reference graph, {compute_sqnr(model(x), made):.1f} dB from float")


if __name__ == "__main__":
    main()
