"""Files that older versions wrote: the results that the module had then, to the bit, or one error that says why not.

The files stand in older_files/, with the inputs and results of the day; `first` is of the first format, `rooms` from before files named
their back end. No version that was released may ever be missing here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qcompiler as qc
from qcompiler.backends.torch.program import registry
from qcompiler.errors import ArtifactVersionError
from qcompiler.files.safetensors import read_safetensors
from tests.cpu import SEVEN_BITS, compiled_for_others

FOLDER = Path(__file__).with_name("older_files")
RETIRED = FOLDER / "first-res-qnnpack-static.qc"  # has a transposed convolution
FILES = [path for path in sorted(FOLDER.glob("*.qc")) if path != RETIRED]
pytestmark = compiled_for_others


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_an_older_version_computes_what_it_did(path: Path, tmp_path: Path) -> None:
    engine = path.stem.split("-")[2]
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {engine}")
    results = read_safetensors(FOLDER / "results.safetensors")
    x, expected = results[f"{path.stem}.x"], results[f"{path.stem}.y"]
    module = qc.load(path)
    got = module(x)
    if SEVEN_BITS and engine != "qnnpack":  # made with VNNI: sums of 16 bits may be cut off, which the warning says
        return
    # Dynamic layers have floats in their sums, which vectors of another width add in another order.
    assert torch.allclose(got, expected, rtol=0, atol=1e-6) if "dynamic" in path.stem else torch.equal(got, expected)
    qc.save(module, tmp_path / "again.qc")
    assert torch.equal(qc.load(tmp_path / "again.qc")(x), got)
    assert qc.explain(module).rows or module.state_dict()


def test_a_file_with_an_operation_that_is_run_no_more() -> None:
    with pytest.raises(ArtifactVersionError, match=r"prepack_conv_transpose2d.*run no more.*wrong where") as raised:
        qc.load(RETIRED)
    assert raised.value.code == "artifact-retired" and "anew" in str(raised.value.hint)
    assert not set(registry.RETIRED) & set(registry.table())
