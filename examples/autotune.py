"""Accuracy had back without training: a network for scikit-learn's digits with weights in 4 bits, tuned on 512 of its training images.

    python examples/autotune.py                     # about a minute on one core
    python examples/autotune.py --quick             # a few seconds, a few points less
    python examples/autotune.py --out autotune-out  # also report.html, and the network coloured by what each step changed

`metric` judges each step on batches that nothing else saw; without one, the float network's results are the measure and no labels are
needed. The figures at the end are of test images, which the search never saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import qat_digits
from rich.console import Console
from rich.table import Table
from torch import Tensor

import qcompiler


def right_answers(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The metric: the share of images whose class is right."""
    return (outputs.argmax(1) == batch[1]).float().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer epochs of the float network")
    parser.add_argument("--backend", default="torch", help="torch or native")
    parser.add_argument("--out", type=Path, help="folder for the report")
    options = parser.parse_args()

    model = qat_digits.trained(options.quick)
    images, labels, test_images, test_labels = qat_digits.data()
    batches = list(zip(images[:512].split(32), labels[:512].split(32), strict=True))
    found = qcompiler.autotune(model, batches, metric=right_answers, seconds=60, backend=options.backend, progress=False,
                               qconfig_mapping=qat_digits.post_training(bits=4))  # fmt: skip
    print(found)

    default = qcompiler.convert_fx(found.prepared)  # what quantize gives
    table = Table("", "right on 450 test images", title="digits, weights in 4 bits")
    for name, module in (("float", model), ("default", default), ("tuned", found.model)):
        table.add_row(name, f"{qat_digits.accuracy(module, test_images, test_labels):.1f} %")
    Console().print(table)
    if options.out is not None:
        print(found.save_report(options.out))


if __name__ == "__main__":
    main()
