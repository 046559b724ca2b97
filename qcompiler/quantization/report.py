"""What convert did with each module, for `qcompiler.remarks` and `qcompiler.explain`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qcompiler.artifact.notes import REMARKS
from qcompiler.compile.journal import Remark
from qcompiler.debug.explain import Explanation, Row
from qcompiler.errors import Where
from qcompiler.executable.noted import ROWS
from qcompiler.fake_quantize import FakeQuantize
from qcompiler.nn.place import OUTPUTS
from qcompiler.nn.quantizable.lstm import LSTMCell
from qcompiler.nn.quantized import DeQuantize, QFunctional, Quantize
from qcompiler.ops.spec import Output
from qcompiler.ops.table import OPS
from qcompiler.quantization.fused_into import FusedInto
from qcompiler.quantization.observation import OBSERVER, is_leaf
from qcompiler.quantization.stubs import DeQuantStub, QuantStub

NO_DATA = "no calibration data reached it"


@dataclass
class Report:
    """Rows and remarks of one convert, in the order of the modules."""

    rows: list[Row] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def note(self, path: str, old: nn.Module, new: nn.Module, uncalibrated: bool) -> None:
        """One leaf module and what stands there now."""
        if isinstance(old, (FusedInto, QuantStub, DeQuantStub)) or isinstance(new, (Quantize, DeQuantize)):
            return
        if isinstance(new, QFunctional) and new.scale == 0:
            self._remark("unused", f"{path} was not used in calibration, so its result has no scale", path)
        elif new is not old:
            self._add(path, old, True, "")
        elif uncalibrated:
            self._add(path, old, False, NO_DATA)
            self._remark("uncalibrated", f"{path} stays float: {NO_DATA}", path)
        elif getattr(old, "qconfig", None) is None:
            self._add(path, old, False, "its qconfig is None")
        elif not runs_on_both(old):
            reason = f"{type(old).__name__} has no int8 form"
            self._add(path, old, False, reason)
            self._remark("kept-float", f"{path} stays float: {reason}; DeQuantStub before it and QuantStub behind it feed it floats", path)

    def note_cuts(self, observers: Iterable[tuple[str, nn.Module, object]]) -> None:
        """One remark where training cut values at fewer than 8 bits: modules saturate at 0 and 255, the ends of theirs."""
        cut = [path for path, _, found in observers if isinstance(found, FakeQuantize) and not holds_bytes(found)]
        if cut:
            text = (f"{len(cut)} values (first: of {cut[0]}) were cut in training where their range of less than 8 bits ends; int8 modules "
                    "hold codes up to 255 of that scale, so larger values differ. prepare_qat_fx cuts them in int8 too")  # fmt: skip
            self._remark("not-cut", text, cut[0])

    def _add(self, path: str, old: nn.Module, int8: bool, reason: str) -> None:
        macs = multiply_accumulates(old)
        form = OPS.module_form(old)
        kind = form[0].name if form is not None else type(old).__name__
        self.rows.append(Row(path, kind, path, "", int8, reason, macs or 0, macs is not None))

    def _remark(self, code: str, text: str, path: str) -> None:
        self.remarks.append(Remark("convert", code, text, Where(module_path=path), None))

    def attach(self, model: nn.Module) -> None:
        setattr(model, ROWS, Explanation(tuple(self.rows)).to_data())
        setattr(model, REMARKS, [remark.to_data() for remark in self.remarks])


def holds_bytes(fake_quant: FakeQuantize) -> bool:
    """Whether it rounds to all 256 codes, or is no matter of codes that kernels saturate at."""
    return fake_quant.dtype not in (torch.uint8, torch.int8) or fake_quant.quant_max - fake_quant.quant_min >= 255


def runs_on_both(module: nn.Module) -> bool:
    """Whether a float module takes int8 tensors as well, as torch's pools, ReLU and copies do; a container counts as such."""
    form = OPS.module_form(module)
    if isinstance(module, nn.Sequential):
        return True
    if form is None:
        own = type(module).forward is not nn.Module.forward and not type(module).__module__.startswith("torch.nn")
        return own or any(True for _ in module.children())
    return form[0].output in (Output.SAME, Output.FIXED) or form[0].identity({})


def multiply_accumulates(module: nn.Module) -> int | None:
    """Of the last call that `prepare`'s hook saw; 0 without a weight or for a lookup, None where no call was seen."""
    cells = [m for m in module.modules() if isinstance(m, LSTMCell)]
    if cells:
        found = [_of_cell(cell) for cell in cells]
        return None if None in found else sum(filter(None, found))
    weight: Any = next((p for p in (getattr(module, "weight", None), *module.parameters()) if isinstance(p, torch.Tensor)), None)
    form = OPS.module_form(module)
    if weight is None or weight.dim() < 2 or (form is not None and form[0].macs is None):
        return 0
    outputs = module.__dict__.get(OUTPUTS)
    return None if outputs is None else outputs * weight[0].numel()


def _of_cell(cell: LSTMCell) -> int | None:
    """Each row of the input, at every step, is multiplied by the weights of the inputs and meets a hidden state."""
    linears = [m for m in cell.igates.modules() if isinstance(m, nn.Linear)]
    outputs = [m.__dict__.get(OUTPUTS) for m in linears]
    return None if None in outputs else sum(filter(None, outputs)) * (cell.input_size + cell.hidden_size)


def leaves_of(model: nn.Module, whole: tuple[type, ...]) -> list[tuple[str, nn.Module]]:
    """(path, module) of what convert looks at as one: modules without children but an observer, and those of the classes `whole`."""
    found: list[tuple[str, nn.Module]] = []
    inside: list[str] = []
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name == OBSERVER or any(path.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, whole) or is_leaf(module):
            found.append((path, module))
            inside.append(f"{path}.")
    return found
