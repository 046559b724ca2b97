"""A quantized network that answers nonsense, and the way to the one layer at fault: docs/debugging.md walks through it.

The trained EfficientNet-Lite0 gets one spoiled channel: the first block's output channel 3 is 200 times as large, and the next
block's weights for it 200 times as small. In float nothing changes. In int8 all channels of a value share one scale, so the 15
others have to do with a step that is 200 times too coarse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import efficientnet_lite0
import measure
import photos
import torch
from rich.console import Console
from torch import nn

import qcompiler
from qcompiler.debug import Comparison, bisect, compare, compute_sqnr

CHANNEL, FACTOR = 3, 200.0
MAKES, READS = "_blocks.0._project_conv", "_blocks.1._expand_conv"


def spoiled_model() -> nn.Module:
    """Equal to the trained network in float."""
    model = efficientnet_lite0.load_trained()
    norm, reader = model.get_submodule("_blocks.0._bn2"), model.get_submodule(READS)
    with torch.no_grad():
        for name in ("weight", "bias"):
            norm.get_parameter(name)[CHANNEL] *= FACTOR
        reader.get_parameter("weight")[:, CHANNEL] /= FACTOR
    return model


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="8 and 8 crops; the figures are then rough")
    arguments.add_argument("--look-at", type=int, default=32, help="how many crops bisect and compare look at, at most")
    arguments.add_argument("--out", type=Path, help="write comparison.json into this folder")
    options = arguments.parse_args()
    console = Console()
    calibration, evaluation = photos.split(8, 8) if options.quick else photos.split()
    looked_at = evaluation[: options.look_at]
    model = spoiled_model()
    expected = measure.run_batched(model, evaluation)

    def quantized(keep_float: tuple[str, ...] = ()) -> nn.Module:
        mapping = qcompiler.get_default_qconfig_mapping("x86")
        for path in keep_float:
            mapping = mapping.set_module_name(path, None)
        module = qcompiler.quantize(model, calibration.split(8), mapping, progress=False, engine="x86")
        got = measure.run_batched(module, evaluation)
        title = "int8 but for " + " and ".join(keep_float) if keep_float else "int8"
        agreement, sqnr = measure.agreement(expected, got), compute_sqnr(expected, got)
        console.print(f"{title}: top-1 agreement {agreement:.1%}, {sqnr:.1f} dB", highlight=False)
        return module

    broken = quantized()

    console.print("\n1. Is it a wrong rewrite? The stages, each against the float model:", highlight=False)
    console.print(str(bisect(model, looked_at[:8].split(8), tol_db=10.0)), markup=False, highlight=False)

    console.print("\n2. Which node? Its own error apart from what it inherits:", highlight=False)
    found = compare(model, broken, looked_at.split(8))
    console.print(found.table(5))
    look_closer(console, found)

    console.print(f"\n3. {MAKES} and what reads its result stay float:", highlight=False)
    mended = quantized(keep_float=(MAKES, READS))
    share = qcompiler.explain(mended).int8_mac_share
    console.print(f"{share:.1%} of multiply-accumulates are still in int8", highlight=False)
    console.print(compare(model, mended, looked_at.split(8)).table(3))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "comparison.json").write_text(found.to_json(), encoding="utf-8")


def look_closer(console: Console, found: Comparison) -> None:
    """Why the worst node is the worst: the step of its integers against the values that they have to hold."""
    worst = found.worst
    assert worst.activation is not None and worst.activation.clip is not None
    held, low = sum(worst.activation.counts), worst.activation.low
    width = (worst.activation.high - low) / len(worst.activation.counts)
    fullest = max(worst.activation.counts)
    console.print(
        f"{worst.module_path} ({worst.computes}): one step is {worst.activation.step:.2f}, the range {worst.activation.clip[0]:.0f} to "
        f"{worst.activation.clip[1]:.0f}; {fullest / held:.0%} of the values lie in one bin of width {width:.1f}", highlight=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
