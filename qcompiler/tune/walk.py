"""A walk over the sites of a model: at each, what it is given in int8 and in float, with all sites before it as they are by then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch

from qcompiler.config.corrections import Corrections
from qcompiler.errors import CalibrationError, ConfigError, InputError, QCompilerError
from qcompiler.executable.call_forms import CallForms
from qcompiler.inputs.batches import batches as as_batches
from qcompiler.inputs.batches import check_data
from qcompiler.inputs.checks import check_whole
from qcompiler.inputs.input_text import first_sentence, refuses_inputs
from qcompiler.ir.verify import where
from qcompiler.tune.lane import Batch, Lane, without_empty
from qcompiler.tune.let_go import twins_for_now
from qcompiler.tune.sampled_rows import MOST_ROWS, Sample, rows_wanted, sample
from qcompiler.tune.sites import Site, as_rows, float_bias, float_weight, sites
from qcompiler.tune.sums import Sums
from qcompiler.tune.together import together
from qcompiler.workflow.twins import Twin

Tell: TypeAlias = Callable[[int, int], object]  # of the progress: how many sites are done, of how many


@dataclass(frozen=True)
class Options:
    """How rows are drawn. `rows`: at most so many at an op. `tell`: is called behind each op; what it raises ends the walk."""

    seed: int
    tell: Tell | None
    rows: int = MOST_ROWS


@dataclass(frozen=True)
class Visit:
    """A site of a twin with the sums over the rows that were drawn there, which hold the float op's weight and bias as matrices."""

    twin: Twin
    site: Site
    sums: Sums


def walk(prepared: object, batches: object, corrections: Corrections | None, options: Options) -> Iterator[Visit]:
    """Each site of each form of the call in order. What a caller puts into the twin's quantized graph is seen by the sites behind.

    A weight that several forms with data read is no site: what suits the data of one may not suit that of another.
    """
    check_data(batches)
    check_whole(options.rows, "rows", 1)
    check_whole(options.seed, "seed")
    given = _by_form(prepared, batches)
    with twins_for_now(prepared, corrections) as both:
        made = [(twin, given[index]) for index, twin in enumerate(both) if index in given]
        count = Counter(name for twin, _ in made for name in {site.name for site in sites(twin)})
        chosen = [[site for site in sites(twin) if count[site.name] == 1] for twin, _ in made]
        generator, done = torch.Generator().manual_seed(options.seed), 0
        for (twin, data), own in zip(made, chosen, strict=True):
            for visit in _walk_form(twin, own, data, (options, generator)):
                yield visit
                done += 1
                if options.tell is not None:
                    options.tell(done, sum(map(len, chosen)))


def _by_form(prepared: object, data: object) -> dict[int, list[Batch]]:
    """The batches by the form of the call that they have."""
    found: dict[int, list[Batch]] = {}
    for args, kwargs in without_empty(as_batches(data)):
        index = prepared.choose(args, kwargs) if isinstance(prepared, CallForms) else 0
        found.setdefault(index, []).append((args, kwargs))
    if isinstance(prepared, CallForms) and not together().is_alone:
        raise ConfigError("several processes share a model of one form of the call alone", code="ranks", hint="prepare it with one form")
    if not found:
        raise CalibrationError("0 batches of data", code="no-batches", hint="an iterator can be read only once; is the loader empty?")
    return found


def _walk_form(twin: Twin, own: list[Site], batches: list[Batch], drawn: tuple[Options, torch.Generator]) -> Iterator[Visit]:
    quantized, floats = Lane(twin.quantized, batches), Lane(twin.floats, batches)
    for site in own:
        with torch.no_grad():
            visit = _visit(twin, site, quantized, floats, drawn)
        yield visit


def _drawn(site: Site, quantized: Lane, floats: Lane, sizes: tuple[int, int, int], generator: torch.Generator) -> Sample:
    """Rows of one batch, float ones within the range of the rounded ones. `sizes`: its number, the length of a row, how many rows."""
    number, length, count = sizes
    try:
        given = floats.value(site.twin.args[0], number)
        found = sample(site, quantized.value(site.node.args[0], number), given, count, generator)
        if found.rounded.shape[-1] != length:
            raise ValueError(f"rows of {found.rounded.shape[-1]} numbers, not {length}")
    except Exception as error:
        if isinstance(error, QCompilerError) or not refuses_inputs(error):
            raise
        raise InputError(f"batch {number} does not fit {site.name}: {first_sentence(error)}", code="input-shape", where=where(site.node),
                         hint="does the float model take this input?") from error  # fmt: skip
    return Sample(found.rounded, site.kept(found.floats))


def _visit(twin: Twin, site: Site, quantized: Lane, floats: Lane, drawn: tuple[Options, torch.Generator]) -> Visit:
    options, generator = drawn
    weight, bias = as_rows(site, float_weight(twin, site)), float_bias(twin, site)
    shape = (weight.shape[0], weight.shape[1], 1)
    sums = Sums(weight, torch.zeros(shape) if bias is None else bias.reshape(shape), site.bounds)
    count = rows_wanted(weight.shape[2], sum(together().all(len(quantized))), options.rows)
    for number, _ in zip(quantized.visit(site.node), floats.visit(site.twin), strict=True):
        sums.add(_drawn(site, quantized, floats, (number, weight.shape[2], count), generator))
    sums.join(together().all(sums.own()))
    return Visit(twin, site, sums)
