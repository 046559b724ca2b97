"""Random networks through the flows: python -m tests.fuzz_graphs [--count 5000] [--log FILE] [--engine x86] [--isa AVX512_CORE_VNNI]
[--native-isa amx].

Each network of tests/graph_grammar.py is compiled (statically; every fourth trained for two steps, every fourth with a third of its ops in
float, every eighth dynamically) and called: no crash, no error that is not a QCompilerError, SQNR at least min(20, a simulation with 7
bits - 6) dB, as good as the QUANTIZED graph at other batches and sizes, and equal bits from state_dict, deepcopy, save and load, and
torch.jit.script. On the native back end each layer within a step of the QUANTIZED graph on equal inputs, and equal bits on two threads.

`--isa` limits what oneDNN may use. `--native-isa` names what the native back end runs on, which is emulated where the processor has it not
(tests/native_without_silicon.py): the results have the bits that the processor's own instructions give.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only, tree_structure

import qcompiler
from qcompiler.backends.native.build import library
from qcompiler.backends.native.build.library import here
from qcompiler.config.qconfig import default_dynamic_qconfig
from qcompiler.errors import InputError, PassError, QCompilerError
from qcompiler.executable.call_forms import CallForms
from qcompiler.ir.types import quant_of
from tests import children, native_layers
from tests.graph_grammar import Network, network
from tests.native_cache import native_cache
from tests.native_without_silicon import install
from tests.simulated import simulated

SECONDS = 60.0
ENGINES = ("x86", "onednn", "qnnpack", "native")  # the last is the back end of that name
FLOOR, MARGIN = 20.0, 6.0  # dB: what int8 must reach, or the simulation less this
WIDER = tuple(1 + i / 32 for i in range(1, 10))  # ranges as another calibration would have found them
STEPS = 1  # that a layer in C may be from the QUANTIZED graph on equal inputs


def sqnrs(expected: Any, result: Any) -> list[float]:
    found = []
    for a, b in zip(tree_leaves(expected), tree_leaves(result), strict=True):
        if not isinstance(a, Tensor):
            assert a == b, f"{a} and {b}"
            continue
        assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
        signal, noise = float(a.double().square().sum()), float((a.double() - b.double()).square().sum())
        if not math.isfinite(noise):  # the simulation divided by what it had rounded to zero
            found.append(-math.inf)
        else:
            found.append(math.inf if noise == 0 or signal < 1e-12 * a.numel() else 10 * math.log10(max(signal / noise, 1e-30)))
    return found


def alike(one: Any, other: Any) -> bool:
    a, b = tree_leaves(one), tree_leaves(other)
    return len(a) == len(b) and all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b))


@dataclass(frozen=True)
class Compiled:
    """The int8 module of a seed's flow, how to make another of it, and the QUANTIZED graph with the same qparams."""

    module: Any
    again: Callable[[], Any]
    reference: Any


def compiled(model: Network, inputs: tuple[Tensor, ...], seed: int, engine: str) -> Compiled:
    """Every fourth is trained for two steps, every fourth has ops in float, every eighth is dynamic; what has several call forms is
    prepared for all of them."""
    mapping = qcompiler.QConfigMapping().set_global(default_dynamic_qconfig) if seed % 8 == 3 else None
    settings: dict[str, Any] = {"backend": "native"} if engine == "native" else {"engine": engine}
    if model.forms:
        settings["example_kwargs"] = model.forms
    if seed % 4 == 1:
        prepared = qcompiler.prepare_qat_fx(copy.deepcopy(model).train(), mapping, inputs, **settings)
        optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-2) if list(prepared.parameters()) else None
        for _, form in product(range(2), model.forms or [{}]):
            results = [t for t in tree_leaves(prepared.eval()(*inputs, **form)) if isinstance(t, Tensor)]
            total = sum(t.square().mean() for t in results if t.is_floating_point())
            if optimizer is not None and isinstance(total, Tensor) and total.requires_grad:
                optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(prepared.parameters(), 1.0)  # a large step would take conditions on data another way
                optimizer.step()
    else:
        prepared = qcompiler.prepare_fx(model, mapping, inputs, **settings)
        qcompiler.calibrate(prepared, [{**dict(zip("xy", inputs)), **form} for form in model.forms] or [inputs])
    kept = kept_float(prepared, seed) if seed % 4 == 2 and not model.forms else ()

    def made() -> Any:
        return qcompiler.convert_fx(prepared, keep_float=kept)

    return Compiled(made(), made, qcompiler.convert_to_reference_fx(prepared, keep_float=kept))


def kept_float(prepared: Any, seed: int) -> list[str]:
    """A third of the ops, so that codes and floats of every kind meet."""
    draw = random.Random(seed)
    return [
        f"%{node.name}" for node in prepared.graph.nodes if node.op == "call_function" and quant_of(node).int8 and draw.random() < 1 / 3
    ]


def examine(seed: int, engine: str, folder: Path) -> str:
    """What became of one network: "good" or "refused: code"; AssertionError, PassError or any exception of others where it is bad."""
    model, inputs = network(seed)
    try:
        made = compiled(model, inputs, seed, engine)
    except PassError:  # no network's fault: a pass broke off, or convert does not compute what training simulated
        raise
    except QCompilerError as error:
        return f"refused: {type(error).__name__} {error.code}: {error.message[:60]}"
    with torch.no_grad():
        for form in model.forms or [{}]:
            examine_call(seed, engine, (model, made), (inputs, form), folder)
    return "good"


Call = tuple[tuple[Tensor, ...], Mapping[str, Any]]


def examine_call(seed: int, engine: str, pair: tuple[Network, Compiled], call: Call, folder: Path) -> None:
    """All that must hold of a call, with one of the forms."""
    (model, made), (inputs, form) = pair, call
    result = made.module(*inputs, **form)
    of_one_kind(expected_of(model, call), result)
    if seed % 4 != 1:
        accurate(model, result, call)
    copies(made, call, result, folder)
    scripted(made.module, call, result)
    if engine == "native":
        layers_right(made, call)
        own_instructions(made.module, call, result)
    for other in other_calls(model, call):
        other_sizes(model, made, other, engine)
    assert alike(made.module(*inputs, **form), result), "other bits after other sizes"


def expected_of(model: Network, call: Call) -> Any:
    """What the float network gives. It may change what it is called on, which an int8 module leaves as it was."""
    inputs, form = call
    return model(*(x.clone() for x in inputs), **form)


def of_one_kind(expected: Any, result: Any) -> None:
    """The same containers and classes, and tensors of the same dtype and number of dimensions."""
    assert tree_structure(expected) == tree_structure(result), f"{tree_structure(result)} for {tree_structure(expected)}"
    kinds = [[(type(v), (v.dtype, v.dim()) if isinstance(v, Tensor) else None) for v in tree_leaves(of)] for of in (expected, result)]
    assert kinds[0] == kinds[1], f"{kinds[1]} for {kinds[0]}"


def accurate(model: Network, result: Any, call: Call) -> None:
    expected = expected_of(model, call)
    found = sqnrs(expected, result)
    for number, (got, simulation) in enumerate(zip(found, bounds_of(model, expected, found, call))):
        assert got >= min(FLOOR, simulation - MARGIN), f"result {number} has {got:.1f} dB, in 7 bits {simulation:.1f}"


def in_seven_bits(model: Network, expected: Any, call: Call, wider: float = 1.0) -> list[float]:
    inputs, form = call
    worst = [-math.inf] * len(tree_leaves(expected))
    try:
        found = simulated(model, inputs, form, wider)
    except RuntimeError:  # it divided by what it had rounded to zero, and no value is as large as a mean that is not a number
        return worst
    sizes = [[v.shape for v in tree_leaves(of) if isinstance(v, Tensor)] for of in (expected, found)]
    return sqnrs(expected, found) if sizes[0] == sizes[1] else worst  # so many of its values are numbers, and so long is a piece


def bounds_of(model: Network, expected: Any, found: list[float], call: Call) -> list[float]:
    """What a simulation has, in dB. A single one may be lucky: a normalization over two or four values is nearly a sign, which a rounding
    turns or leaves. So where that bound is missed, the median of simulations with wider ranges counts. What float32 leaves to chance, such
    as the norm of a constant, has no bound."""
    bounds = in_seven_bits(model, expected, call)
    if any(got < min(FLOOR, bound - MARGIN) for got, bound in zip(found, bounds)):
        others = [in_seven_bits(model, expected, call, wider) for wider in WIDER]
        bounds = [min(bound, _usual(values)) for bound, *values in zip(bounds, *others)]
        bounds = [bound if own >= FLOOR else -math.inf for bound, own in zip(bounds, in_double(model, expected, call))]
    return bounds


def _usual(simulated: Sequence[float]) -> float:
    """The median; the least where one simulation is far from it, since its roundings turned an argmax or the like."""
    usual = median(simulated)
    return min(simulated) if usual - min(simulated) > FLOOR else usual


def in_double(model: Network, expected: Any, call: Call) -> list[float]:
    """How near each result of the float network is to what it gives in double precision, in dB; near where that cannot be computed."""
    inputs, form = call
    doubles = [x.double() if x.is_floating_point() else x.clone() for x in inputs]
    try:
        found = copy.deepcopy(model).double()(*doubles, **tree_map_only(Tensor, lambda t: t.double(), dict(form)))
    except RuntimeError:  # a rule makes a float32 tensor of its own
        return [math.inf] * len(tree_leaves(expected))
    return sqnrs(expected, found)


def copies(made: Compiled, call: Call, result: Any, folder: Path) -> None:
    inputs, form = call
    assert alike(copy.deepcopy(made.module)(*inputs, **form), result), "deepcopy"
    second = made.again()
    second.load_state_dict(made.module.state_dict())
    assert alike(second(*inputs, **form), result), "state_dict"
    programs = [m.program for m in made.module.modules() if hasattr(m, "program")]
    if not any(program.leaves or program.externals for program in programs):
        qcompiler.save(made.module, folder / "m.qc")
        assert alike(qcompiler.load(folder / "m.qc")(*inputs, **form), result), "save and load"


def scripted(module: Any, call: Call, result: Any) -> None:
    inputs, form = call
    of_form = module.call_forms[module.choose(inputs, form)] if isinstance(module, CallForms) else module
    try:
        script = torch.jit.script(of_form)
    except QCompilerError:
        return
    assert alike(script(*inputs, **form), result), "script"


def own_instructions(module: Any, call: Call, result: Any) -> None:
    """The bits of an instruction set that was asked for are those of what would be taken without."""
    inputs, form = call
    asked = os.environ.pop(library.ISA, None)
    if asked is None:
        return
    try:
        assert alike(copy.deepcopy(module)(*inputs, **form), result), f"other bits on {library.chosen()} than on {asked}"
    finally:
        os.environ[library.ISA] = asked


def layers_right(made: Compiled, call: Call) -> None:
    """Each layer in C against the QUANTIZED graph on equal inputs, in memory that others share or not, on one thread or two."""
    inputs, form = call
    module, reference = made.module, made.reference
    if isinstance(module, CallForms):
        number = module.choose(inputs, form)
        module, reference = module.call_forms[number], list(reference.call_forms)[number]
    found = native_layers.watched(module, inputs, form)
    steps = native_layers.steps_apart(found.values, reference, inputs, form)
    worst = max(steps, key=steps.__getitem__, default=None)
    assert worst is None or steps[worst] <= STEPS, f"{worst} is {steps[worst]} steps from the QUANTIZED graph"


def other_calls(model: Network, call: Call) -> Iterator[Call]:
    """Other batches of rows that calibration saw, and other sizes of all that is behind the channels."""
    inputs, form = call
    for batch in (1, 5):
        yield tuple(x[:1].expand(batch, *x.shape[1:]).contiguous() for x in inputs), model.resized(form, batch)
    if inputs[0].dim() > 2:
        for more in (1, 3):
            grown = tuple(torch.cat([x, x.flip(-1)[..., :more]], -1) for x in inputs)
            yield tuple(torch.cat([x, x.flip(2)[:, :, :more]], 2) if x.dim() > 3 else x for x in grown), form


def other_sizes(model: Network, made: Compiled, call: Call, engine: str) -> None:
    """As good as the QUANTIZED graph or 7 bits, or a guard's error where the model itself fixed a size; what the model refuses is free."""
    inputs, form = call
    try:
        expected = expected_of(model, call)
    except Exception:  # of any class: a sum over no rounds is the number 0, which has no method of a tensor
        expected = None
    try:
        found = made.module(*inputs, **form)
    except InputError:
        return
    except Exception:  # in a statement that runs as it stands the model's own error is raised
        if expected is None:
            return
        raise
    if expected is None or model.branches:
        return
    reached, allowed = sqnrs(expected, found), sqnrs(expected, made.reference(*inputs, **form))
    if any(got < min(FLOOR, bound - MARGIN) for got, bound in zip(reached, allowed)):  # the QUANTIZED graph may be lucky, too
        allowed = [min(pair) for pair in zip(allowed, bounds_of(model, expected, reached, call))]
    for number, (got, bound) in enumerate(zip(reached, allowed)):
        assert got >= min(FLOOR, bound - MARGIN), (
            f"result {number} at {[tuple(x.shape) for x in inputs]} has {got:.1f} dB, the QUANTIZED graph or 7 bits {bound:.1f}"
        )


def engine_of(seed: int, engines: Sequence[str]) -> str:
    """The engines take turns every eight seeds, since the flow of a seed is decided by its last three bits."""
    return engines[seed // 8 % len(engines)]


def work(first: int, count: int, engines: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    assert library.chosen() == os.environ.get(library.ISA, library.chosen())
    with tempfile.TemporaryDirectory() as folder:

        def case(seed: int) -> str:
            engine = engine_of(seed, engines)
            return f"{engine} {examine(seed, engine, Path(folder))}"

        children.work(first, count, case, SECONDS)


def limits(isa: str | None, native: str | None) -> dict[str, str]:
    """The environment of child processes. Raises ValueError for what the native back end cannot run here, which it would cap silently."""
    if native is not None and native not in here():
        raise ValueError(f"this machine neither has {native} nor can emulate it")
    given = {"ONEDNN_MAX_CPU_ISA": isa, library.ISA: native}
    return {name: value for name, value in given.items() if value}


def run(count: int, seed: int, engines: Sequence[str], limit: Mapping[str, str] | None = None, log: Path | None = None) -> children.Results:
    """Each network on one of the engines, in turn."""
    command = ["tests.fuzz_graphs", *(word for engine in engines for word in ("--engine", engine))]
    limit = dict(limit or {})
    with tempfile.TemporaryDirectory() as folder:
        kept = native_cache(Path(folder), limit.get(library.ISA))
        return children.run(command, seed, count, children.Log(log, *command, *limit.values()), {**limit, **kept})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=ENGINES, action="append", help="repeat for several, which take turns; all by default")
    parser.add_argument("--isa", help="of oneDNN's names, for instance AVX512_CORE_VNNI: no AMX")
    parser.add_argument("--native-isa", help="for instance amx or avx_vnni")
    parser.add_argument("--log", type=Path, help="a file with what is done: the same command goes on behind it")
    parser.add_argument("--show", type=int, help="print the network of this seed")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    install()
    engines = options.engine or [e for e in ENGINES if e in ("native", *torch.backends.quantized.supported_engines)]
    if options.work:
        work(*options.work, engines)
        return 0
    if options.show is not None:
        model, inputs = network(options.show)
        print(f"{[tuple(x.shape) for x in inputs]}\n{model!r}")
        return 0
    return children.report(run(options.count, options.seed, engines, limits(options.isa, options.native_isa), options.log))


if __name__ == "__main__":
    sys.exit(main())
