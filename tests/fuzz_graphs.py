"""Random networks through the flows: python -m tests.fuzz_graphs [--count 5000] [--seed 0] [--engine x86] [--isa AVX512_CORE_VNNI].

Each network of tests/graph_grammar.py is compiled (statically; every fourth trained for two steps, every eighth dynamically) and called:
no crash, no error that is not a QCompilerError, SQNR at least min(20, a simulation with 7 bits - 6) dB, the shapes of the float model at
other batches, and equal bits from state_dict, deepcopy, save and load, and torch.jit.script. `--isa` limits what oneDNN may use.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import qcompiler
from qcompiler.config.qconfig import default_dynamic_qconfig
from qcompiler.errors import InputError, QCompilerError
from tests import children
from tests.graph_grammar import Network, network

SECONDS = 60.0
ENGINES = ("x86", "onednn", "qnnpack")
FLOOR, MARGIN = 20.0, 6.0  # dB: what int8 must reach, or the simulation less this


class SevenBits(TorchFunctionMode):
    """Rounds the float result of every torch function to 127 steps of its own range: a lower bound of what 8 bits should reach."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            return rounded(result) if isinstance(result, Tensor) else result


def rounded(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype is not torch.float32 or x.numel() < 2 or isinstance(x, nn.Parameter):
        return x
    if not bool(torch.isfinite(x).all()):
        return x
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = max((high - low) / 127, 1e-12)
    zero = round(-low / scale)
    return ((x / scale).round() + zero).clamp(0, 127).sub(zero).mul(scale)


def simulated(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The model with weights and every value in 7 bits."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(rounded(parameter.data))
    with SevenBits():
        return copied(*map(rounded, inputs))


def sqnrs(expected: Any, result: Any) -> list[float]:
    found = []
    for a, b in zip(tree_leaves(expected), tree_leaves(result), strict=True):
        assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
        signal, noise = float(a.double().square().sum()), float((a.double() - b.double()).square().sum())
        if not math.isfinite(noise):  # the simulation divided by what it had rounded to zero
            found.append(-math.inf)
        else:
            found.append(math.inf if noise == 0 or signal < 1e-12 * a.numel() else 10 * math.log10(max(signal / noise, 1e-30)))
    return found


def alike(one: Any, other: Any) -> bool:
    a, b = tree_leaves(one), tree_leaves(other)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def compiled(model: Network, inputs: tuple[Tensor, ...], seed: int, engine: str) -> tuple[Any, Callable[[], Any]]:
    """The int8 module of the seed's flow, and how to make another of it."""
    mapping = qcompiler.QConfigMapping().set_global(default_dynamic_qconfig) if seed % 8 == 3 else None
    if seed % 4 == 1:
        prepared = qcompiler.prepare_qat_fx(copy.deepcopy(model).train(), mapping, inputs, engine=engine)
        optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-4) if list(prepared.parameters()) else None
        for _ in range(2):
            total = sum(t.square().mean() for t in tree_leaves(prepared.eval()(*inputs)))
            if optimizer is not None and isinstance(total, Tensor) and total.requires_grad:
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
        return qcompiler.convert_fx(prepared), lambda: qcompiler.convert_fx(prepared)
    prepared = qcompiler.prepare_fx(model, mapping, inputs, engine=engine)
    qcompiler.calibrate(prepared, [inputs])
    return qcompiler.convert_fx(prepared), lambda: qcompiler.convert_fx(prepared)


def examine(seed: int, engine: str, folder: Path) -> str:
    """What became of one network: "good" or "refused: code"; AssertionError or any other exception where it is bad."""
    model, inputs = network(seed)
    with torch.no_grad():
        expected, bound = model(*inputs), simulated(model, inputs)
    try:
        module, again = compiled(model, inputs, seed, engine)
    except QCompilerError as error:
        return f"refused: {type(error).__name__} {error.code}: {error.message[:60]}"
    with torch.no_grad():
        result = module(*inputs)
        if seed % 4 != 1:
            for number, (got, simulation) in enumerate(zip(sqnrs(expected, result), sqnrs(expected, bound))):
                assert got >= min(FLOOR, simulation - MARGIN), f"result {number} has {got:.1f} dB, in 7 bits {simulation:.1f}"
        copies(module, again, inputs, result, folder)
        scripted(module, inputs, result)
        for batch in (1, 5):
            other_batch(model, module, inputs, batch)
        assert alike(module(*inputs), result), "other bits after other batches"
    return "good"


def copies(module: Any, again: Callable[[], Any], inputs: tuple[Tensor, ...], result: Any, folder: Path) -> None:
    assert alike(copy.deepcopy(module)(*inputs), result), "deepcopy"
    second = again()
    second.load_state_dict(module.state_dict())
    assert alike(second(*inputs), result), "state_dict"
    if not module.program.leaves and not module.program.externals:
        qcompiler.save(module, folder / "m.qc")
        assert alike(qcompiler.load(folder / "m.qc")(*inputs), result), "save and load"


def scripted(module: Any, inputs: tuple[Tensor, ...], result: Any) -> None:
    try:
        script = torch.jit.script(module)
    except QCompilerError:
        return
    assert alike(script(*inputs), result), "script"


def other_batch(model: nn.Module, module: Any, inputs: tuple[Tensor, ...], batch: int) -> None:
    """The shapes of the float model, or a guard's error where the model itself fixed the size."""
    given = tuple(x[:1].expand(batch, *x.shape[1:]).contiguous() for x in inputs)
    try:
        found = module(*given)
    except InputError:
        return
    sqnrs(model(*given), found)  # asserts the shapes


def work(first: int, count: int, engine: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        children.work(first, count, lambda seed: examine(seed, engine, Path(folder)), SECONDS)


def run(count: int, seed: int, engine: str, isa: str | None = None) -> Any:
    """Counts of outcomes, and the bad ones with their seeds."""
    return children.run("tests.fuzz_graphs", seed, count, [engine], {"ONEDNN_MAX_CPU_ISA": isa} if isa else None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=ENGINES, default="x86")
    parser.add_argument("--isa", help="of oneDNN's names, for instance AVX512_CORE_VNNI: no AMX")
    parser.add_argument("--show", type=int, help="print the network of this seed")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(int(options.work[0]), int(options.work[1]), options.work[2])
        return 0
    if options.show is not None:
        model, inputs = network(options.show)
        print(f"{[tuple(x.shape) for x in inputs]}\n{model!r}")
        return 0
    return children.report(*run(options.count, options.seed, options.engine, options.isa))


if __name__ == "__main__":
    sys.exit(main())
