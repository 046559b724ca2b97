"""What a look at the batches tells of a calibration: whether there were enough, and which of them, and which values, stand out.

Ranges are those of a batch: its smallest and largest value, 0 included, as qparams have it. Everything follows from what each watch has
seen; no data is kept, but a checksum of each batch. Batches are counted from 0, over all calls of calibrate.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, fx

from qcompiler.ir.types import value_of
from qcompiler.observers.watch import Watch
from qcompiler.ops.state_nodes import held_names
from qcompiler.ops.table import Table
from qcompiler.ops.train_mode import computes_as_in_training

LEAST = 4  # batches: fewer say nothing of how ranges settle, or of what is usual
SETTLED = 0.05  # growth of the ranges with twice the data below which more data changes nothing: 0.4 dB of a rounding error at most
WIDE_BATCH = 3.0  # times as wide as usual in half of the values: 1.6 of 8 bits
WIDE_VALUE = 4.0  # times as wide as in all other batches: 2 of 8 bits
PIXELS = (128.0, 255.0)  # between these is the largest value of a batch of images as files have them
OTHER_SIZE = 16.0  # times as large as in the example: noise in the place of data is 5 times as large, pixels of 0 to 255 50 to 255 times
MOST = 8  # values that are named; further ones are counted

Example = tuple[tuple[object, ...], Mapping[str, object]]  # the arguments that a graph was traced with
Finding = tuple[str, str, fx.Node | None]  # code, sentence, the node that it is about


@dataclass(frozen=True)
class Seen:
    """The ranges of the values of one graph: `low`, `high` of (values, batches), float64. `batches`: their numbers, `data`: for each one
    that is equal for equal data."""

    nodes: list[fx.Node]
    batches: list[int]
    data: list[float]
    low: Tensor
    high: Tensor

    @property
    def width(self) -> Tensor:
        return self.high - self.low

    def without(self, places: Sequence[int]) -> Seen:
        """All batches but those at these places."""
        kept = [i for i in range(len(self.batches)) if i not in places]
        return Seen(self.nodes, [self.batches[i] for i in kept], [self.data[i] for i in kept], self.low[:, kept], self.high[:, kept])


def findings(gm: fx.GraphModule, table: Table, example: Example | None) -> Iterator[Finding]:
    """What a person should know of the calibration of a prepared graph; `example`: the arguments that it was traced with."""
    yield from _as_in_training(gm, table)
    yield from _constant(gm)
    seen = _seen(gm)
    if seen is None:
        return
    yield from _unlike_example(gm, seen, example)
    yield from _pixels(seen)
    if not held_names(gm):  # else a batch is one of a sequence of calls
        seen = yield from _without_repeated(seen)
    if len(seen.batches) < LEAST:
        yield "calibration-few", _few(len(seen.batches)), None
        return
    wide = yield from _wide_batches(seen)
    yield from _wide_values(seen, wide)
    usual = seen.without(wide)
    if len(usual.batches) >= LEAST and bool((usual.width > 0).any()):
        yield from _settling(usual)


def _as_in_training(gm: fx.GraphModule, table: Table) -> Iterator[Finding]:
    for node in gm.graph.nodes:
        text = computes_as_in_training(gm, node, table)
        if text is not None:
            yield "train-mode", text, node


def _seen(gm: fx.GraphModule) -> Seen | None:
    """What the watches of a graph have seen, without values that are 0 throughout and batches of other forms of the call."""
    nodes, rows = [], []
    for node in gm.graph.nodes:
        watch = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(watch, Watch) and watch.of_its_group and watch.seen:
            nodes.append(node.args[0])
            rows.append(_triples(watch))
    rows = [row for row in rows if len(row) == len(rows[0])]
    if len(rows) != len(nodes) or not rows:
        return None
    ends, data = torch.stack(rows)[..., :2], rows[0][:, 2].tolist()
    held = ends.isfinite().all(2)
    batches = held.any(0).nonzero().flatten().tolist()
    ends = torch.where(held[..., None], ends, 0.0)[:, batches]
    low, high = ends[..., 0].clamp(max=0), ends[..., 1].clamp(min=0)
    used = (high > low).any(1).nonzero().flatten().tolist()
    if not used or not batches:
        return None
    return Seen([nodes[i] for i in used], batches, [data[i] for i in batches], low[used], high[used])


def _triples(watch: Watch) -> Tensor:
    """By batch (low, high, number of its data)."""
    return torch.tensor(watch.seen, dtype=torch.float64).view(-1, 3)


def _unlike_example(gm: fx.GraphModule, seen: Seen, example: Example | None) -> Iterator[Finding]:
    """Inputs that are of another order than those of the example: pixels of 0 to 255 where the example was normalized."""
    places = [node for node in gm.graph.nodes if node.op == "placeholder"]
    args, kwargs = example if example is not None else ((), {})
    given = dict[str, object](zip((str(node.target) for node in places), args)) | dict(kwargs)
    for i, node in enumerate(seen.nodes):
        shown = given.get(str(node.target)) if node.op == "placeholder" else None
        if not isinstance(shown, Tensor) or not shown.is_floating_point() or not shown.numel():
            continue
        low, high, other = seen.low[i].median().item(), seen.high[i].median().item(), [end.item() for end in torch.aminmax(shown)]
        size, usual = max(-low, high), max(map(abs, other))
        if usual > 0 and not 1 / OTHER_SIZE < size / usual < OTHER_SIZE:
            told = f"a batch of calibration data has {low:.4g} .. {high:.4g} (medians), the example {other[0]:.4g} .. {other[1]:.4g}"
            yield "calibration-unlike-example", f"{told}: is one of them not normalized?", node


def _constant(gm: fx.GraphModule) -> Iterator[Finding]:
    """Inputs that have one number everywhere: what stands for data where none is at hand."""
    for node in gm.graph.nodes:
        watch = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        source = node.args[0] if node.args else None
        if not isinstance(watch, Watch) or not watch.of_its_group or not watch.seen or not _is_input(source):
            continue
        low, high, _ = _triples(watch).unbind(1)
        if math.prod(value_of(source).shape or ()) > 1 and bool((low == high).all()) and bool((low == low[0]).all()):
            text = f"it is {low[0]:.4g} everywhere in all calibration data: if it is not so in use, the ranges are not those of use"
            yield "calibration-constant", text, source


def _is_input(node: object) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.op == "placeholder"


def _pixels(seen: Seen) -> Iterator[Finding]:
    """Images that nothing was done to, where a layer reads them as they are."""
    for i, node in enumerate(seen.nodes):
        shape, low, high = value_of(node).shape, seen.low[i].min().item(), seen.high[i].median().item()
        if _is_input(node) and shape is not None and len(shape) == 4 and low == 0 and PIXELS[0] < high <= PIXELS[1]:
            text = f"a batch of calibration data has 0 .. {high:.4g} (median), as pixels have in files"
            yield "calibration-pixels", f"{text}: does the model take them so, or normalized?", node


def _without_repeated(seen: Seen) -> Generator[Finding, None, Seen]:
    """The batches whose data did not come before."""
    first, again = dict[float, int](), dict[int, int]()
    for place, number in enumerate(seen.data):
        found = first.setdefault(number, place)
        again |= {place: found} if found != place else {}
    if again:
        named = ", ".join(f"{seen.batches[place]} as {seen.batches[found]}" for place, found in list(again.items())[:MOST])
        more = f" and {len(again) - MOST} more" if len(again) > MOST else ""
        text = f"{len(again)} of {len(seen.batches)} batches are the same data as one before them ({named}{more})"
        yield "calibration-repeated", f"{text}: they tell nothing new, and count once", None
    return seen.without(list(again))


def _few(count: int) -> str:
    text = f"{count} batch{'es that differ' if count > 1 else ''}: fewer than {LEAST} tell nothing of how far the ranges have settled; "
    return f"{text}{LEAST - count} more would{', or this one in parts: data.split(rows)' if count == 1 else ''}"


def _settling(seen: Seen) -> Iterator[Finding]:
    """How much the ranges grew over the second half of the batches, and how many more would settle them."""
    count = len(seen.batches)
    each = _growth(_width_after(seen, count), _width_after(seen, count // 2))
    most, where = each.max(0)
    text = f"{count} batches: over the last {count - count // 2} of them the ranges grew by {_mean(each):.1%} on average"
    text += f", by {most:.1%} at most (%{seen.nodes[int(where)].name})"
    if _mean(each) <= SETTLED:
        yield "calibration-enough", f"{text}: {count} were enough", None
    else:
        yield "calibration-short", f"{text}: {_advice(seen)}", None


def _advice(seen: Seen) -> str:
    """How many more batches would settle the ranges, by how fast the growth from one doubling of random batches to the next slows."""
    count = len(seen.batches)
    whole, half, quarter = (_width_of(seen, n) for n in (count, count // 2, count // 4))
    now, before = _mean(_growth(whole, half)), _mean(_growth(half, quarter))
    if now <= SETTLED:
        return f"the last are unlike the first, since a random half of all lacks {now:.1%}; shuffle the data, and take it from all of it"
    slowing = min(max(now / before, 0.25), 0.8) if before > 0 else 0.8
    doublings = math.ceil(math.log(SETTLED / now) / math.log(slowing))
    more = f"about {count * (2**doublings - 1)} more" if doublings <= 3 else "many more"
    return f"{more} would settle them"


def _growth(wide: Tensor, narrow: Tensor) -> Tensor:
    """From one range to another, of each value; 1 for one that was 0 before."""
    return torch.where(narrow > 0, wide / narrow - 1, (wide > 0).double())


def _mean(growth: Tensor) -> float:
    """Of values that more than double, each counts as doubled."""
    return float(growth.clamp(max=1).mean())


def _width_after(seen: Seen, count: int) -> Tensor:
    return seen.high[:, :count].amax(1) - seen.low[:, :count].amin(1)


def _width_of(seen: Seen, count: int) -> Tensor:
    """The width to expect of `count` batches drawn from all: of n values in falling order the j-th (from 0) is the largest of k drawn ones
    with the probability C(n - 1 - j, k - 1) / C(n, k)."""
    n, weight, weights = len(seen.batches), count / len(seen.batches), []
    for j in range(n - count + 1):
        weights.append(weight)
        weight *= (n - count - j) / max(n - 1 - j, 1)
    drawn = torch.tensor(weights, dtype=torch.float64)
    high, low = seen.high.sort(1, descending=True).values, seen.low.sort(1).values
    return (high - low)[:, : len(weights)] @ drawn


def _wide_batches(seen: Seen) -> Generator[Finding, None, list[int]]:
    """Batches in which at least half of the values go far beyond what is usual; returns their places."""
    usual = seen.width.median(1, keepdim=True).values
    times = torch.where(usual > 0, seen.width / usual, 1.0).median(0).values
    found = (times > WIDE_BATCH).nonzero().flatten().tolist()
    for place in found[:MOST]:
        text = f"batch {seen.batches[place]} of the calibration data stands out: half of the values have at least {times[place]:.3g} times"
        yield "calibration-batch", f"{text} their usual range there, and all others get coarser steps for it", None
    return found


def _wide_values(seen: Seen, known: list[int]) -> Iterator[Finding]:
    """Values whose range is that of one batch, far beyond all others, where that batch is not known to stand out as a whole."""
    most, places = seen.width.max(1)
    found = []
    for place in sorted(set(places.tolist()) - set(known)):
        others = seen.without([place])
        low, high = others.low.amin(1), others.high.amax(1)
        alone = (places == place) & (high > low) & (most > WIDE_VALUE * (high - low))
        found += [(i, place, f"{low[i]:.4g} .. {high[i]:.4g}") for i in alone.nonzero().flatten().tolist()]
    for i, place, usual in found[:MOST]:
        here = f"{seen.low[i, place]:.4g} .. {seen.high[i, place]:.4g}"
        text = f"batch {seen.batches[place]} alone gives it the range {here}; in all others it is {usual}"
        yield "calibration-value", text, seen.nodes[i]
    if len(found) > MOST:
        yield "calibration-value", f"so are the ranges of {len(found) - MOST} further values those of one batch", None
