"""Files that older versions wrote: the results that the module had then, to the bit, or one error that says why not.

The files stand in older_files/, with the inputs and results of the day; `first` is of the first format, `rooms` from before files named
their back end, `format1` from the last day of that format: each kind of module that a file could hold. No version that was released may
ever be missing here.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import qcompiler as qc
from qcompiler.artifact import MissingModulesWarning
from qcompiler.backends.torch.program import registry
from qcompiler.errors import ArtifactVersionError
from qcompiler.files.safetensors import read_safetensors
from tests.cpu import SEVEN_BITS, compiled_for_others

FOLDER = Path(__file__).with_name("older_files")
RETIRED = FOLDER / "first-res-qnnpack-static.qc"  # has a transposed convolution
FILES = [path for path in sorted(FOLDER.glob("*.qc")) if path != RETIRED and not path.stem.startswith("format1")]
LAST = sorted(FOLDER.glob("format1-*.qc"))
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


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x).sin()


@pytest.mark.parametrize("path", LAST, ids=lambda path: path.stem)
def test_each_kind_of_module_of_format_1(path: Path, tmp_path: Path) -> None:
    kind = path.stem.split("-")[2]
    if kind == "native" and not shutil.which("cc"):
        pytest.skip("no C compiler")
    if kind != "native" and kind not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {kind}")
    held = read_safetensors(FOLDER / "results-format1.safetensors")
    of_file = {name.removeprefix(f"{path.stem}."): tensor for name, tensor in held.items() if name.startswith(f"{path.stem}.")}
    inputs, expected = ([of_file[n] for n in sorted(of_file) if n[0] == letter and n[1:].isdigit()] for letter in "xy")
    modules = {"own": Own()} if "leaf" in path.stem else None  # its weights come from the file
    module = qc.load(path, modules)
    got = tree_leaves(module(*inputs))
    if not SEVEN_BITS or kind in ("qnnpack", "native"):
        tolerance = 1e-6 if "dynamic" in path.stem else 0
        assert len(got) == len(expected) and all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(got, expected))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingModulesWarning)
        qc.save(module, tmp_path / "again.qc")
    again = qc.load(tmp_path / "again.qc", modules)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(again(*inputs)), got))
    state, same = module.state_dict(), again.state_dict()
    assert list(state) == list(same) and all(torch.equal(state[n], same[n]) and state[n].dtype is same[n].dtype for n in state)


def test_a_file_with_an_operation_that_is_run_no_more() -> None:
    with pytest.raises(ArtifactVersionError, match=r"prepack_conv_transpose2d.*run no more.*wrong where") as raised:
        qc.load(RETIRED)
    assert raised.value.code == "artifact-retired" and "anew" in str(raised.value.hint)
    assert not set(registry.RETIRED) & set(registry.table())
