"""The C file behind the header of an exported network: sizes as tables, loading of weights, a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qcompiler.backends.native.export.ends import End
from qcompiler.backends.native.export.interface import MOST, Interface, length
from qcompiler.backends.native.export.weights import Weights
from qcompiler.backends.native.plan.table import Table


def implementation(net: Interface, weights: Weights) -> str:
    """The C file behind the header."""
    tables = "\n".join(_sizes(index, table) for index, table in enumerate(net.tables))
    ends = (("inputs", net.ends.inputs), ("outputs", net.ends.results))
    shapes = "\n".join(_shapes(kind, net.shapes(found)) for kind, found in ends)
    parts = [FIRST, tables, *_all_sizes("all_sizes", net, ()), shapes, BODY]
    if net.ends.has_codes:
        coded = [end.value for _, found in ends for end in found if end.codes is not None]
        parts += [*(_codes(kind, found) for kind, found in ends), *_all_sizes("coded_sizes", net, coded), CODES]
    text = "\n".join(parts).replace("@NAME@", net.name).replace("@UP@", net.name.upper()).replace("@MOST@", str(MOST))
    for name, value in (("NETWORK", f"{weights.network:#x}u"), ("DATA", weights.data), ("INTEGERS", weights.counts[0]),
                        ("REALS", weights.counts[1]), ("DOUBLES", weights.counts[2])):  # fmt: skip
        text = text.replace(f"@{name}@", str(value))
    return text


def _all_sizes(name: str, net: Interface, coded: Sequence[str]) -> list[str]:
    """The sets of sizes. `coded`: the caller's tensors whose elements are codes of a byte; all others have those of the table."""
    found, rows = [], []
    for index, table in enumerate(net.tables):
        parts = "0, 0, NULL, NULL"
        if table.steps[0]:
            widths = [4 if tensor in coded else 1 for tensor in net.network.io]
            for kind, steps in zip(("step", "last"), table.steps, strict=True):
                found.append(_array("int64_t", f"{name}_{kind}_{index}[]", (str(n // w) for n, w in zip(steps, widths, strict=True))))
            parts = f"{table.struct.parts}, {table.struct.tensors}, {name}_step_{index}, {name}_last_{index}"
        arrays = ", ".join(f"{array}_{index}" for array in ("pixels", "moved", "strides", "spread", "cost", "maps"))
        rows.append(f"{{{arrays}, {table.struct.arena}, {parts}}}")
    return [*found, f"static const qc_sizes {name}[] = {{{', '.join(rows)}}};"]


def _sizes(index: int, table: Table) -> str:
    pixels, moved, strides, spread, cost, _, lists = table.kept[:7]
    places = [_array("int64_t", f"map_{index}_{i}[]", map(_int64, at)) for i, at in enumerate(lists)]
    tensors = [f"{{(uint8_t *){t.p or 0}, {_list((t.n, t.d, t.h, t.w, t.c, t.sn, t.sd, t.sh, t.sw))}}}" for t in pixels]
    copies = [
        f"{{(const void *){c.x or 0}, (void *){c.y or 0}, {', '.join(map(_braces, (c.length, c.xs, c.ys)))}, {c.size}}}" for c in moved
    ]
    return "\n".join([
        *places, _array("int64_t *const", f"maps_{index}[]", [f"map_{index}_{i}" for i in range(len(lists))] or ["0"]),
        _array("qc_tensor", f"pixels_{index}[]", tensors), _array("qc_copy", f"moved_{index}[]", copies),
        _array("int64_t", f"strides_{index}[][5]", [_braces(five) for five in strides]),
        _array("int32_t", f"spread_{index}[]", map(str, spread)), _array("int64_t", f"cost_{index}[]", map(str, cost)),
    ])  # fmt: skip


def _shapes(kind: str, shapes: list[list[tuple[int, ...]]]) -> str:
    """Shapes and lengths, all sets of sizes one after the other."""
    flat = [shape for one in shapes for shape in one]
    rows = [_braces([*shape, *[0] * (MOST - len(shape))]) for shape in flat]
    return "\n".join([
        _array("int64_t", f"{kind}_shape[][{MOST}]", rows), _array("int64_t", f"{kind}_length[]", (str(length(shape)) for shape in flat)),
    ])  # fmt: skip


def _codes(kind: str, ends: Sequence[End]) -> str:
    rows = ["{0, 0, 0, 0}" if c is None else f"{{{c.scale!r}f, {c.zero}, {c.low}, {c.high}}}" for c in (end.codes for end in ends)]
    return _array("@NAME@_codes", f"{kind}_codes[]", rows)


def _array(kind: str, name: str, rows: Iterable[str]) -> str:
    body = ",\n  ".join(rows)
    return f"static const {kind} {name} = {{\n  {body}\n}};"


def _int64(value: int) -> str:
    """As C reads it: there is no literal of the smallest number."""
    return "INT64_MIN" if value == -(2**63) else str(int(value))


def _list(values: Iterable[int]) -> str:
    return ", ".join(str(int(v)) for v in values)


def _braces(values: Iterable[int]) -> str:
    return f"{{{_list(values)}}}"


FIRST = """/* Written by qcompiler's export_c: the sizes of the network, and how its weights are read. @NAME@_layers.c has the layers. */
#include "@NAME@.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/net.h"

extern const qc_network @NAME@_network;
"""

BODY = """
struct @NAME@ {
  qc_model *model;
  uint8_t *block;
};

/* check: the CRC-32 of everything behind the header. */
typedef struct head {
  char magic[8];
  uint64_t network, data;
  uint32_t integers, reals, doubles, check;
  char unused[24];
} head;

static uint32_t crc(const uint8_t *bytes, size_t count) {
  uint32_t table[256], value = 0xffffffffu;
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t entry = i;
    for (int bit = 0; bit < 8; bit++) entry = entry & 1 ? entry >> 1 ^ 0xedb88320u : entry >> 1;
    table[i] = entry;
  }
  for (size_t i = 0; i < count; i++) value = table[(value ^ bytes[i]) & 255] ^ value >> 8;
  return ~value;
}

static int is_ours(const head *h) {
  return !memcmp(h->magic, "QCWEIGHT", 8) && h->network == @NETWORK@ && h->data == @DATA@ && h->integers == @INTEGERS@ &&
         h->reals == @REALS@ && h->doubles == @DOUBLES@;
}

/* Everything behind the header, at a cache line; NULL where the file does not hold what its header says. */
static uint8_t *read_block(FILE *file, head *h) {
  if (fread(h, sizeof *h, 1, file) != 1 || !is_ours(h)) return NULL;
  size_t size = (size_t)h->data + 8 * (size_t)h->doubles + 4 * ((size_t)h->integers + h->reals), whole = (size + QC_SLACK + 63) / 64 * 64;
  uint8_t *block = aligned_alloc(64, whole);
  if (block && fread(block, 1, size, file) == size && crc(block, size) == h->check) return block;
  free(block);
  return NULL;
}

@NAME@ *@NAME@_load(const char *weights, const char *isa) {
  head h;
  FILE *file = fopen(weights, "rb");
  if (!file) return NULL;
  uint8_t *block = read_block(file, &h);
  fclose(file);
  @NAME@ *net = block ? malloc(sizeof *net) : NULL;
  if (net) {
    const uint8_t *doubles = block + h.data, *integers = doubles + 8 * (size_t)h.doubles, *reals = integers + 4 * (size_t)h.integers;
    qc_values values = {block, (const void *)integers, (const void *)reals, (const void *)doubles};
    net->block = block;
    net->model = qc_open(&@NAME@_network, &values, isa);
    if (net->model) return net;
  }
  free(net);
  free(block);
  return NULL;
}

void @NAME@_free(@NAME@ *net) {
  if (!net) return;
  qc_close(net->model);
  free(net->block);
  free(net);
}

/* The row of a table, or -1. */
static int at(int sizes, int which, int count) {
  return sizes < 0 || sizes >= @UP@_SIZES || which < 0 || which >= count ? -1 : sizes * count + which;
}

const int64_t *@NAME@_input_shape(int sizes, int input) {
  int row = at(sizes, input, @UP@_INPUTS);
  return row < 0 ? NULL : inputs_shape[row];
}

const int64_t *@NAME@_output_shape(int sizes, int output) {
  int row = at(sizes, output, @UP@_OUTPUTS);
  return row < 0 ? NULL : outputs_shape[row];
}

int64_t @NAME@_input_length(int sizes, int input) {
  int row = at(sizes, input, @UP@_INPUTS);
  return row < 0 ? -1 : inputs_length[row];
}

int64_t @NAME@_output_length(int sizes, int output) {
  int row = at(sizes, output, @UP@_OUTPUTS);
  return row < 0 ? -1 : outputs_length[row];
}

static void join(void **io, const void *inputs, const void *outputs) {
  memcpy(io, inputs, @UP@_INPUTS * sizeof *io);
  memcpy(io + @UP@_INPUTS, outputs, @UP@_OUTPUTS * sizeof *io);
}

int @NAME@_run(@NAME@ *net, int sizes, const float *const *inputs, float *const *outputs, int threads) {
  void *io[@UP@_INPUTS + @UP@_OUTPUTS];
  if (sizes < 0 || sizes >= @UP@_SIZES) return 2;
  join(io, inputs, outputs);
  return qc_run(net->model, &all_sizes[sizes], io, threads);
}
"""

CODES = """
const @NAME@_codes *@NAME@_input_codes(int input) {
  return input < 0 || input >= @UP@_INPUTS || !(inputs_codes[input].scale > 0) ? NULL : &inputs_codes[input];
}

const @NAME@_codes *@NAME@_output_codes(int output) {
  return output < 0 || output >= @UP@_OUTPUTS || !(outputs_codes[output].scale > 0) ? NULL : &outputs_codes[output];
}

int @NAME@_run_codes(@NAME@ *net, int sizes, const void *const *inputs, void *const *outputs, int threads) {
  void *io[@UP@_INPUTS + @UP@_OUTPUTS];
  if (sizes < 0 || sizes >= @UP@_SIZES) return 2;
  join(io, inputs, outputs);
  return qc_run_codes(net->model, &coded_sizes[sizes], io, threads);
}
"""
