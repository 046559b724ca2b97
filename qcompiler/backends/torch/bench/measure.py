"""Measures every entry of the kernel table on this machine: `python -m qcompiler.backends.torch.bench.measure [OP ...]`.

With names of ops it measures these alone, and leaves the records of the others: each case has random numbers of its own.
Writes measured.json: for engine, op and entry the largest error in quanta against float64 with activations of 0..127
and 0..255, whether it saturates, and for each reason of refusal how wrong the entry would have been.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.backends.torch.bench.cases import Case, Int8, all_cases, output_scale
from qcompiler.backends.torch.kernels.table import entries
from qcompiler.backends.torch.runtime import packs
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Operand, Site, Weight, host_isa
from qcompiler.inputs.near_names import near_names
from qcompiler.ir.types import VALUE, QParams, Value
from qcompiler.ops.table import OPS

MEASURED = Path(__file__).parent.parent / "kernels" / "measured.json"
SETTINGS = ((127, False), (127, True), (255, False), (255, True))  # highest code, extreme weights


class Bench:
    """One case as a site whose lowered graph runs. `seen`: what its output's observer saw, the case's own result by default."""

    def __init__(self, case: Case, engine: str, isa: str, seen: Tensor | None = None) -> None:
        self.case, self.module = case, torch.nn.Module()
        self.inputs: list[Tensor] = []
        self.graph = fx.Graph()
        args = tuple(self._argument(a) for a in case.args)
        truth = case.truth()
        self.truth = truth if isinstance(truth, tuple) else (truth,)
        self.scale, self.zero_point = output_scale(case, torch.cat([t.reshape(-1) for t in self.truth]) if seen is None else seen)
        output = QParams(self.scale, self.zero_point, 0, 255, torch.uint8)
        node = fx.Graph().call_function(case.row.fn)
        node.meta[VALUE] = Value.of(self.truth[0])
        attributes = {name: self._argument(value) if isinstance(value, Tensor) else value for name, value in case.attributes.items()}
        self.site = Site(case.row, node, args, attributes, output, engine, isa)

    def _argument(self, value: object) -> Any:
        if isinstance(value, list):
            return [self._argument(v) for v in value]
        if isinstance(value, Int8):
            values, scale, zero_point = (self._constant(t) for t in (value.values, value.scale, value.zero_point))
            return Weight(values, scale, zero_point, value.axis, tuple(value.values.shape))
        if isinstance(value, Tensor) and value.is_quantized:
            node = self.graph.placeholder(f"x{len(self.inputs)}")
            node.meta[VALUE] = Value.of(value)
            self.inputs.append(value)
            return Operand(node, QParams(value.q_scale(), value.q_zero_point(), 0, 255, torch.uint8))
        return self._constant(value) if isinstance(value, Tensor) else value

    def emit(self) -> Emit:
        return Emit(self.graph, self.module)

    def _constant(self, value: Tensor) -> fx.Node:
        return self.emit().constant("c", value)

    def run(self, kernel: Kernel) -> Any:
        """The kernel's result, packed and run under the site's engine."""
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self.site.engine
        try:
            self.graph.output(kernel.emit(self.site, self.emit()))
            return fx.GraphModule(self.module, self.graph).forward(*self.inputs)
        finally:
            torch.backends.quantized.engine = before

    def error(self, kernel: Kernel) -> int:
        """Largest distance in quanta from the exact result; raises AssertionError for a wrong shape or scale."""
        result = self.run(kernel)
        results = tuple(result) if isinstance(result, (list, tuple)) else (result,)
        assert len(results) == len(self.truth), "number of results"
        worst = 0
        for got, truth in zip(results, self.truth):
            assert got.shape == truth.shape, f"shape {tuple(got.shape)} instead of {tuple(truth.shape)}"
            assert (got.q_scale(), got.q_zero_point()) == (self.scale, self.zero_point), "scale"
            exact = (torch.round(truth / self.scale) + self.zero_point).clamp(0, 255)
            worst = max(worst, int((got.int_repr().double() - exact).abs().max()) if truth.numel() else 0)
        return worst


def _trial(bench: Bench, kernel: Kernel) -> int | str:
    try:
        return bench.error(kernel)
    except Exception as problem:  # what a kernel raises is the finding
        text = str(problem) or type(problem).__name__
        return f"raises: {text.splitlines()[0][:90]}"


def _record(entry: dict[str, Any], case: Case, high: int, reason: str | None, found: int | str) -> None:
    """Keeps the worst finding, and the case it came from."""
    if reason is not None:
        worst = entry.setdefault("refused", {}).get(reason)
        if worst is None or (isinstance(found, int) and isinstance(worst, int) and found > worst):
            entry["refused"][reason] = found
    elif isinstance(found, str):
        entry.setdefault("problems", {})[case.label] = found
    else:
        key = f"error_{high}"
        if found > entry.setdefault(key, 0):
            entry[key] = found
            if found > 1:
                entry[f"worst_{high}"] = case.label


def measure(engine: str, isa: str, ops: Collection[str] = (), progress: Callable[[str], None] = lambda text: None) -> dict[str, object]:
    """All entries of one engine, or those for some ops."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for high, extreme in SETTINGS:
        progress(f"{engine} 0..{high}{' extreme' if extreme else ''}")
        for case in all_cases(high, extreme, ops=ops):
            site = Bench(case, engine, isa).site
            for kernel in (k for k in entries(site) if engine in k.engines):
                bench = Bench(case, engine, isa)
                reason = kernel.refuse(bench.site)
                entry = found.setdefault(case.op, {}).setdefault(kernel.label, {})
                _record(entry, case, high, reason, _trial(bench, kernel))
                if reason is None and kernel.saturates(bench.site):
                    entry["declared_saturating"] = True
    for entry in (e for op in found.values() for e in op.values()):
        entry["saturates"] = entry.get("error_127", 0) <= 1 < entry.get("error_255", 0)
    return {op: dict(sorted(by_entry.items())) for op, by_entry in sorted(found.items())}


def tap_pairs(kernel: tuple[int, ...], channels: int = 16) -> list[tuple[int, int]]:
    """Which taps fbgemm's depthwise kernel adds in 16 bits, found by weights that are 127 at two taps and 0 elsewhere."""
    dims, taps = len(kernel), int(torch.tensor(kernel).prod())
    engine, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
    x = torch._make_per_tensor_quantized_tensor(torch.full((1, channels, *kernel), 255, dtype=torch.uint8), 1.0, 0)
    prepack: Any = {2: packs.prepack_conv2d, 3: packs.prepack_conv3d}[dims]
    run: Any = {2: torch.ops.quantized.conv2d.new, 3: torch.ops.quantized.conv3d.new}[dims]
    pairs = []
    for i in range(taps):
        for j in range(i + 1, taps):
            values = torch.zeros(channels, 1, taps, dtype=torch.int8)
            values[:, :, [i, j]] = 127
            weight = values.reshape(channels, 1, *kernel)
            ones, half = [1] * dims, [k // 2 for k in kernel]
            pack = prepack(weight, torch.ones(1), torch.zeros(1), None, ones, half, ones, channels, -1, "")
            centre = run(x, pack, 300.0, 0).int_repr()[(0, 0, *half)].item()
            if abs(centre - 2 * 127 * 255 / 300) > 1:
                pairs.append((i, j))
    torch.backends.quantized.engine = engine
    return pairs


def measured_anew(known: Mapping[str, Any], ops: Collection[str]) -> dict[str, object]:
    """The report with these ops measured on this machine; with none, all of it. Raises SystemExit for an op that no row is called."""
    unknown = [op for op in ops if op not in OPS.rows]
    if unknown:
        close = ", ".join(near_names(unknown[0], OPS.rows))
        raise SystemExit(f"no op is called {unknown[0]!r}; {f'did you mean {close}?' if close else 'docs/ops.md has all of them'}")
    isa = host_isa()
    engines = {e: measure(e, isa, ops, lambda text: print(text, file=sys.stderr)) for e in ENGINES}
    if ops:
        return {**known, "engines": {e: dict(sorted({**known["engines"][e], **engines[e]}.items())) for e in ENGINES}}
    head = {"torch": torch.__version__.split("+")[0], "isa": isa, "unit": "quanta", "depthwise_tap_pairs_3x3": tap_pairs((3, 3))}
    return {**head, "engines": engines}


def main(ops: Collection[str]) -> None:
    """Writes kernels/measured.json."""
    report = measured_anew(json.loads(MEASURED.read_text(encoding="utf-8")) if ops else {}, ops)
    MEASURED.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
